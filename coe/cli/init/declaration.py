"""Writes the text of experts.yaml for selected models. Pure: the same selection gives the same text.

Categories and optional sections are those of `template.yaml`, the declaration of the demo, with its comments. Keys are
written as `${VARIABLE}`. Names that servers report are quoted, as YAML would read some of them as something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files

import orjson

from coe.cli.init.sources import PROVIDERS, Model
from coe.registry import AUTO

MAX_NAME = 48
"""Characters of an expert's name before a suffix makes it unique."""
DEFAULT_CONTEXT_LENGTH = 4096
"""Context length of a server that does not report it: the default of Ollama and LM Studio."""
_ORDER = ("tools", "json_schema", "images", "audio", "files")
"""Order of capabilities in the text."""
_HEAD = """\
# Written by `coe init`. Declares the service: categories (kinds of requests), experts (models that answer them), and
# the assignment from categories to experts. Edit it and run `coe check`, which reports each mistake with its line and
# the nearest valid name; a running gateway reloads the file. `coe check --schema` prints every key.
version: 1

"""
_EXPERTS = """\
# One entry for each model. Clients may send its `name` as `model` to pin it, and logs show it. Prices may
# have changed since; costs, limits and `coe plan` use them.
experts:
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


def named(chosen: Sequence[Model]) -> dict[str, Model]:
    """Return the models by the names of their experts, which are unique and valid.

    The first one, which answers until a plan decides, is the dearest or, among free ones, the largest.
    """
    experts: dict[str, Model] = {}
    for one in chosen:
        last = one.id.rpartition("/")[2].removesuffix(".gguf")  # llama.cpp reports the file
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:MAX_NAME].rstrip("-._")
        base = "model" if base in ("", AUTO) else base
        names = [base, *(f"{base}-{number}" for number in range(2, len(chosen) + 3))]
        experts[next(name for name in names if name not in experts)] = one

    def strength(name: str) -> tuple[float, float]:
        return (experts[name].prices or (0.0, 0.0))[1], experts[name].active_parameters_b or 0.0

    first = max(experts, key=strength)
    return {first: experts[first], **experts}


def declaration(experts: Mapping[str, Model]) -> str:
    """Return the text of experts.yaml."""
    _, categories, demo_experts, demo_assignment, optional = re.split(r"(?m)^(?=# -{20,} \w+\n)", template())
    titles = [part.partition("\n")[0] + "\n" for part in (demo_experts, demo_assignment)]
    entries = [f"{line}\n" for name, one in experts.items() for line in _expert(name, one)]
    return "".join([_HEAD, categories, titles[0], _EXPERTS, *entries, "\n", titles[1], _ASSIGNMENT, optional])


def _expert(name: str, one: Model) -> Iterator[str]:
    source, known = one.source, one.known
    model = f"{source.prefix}{one.id}" if source.runtime == "litellm" else one.id
    yield f"  - name: {_quoted(name)}   # {source.name}"
    yield f"    model: {_quoted(model)}"
    yield f"    runtime: {source.runtime}"
    if source.runtime != "litellm":
        yield f"    base_url: {_quoted(source.base_url)}"
    elif source not in PROVIDERS:
        yield f"    base_url: {_quoted(source.base_url.removesuffix('/v1'))}"  # litellm adds it
    if source.key_env:
        yield f"    api_key: ${{{source.key_env}}}"
    length, origin = DEFAULT_CONTEXT_LENGTH, "unknown; correct it, longer conversations go elsewhere"
    if one.context_length is not None:
        length, origin = one.context_length, "tokens, as its server reports"
    elif known is not None and known.context_length is not None and source.kind == "provider":
        length, origin = known.context_length, "tokens, from litellm's table"
    yield f"    context_length: {length}   # {origin}"
    if known is None:
        yield "    capabilities: auto   # unknown: requests with tools or a JSON schema are tried"
    else:
        yield f"    capabilities: [{', '.join(name for name in _ORDER if name in known.capabilities)}]"
    if (size := one.active_parameters_b) is not None:
        yield f"    active_parameters_b: {size:g}   # billions, from its name"
    if known is not None and one.prices is not None:
        fields = {"input": one.prices[0], "output": one.prices[1], "cached_input": known.cached_input_price}
        written = ", ".join(f"{field}: {price:.6g}" for field, price in fields.items() if price is not None)
        yield f"    prices: {{{written}}}   # dollars per million tokens, from litellm's table; check it"
    elif source.key_env:
        yield "    # prices: {input: 0, output: 0}   # unknown: dollars per million tokens; without them it is free"
    else:  # a proxy at this address may pass requests on, so the user decides
        yield "    # local: true   # it is your own: it may receive requests that only local experts may receive"


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()
