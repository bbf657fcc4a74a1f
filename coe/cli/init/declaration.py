"""Writes the text of experts.yaml for selected models. Pure: the same selection gives the same text.

Categories and optional sections are those of `template.yaml`, the declaration of the demo, with its comments. Keys are
written as `${VARIABLE}`. Names that servers report are quoted where YAML would read them as something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files

import orjson

from coe.cli.init.selection import Candidate
from coe.cli.init.sources import PROVIDERS
from coe.registry import AUTO

MAX_NAME = 48
"""Characters of an expert's name before a suffix makes it unique."""
DEFAULT_CONTEXT_LENGTH = 8192
_SECTION = re.compile(r"^# -{20,} (\w+)\n", re.MULTILINE)
_PLAIN = re.compile(r"[A-Za-z](?:[A-Za-z0-9._/+:-]*[A-Za-z0-9])?")
_YAML_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
_CODERS = re.compile(r"cod(?:er|e|estral)\b|devstral|starcoder", re.IGNORECASE)
_ORDER = ("tools", "json_schema", "images", "audio", "files")
"""Order of capabilities in the text."""
_SERVER_DEFAULTS = {"ollama": (4096, "Ollama (OLLAMA_CONTEXT_LENGTH)"), "lmstudio": (4096, "LM Studio")}
"""Context lengths of servers that do not report theirs."""
_HEAD = """\
# Written by `coe init`. Declares the service: categories (kinds of requests), experts (models that answer them), and
# the assignment from categories to experts. Edit it and run `coe check`, which reports each mistake with its line and
# the nearest valid name; a running gateway reloads the file. `coe check --schema` prints every key.
version: 1

"""
_ASSIGNMENT = """\
# Maps categories to experts, whatever the scores say. `coe tune` measures the experts and assigns every category that
# is left out here, `general` too. Until then the first expert above answers all of these, as `general` goes to it.
assignment:
"""


def template() -> str:
    """Return the declaration of the demo: four experts that share the embedded model."""
    return (files(__package__) / "template.yaml").read_text(encoding="utf-8")


def demo() -> str:
    """Return the demo with the head of a written file: that of the template refers to files of the repository."""
    return _HEAD + template().partition("\nversion: 1\n\n")[2]


def named(chosen: Sequence[Candidate]) -> dict[str, Candidate]:
    """Return the candidates by the names of their experts, which are unique and valid."""
    experts: dict[str, Candidate] = {}
    for one in chosen:
        last = one.listed.id.rpartition("/")[2].removesuffix(".gguf")  # llama.cpp reports the file
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:MAX_NAME].rstrip("-._") or "model"
        names = [base, f"{base}-{one.source.name}"[:60]]
        names += [f"{base}-{number}" for number in range(2, len(chosen) + 3)]
        experts[next(name for name in names if name not in (*experts, AUTO))] = one
    return experts


def strongest(experts: Mapping[str, Candidate]) -> str:
    """Return the expert with the highest price or, among free ones, the largest size; a model for code comes last."""
    return max(experts, key=lambda name: (_CODERS.search(name) is None, *experts[name].strength))


def declaration(experts: Mapping[str, Candidate], *, general: str) -> str:
    """Return the text of experts.yaml. The expert `general` is the first one, which answers until a plan decides."""
    first = experts[general].base_url
    experts = dict(sorted(experts.items(), key=lambda one: (one[0] != general, one[1].base_url != first)))
    text = template()
    titles = [*_SECTION.finditer(text)]
    ends = [*(title.start() for title in titles[1:]), len(text)]
    parts = {title[1]: title[0] + text[title.end() : end] for title, end in zip(titles, ends, strict=True)}
    title_of = {title[1]: title[0] for title in titles}
    written = [title_of["experts"], *(f"{line}\n" for line in _experts(experts)), "\n"]
    written += [title_of["assignment"], _ASSIGNMENT, "\n"]
    return "".join([_HEAD, parts["categories"], *written, parts["optional"]])


def _experts(experts: Mapping[str, Candidate]) -> Iterator[str]:
    yield "# One entry for each model. Clients may send its `name` as `model` to pin it, and logs show it. Prices may"
    yield "# have changed since; costs, limits and `coe plan` use them."
    yield "experts:"
    place = ""
    for name, one in experts.items():
        if one.source.name != place:
            place = one.source.name
            yield f"  # {place}"
        yield from _expert(name, one)


def _expert(name: str, one: Candidate) -> Iterator[str]:
    yield f"  - name: {scalar(name)}"
    if one.source.runtime == "litellm":
        yield f"    model: {scalar(one.source.prefix + one.listed.id)}"
        yield "    runtime: litellm"
        if one.base_url not in {address for known in PROVIDERS for address in known.base_urls}:
            yield f"    base_url: {scalar(one.base_url.removesuffix('/v1'))}"  # litellm adds it
    else:
        yield f"    model: {scalar(one.listed.id)}"
        yield "    runtime: external"
        yield f"    base_url: {scalar(one.base_url)}"
    if one.source.key_env:
        yield f"    api_key: ${{{one.source.key_env}}}"
    yield _context_length(one)
    yield _capabilities(one)
    if (size := one.active_parameters_b) is not None:
        yield f"    active_parameters_b: {size:g}   # billions, from its name"
    yield from _prices(one)
    if not one.is_hosted:
        # A proxy at this address may pass requests on, so the user decides.
        yield "    # local: true   # it is your own: it may receive requests that only local experts may receive"


def _context_length(one: Candidate) -> str:
    known = one.known.context_length if one.known is not None and one.source.kind == "provider" else None
    default, server = _SERVER_DEFAULTS.get(one.source.name, (None, ""))
    length, remark = DEFAULT_CONTEXT_LENGTH, "unknown; correct it, longer conversations go elsewhere"
    if one.listed.context_length is not None:
        length, remark = one.listed.context_length, "tokens, as its server reports"
    elif default is not None:
        length, remark = default, f"tokens, the default of {server}; correct it if it is set to more"
    elif known is not None:
        length, remark = known, "tokens, from litellm's table"
    return f"    context_length: {length}   # {remark}"


def _capabilities(one: Candidate) -> str:
    if one.known is None:
        return "    capabilities: auto   # unknown: requests with tools or a JSON schema are tried"
    found = [name for name in _ORDER if name in one.known.capabilities]
    return f"    capabilities: [{', '.join(found)}]"


def _prices(one: Candidate) -> Iterator[str]:
    """Yield the line of the prices: a comment if they are unknown, and nothing for local models without."""
    if one.prices is None:
        if one.is_hosted:
            yield "    # prices: {input: 0, output: 0}   # unknown: dollars per million tokens; without them it is free"
        return
    fields = {"input": one.prices[0], "output": one.prices[1]}
    origin = "as its server reports"
    if one.known is not None and one.listed.prices is None:
        origin, cached = "from litellm's table; check it", one.known.cached_input_price
        if cached is not None and cached <= fields["input"]:
            fields["cached_input"] = cached
    written = ", ".join(f"{field}: {price:.6g}" for field, price in fields.items())
    yield f"    prices: {{{written}}}   # dollars per million tokens, {origin}"


def scalar(text: str) -> str:
    """Return a YAML scalar: plain if it can only be read as this string, else in double quotes."""
    if _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS:
        return text
    return orjson.dumps(text).decode()
