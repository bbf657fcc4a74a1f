"""`coe init`: writes experts.yaml for the models that run on this machine or that the user's keys reach.

It finds sources, selects models, writes the file, and checks it as `coe check --live` does. It asks nothing: the user
edits the file, whose comments say how.

Finds models for `coe init`: where they may be, the requests for their lists, and the choice of a few.

A list is untrusted input: its size is bounded, and names that a declaration cannot hold are left out, above all
`${NAME}`, which the loader would replace by a variable of the environment.

Writes the text of experts.yaml for selected models. Pure: the same selection gives the same text.

Categories and optional sections are those of `template.yaml`, the declaration of the demo, with its comments. Keys are
written as `${VARIABLE}`. Names that servers report are quoted, as YAML would read some of them as something else.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import orjson
import typer

from coe import registry
from coe.cli.check import check_live
from coe.cli.common import settings_for, writable_file
from coe.errors import REMEDIES, ConfigError, pip_install
from coe.experts.error_mapping import connection_cause
from coe.experts.http.client import Client
from coe.registry import AUTO
from coe.registry.runtimes import KnownModel, ModelTable, known_model
from coe.settings import Settings
from coe.terminal import print_error, print_line

LOCAL_SECONDS, REMOTE_SECONDS = 1.0, 10.0
"""Time limits of a server of this machine, and of other ones, to list its models."""
MAX_LIST_BYTES = 8 * 2**20
"""Size of a list; the longest ones, of several hundred models with descriptions, have about 1 MiB."""
MAX_MODELS = 5000
MAX_DEFAULT = 5
"""Models of one source without a pattern."""
MAX_OUTPUT_PRICE = 40.0
"""US dollars per million tokens; models above are selected by a pattern only."""
PRICE_CLASS_FACTOR = 4.0
"""Ratio of prices within one class."""
_NAME = re.compile(r"(?!os\.environ/)[A-Za-z0-9@/.][A-Za-z0-9@._:/+~-]{0,199}")
"""Names of models that are written to a file: no spaces, quotes, `$` or control characters."""
_CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length", "max_input_tokens")
_OTHER_USES = re.compile(
    r"embed|rerank|bge-|minilm|whisper|tts|speech|transcri|audio|realtime|moderation|guard|dall-e|image|imagen|veo|sora|"
    r"video|ocr|davinci|babbage|-base$",
    re.IGNORECASE,
)
"""Names of models that answer no conversations of text."""
_UNSTABLE = re.compile(r"preview|[-_]exp\b|experimental|beta|search|deep-research|computer-use", re.IGNORECASE)
_BILLIONS = re.compile(r"(?<![a-z0-9.])(a?)(\d{1,3}(?:\.\d{1,2})?)b(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Source:
    """A server or provider that may list models.

    - `name`: part of the names of experts, and of `SOURCE/MODEL` in patterns.
    - `kind`: a local server that might not be running, a hosted provider, or an address that the user gave.
    - `key_env`: environment variable of its key; empty without one.
    - `prefix`: what litellm's table, and runtime litellm, put before the name of its models.
    - `runtime`: runtime of its experts. Providers of runtime litellm have their own API.
    """

    name: str
    base_url: str
    kind: Literal["local", "provider", "endpoint"]
    key_env: str = ""
    prefix: str = ""
    runtime: str = "external"
    timeout: float = REMOTE_SECONDS


LOCAL_SERVERS = tuple(
    Source(name, f"http://127.0.0.1:{port}/v1", "local", timeout=LOCAL_SECONDS)
    for name, port in (("ollama", 11434), ("vllm", 8000), ("llama.cpp", 8080), ("lmstudio", 1234), ("sglang", 30000))
)
"""Servers of this machine at their usual ports."""
PROVIDERS = tuple(
    Source(name, url, "provider", f"{name.upper()}_API_KEY", prefix, "litellm" if name == "anthropic" else "external")
    for name, url, prefix in (
        ("openai", "https://api.openai.com/v1", ""),
        ("anthropic", "https://api.anthropic.com/v1", "anthropic/"),
        ("gemini", "https://generativelanguage.googleapis.com/v1beta/openai", "gemini/"),
        ("mistral", "https://api.mistral.ai/v1", "mistral/"),
        ("groq", "https://api.groq.com/openai/v1", "groq/"),
        ("deepseek", "https://api.deepseek.com/v1", "deepseek/"),
        ("xai", "https://api.x.ai/v1", "xai/"),
        ("openrouter", "https://openrouter.ai/api/v1", "openrouter/"),
        ("together", "https://api.together.xyz/v1", "together_ai/"),
        ("fireworks", "https://api.fireworks.ai/inference/v1", "fireworks_ai/"),
        ("cerebras", "https://api.cerebras.ai/v1", "cerebras/"),
    )
)
"""Hosted providers with the variables of keys that their own clients read."""


def in_environment(environ: Mapping[str, str]) -> list[Source]:
    """Return the providers whose key is set, at the address that the environment gives them: a key goes nowhere else.

    Variables such as OPENAI_BASE_URL, TOGETHER_AI_API_BASE and GOOGLE_GEMINI_BASE_URL give it. Raises ConfigError for
    an address that is none.
    """
    found = []
    for one in PROVIDERS:
        if not environ.get(one.key_env):
            continue
        for variable in sorted(name for name in environ if name.endswith(("_BASE_URL", "_API_BASE"))):
            if variable.removeprefix("GOOGLE_").startswith(f"{one.name.upper()}_") and environ[variable]:
                one = replace(one, base_url=endpoint(environ[variable], option=variable).base_url)
        found.append(one)
    return found


def endpoint(url: str, key_env: str = "", *, option: str = "--endpoint") -> Source:
    """Return the source of an address that the user gave; one without a path gets /v1.

    Raises ConfigError if it is not an http or https address, or holds credentials, which would end up in experts.yaml.
    """
    address = (url if "://" in url else f"http://{url}").rstrip("/")
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
        is_valid = bool(host) and parts.scheme in ("http", "https")
        is_valid = is_valid and parts.username is None and not parts.query and not parts.fragment
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ConfigError(
            f"{option}: write http://HOST:PORT/v1 or https://HOST/v1, without user, password and query; put a key into "
            "an environment variable and name it with --key-env"
        )
    name = re.sub(r"[^A-Za-z0-9.-]", "-", host) + (f"-{port}" if port else "")
    return Source(name, address if parts.path else f"{address}/v1", "endpoint", key_env)


@dataclass(frozen=True, slots=True)
class Model:
    """A model that a source lists, with what litellm's table knows about it.

    `created` is a Unix time, 0 if unknown. `context_length` is what the server reports; None if it does not.
    """

    source: Source
    id: str
    created: float = 0.0
    context_length: int | None = None
    known: KnownModel | None = None

    @property
    def is_chat(self) -> bool:
        """True unless the table or the name says that the model answers no conversations."""
        mode = self.known.mode if self.known is not None else ""
        return mode in ("", "chat") and not _OTHER_USES.search(self.id)

    @property
    def prices(self) -> tuple[float, float] | None:
        """US dollars per million tokens of input and output; None if unknown.

        The table has those of known providers. Models of other servers may only share the name.
        """
        known = self.known if self.source.kind == "provider" else None
        if known is None or known.input_price is None or known.output_price is None:
            return None
        return known.input_price, known.output_price

    @property
    def active_parameters_b(self) -> float | None:
        """Parameters per token by the model's name, such as 8b or 30b-a3b, in billions; None if it has none."""
        sizes = _BILLIONS.findall(self.id)
        return float(min(sizes, key=lambda one: not one[0])[1]) or None if sizes else None


class NoModels(Exception):
    """A source lists no models: why, and the remedy. `is_absent`: nothing runs at the usual port of a local server."""

    is_absent = False


async def find_models(
    sources: Sequence[Source], environ: Mapping[str, str], table: Mapping[str, Any]
) -> list[list[Model] | NoModels]:
    """Return the chat models of each source, in their order, with what litellm's `table` knows about them."""

    async def models_of(source: Source, session: Client) -> list[Model] | NoModels:
        try:
            if source.runtime == "litellm" and not table:
                raise NoModels(f"its API needs litellm, which is not installed; {pip_install('providers')}")
            page = await _request(source, environ.get(source.key_env, ""), session)
            return [one for one in read_models(page, source, table) if one.is_chat]
        except NoModels as error:
            return error

    async with Client() as session:
        return list(await asyncio.gather(*(models_of(one, session) for one in sources)))


async def _request(source: Source, key: str, session: Client) -> bytes:
    """Return the page that lists the models. Raises NoModels."""
    url, headers = f"{source.base_url}/models", {"accept": "application/json"}
    if not key.isascii() or not (key.isprintable() and key == key.strip()):
        raise NoModels(f"{source.key_env} holds characters that no key has, such as a line break; export it again")
    if source.runtime == "litellm":  # Anthropic's
        url += "?limit=1000"
        headers |= {"x-api-key": key, "anthropic-version": "2023-06-01"}
    elif key:
        headers["authorization"] = f"Bearer {key}"
    try:
        async with asyncio.timeout(source.timeout):
            status, page = await session.get(url, headers, max_bytes=MAX_LIST_BYTES)
    except TimeoutError:
        raise NoModels(f"it does not answer within {source.timeout:g} s") from None
    except (OSError, ValueError) as error:
        cause = connection_cause(error) or "connection_lost"
        failure = NoModels(f"{REMEDIES[cause][0]} ({cause})")
        failure.is_absent = source.kind == "local" and cause == "connection_refused"
        raise failure from None
    if status in (401, 403):
        remedy = f"set {source.key_env} to a valid key" if source.key_env else "name the variable of its key: --key-env"
        raise NoModels(f"HTTP {status}; {remedy}")
    if status != 200:
        raise NoModels(f"HTTP {status}; give the address of an API with --endpoint, as a rule http://HOST:PORT/v1")
    return page


def read_models(page: bytes, source: Source, table: Mapping[str, Any]) -> list[Model]:
    """Return the models of a page in the form of OpenAI, Anthropic or Together, without those of other names.

    Raises NoModels for a page of another form, and for the list of a CoE gateway.
    """
    if len(page) > MAX_LIST_BYTES:
        raise NoModels(f"its list has more than {MAX_LIST_BYTES // 2**20} MiB")
    try:
        value: Any = orjson.loads(page)
    except orjson.JSONDecodeError:
        raise NoModels("its list is not JSON; another program may use its port") from None
    items = value.get("data") if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise NoModels("its list holds no models; another program may use its port")
    found: dict[str, Model] = {}
    for item in items[:MAX_MODELS]:
        if not isinstance(item, dict):
            continue
        if item.get("owned_by") == "coe":
            raise NoModels("it is a CoE gateway, whose models are experts already; give the addresses of its experts")
        name = str(item.get("id")).removeprefix("models/")  # of Gemini
        if _NAME.fullmatch(name) and isinstance(item.get("id"), str):
            known = known_model(table, (f"{source.prefix}{name}", name))
            found.setdefault(name, Model(source, name, _created(item), _context_length(item), known))
    return list(found.values())


def _created(item: Mapping[str, Any]) -> float:
    created = item.get("created", item.get("created_at"))
    try:
        return datetime.fromisoformat(created).timestamp() if isinstance(created, str) else float(created or 0)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _context_length(item: Mapping[str, Any]) -> int | None:
    meta = item.get("meta")  # of llama.cpp
    reported = [item.get(field) for field in _CONTEXT_FIELDS] + [meta.get("n_ctx") if isinstance(meta, dict) else None]
    return next((n for n in reported if isinstance(n, int) and not isinstance(n, bool) and 0 < n < 10**9), None)


def matching(models: Sequence[Model], patterns: Sequence[str]) -> list[Model]:
    """Return the models whose name, or SOURCE/NAME, matches one of the patterns, without regard to case."""
    return [
        one
        for one in models
        for names in [(one.id.lower(), f"{one.source.name}/{one.id}".lower())]
        if any(fnmatch(name, pattern.lower()) for name in names for pattern in patterns)
    ]


def default_models(models: Sequence[Model]) -> list[Model]:
    """Return at most `MAX_DEFAULT` models of one source, in its order: the newest of each price class.

    Routing gains from experts that differ. Without prices they are the newest.
    """
    stable = [one for one in models if not _UNSTABLE.search(one.id)]
    affordable = [one for one in stable if one.prices is None or one.prices[1] <= MAX_OUTPUT_PRICE]
    by_age = sorted(affordable or models, key=lambda one: -one.created)
    by_class: dict[int, Model] = {}
    for one in by_age:
        if one.prices and one.prices[1]:
            by_class.setdefault(math.floor(math.log(one.prices[1], PRICE_CLASS_FACTOR)), one)
    chosen = [one.id for one in (list(by_class.values()) or by_age)[:MAX_DEFAULT]]
    return [one for one in models if one.id in chosen]


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


def demo_declaration() -> str:
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


MAX_EXPERTS = 64
"""Models of one declaration; live checks, scores and plans take time for each."""
Endpoints = Annotated[
    list[str] | None, typer.Option("--endpoint", metavar="URL", help="An OpenAI-compatible server; may be repeated.")
]
Key = Annotated[
    str | None, typer.Option("--key-env", metavar="VARIABLE", help="Variable with the key of the one endpoint given.")
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="PATTERN", help="Only models like this, such as 'gpt-5*'; may be repeated."),
]
Output = Annotated[Path | None, typer.Option("--output", help="File to write [default: COE_CONFIG or experts.yaml].")]
Demo = Annotated[bool, typer.Option("--demo", help="Declare four experts that share the embedded model.")]
Offline = Annotated[bool, typer.Option("--offline", help="Skip the final request of a token from each expert.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]


def init(
    endpoints: Endpoints = None,
    key_env: Key = None,
    model: Models = None,
    output: Output = None,
    demo: Demo = False,
    offline: Offline = False,
    force: Force = False,
) -> None:
    """Write experts.yaml for the models that run here or that your keys reach, and check it.

    Without --endpoint, it probes Ollama, vLLM, llama.cpp, LM Studio and SGLang at their usual ports of this machine,
    and providers whose variable such as OPENAI_API_KEY is set. It requests /v1/models of each, and takes context
    lengths from the servers, prices and capabilities from litellm's table of models (extra `providers`). In the end
    it requests a few tokens from each expert, and exits with 1 where one does not answer.

    Keys are never written: the file names their variables. An existing file is replaced with --force only.
    """
    settings = settings_for(output)
    path = settings.config
    if path.exists() and not force:
        raise ConfigError(f"{path}: the file exists; write another one with --output, or add --force")
    writable_file(path.resolve())
    if not os.access(path.resolve().parent, os.W_OK):  # the file is replaced as a whole
        raise typer.BadParameter(f"no file may be written to {path.resolve().parent}")
    if not demo:
        chosen, is_complete = _choose(endpoints or (), key_env, model or (), settings)
        _write(settings, declaration(named(chosen)))
        _finish(settings, is_live=not offline)
        if endpoints and not is_complete:
            print_error("some of the given endpoints list no models; see above")
            raise typer.Exit(1)
        return
    if endpoints or key_env or model:
        raise typer.BadParameter("cannot be combined with --endpoint, --key-env or --model", param_hint="--demo")
    _write(settings, demo_declaration())
    _finish(settings, is_live=False)


def _choose(
    endpoints: Sequence[str], key_env: str | None, patterns: Sequence[str], settings: Settings
) -> tuple[list[Model], bool]:
    """Select models of the given endpoints, else of what runs here and of the keys that are set; print what was found.

    Returns them, and whether each source lists models. Raises ConfigError if no model or too many are left. Errors do
    not repeat `key_env`, which is the key itself if the user misunderstood the option.
    """
    if key_env and (len(endpoints) != 1 or not settings.environ.get(key_env)):
        raise ConfigError(
            "--key-env: name a variable that is set, not the key itself, and one --endpoint; add experts with other "
            "keys to the written file"
        )
    sources = [endpoint(url, key_env or "") for url in endpoints]
    sources = sources or [*LOCAL_SERVERS, *in_environment(settings.environ)]
    table, chosen, is_complete = ModelTable().entries, list[Model](), True
    for source, models in zip(sources, asyncio.run(find_models(sources, settings.environ, table)), strict=True):
        if isinstance(models, NoModels):
            is_complete, found = False, str(models)
        else:
            found = f"models that chat: {len(models)}"
            chosen += matching(models, patterns) if patterns else default_models(models)
        if not (isinstance(models, NoModels) and models.is_absent):
            print_line(f"{source.name}{f' ({source.key_env})' if source.key_env else ''} at {source.base_url}: {found}")
    if not table:
        install = pip_install("providers")
        print_line(f"note: without litellm, prices and capabilities are mostly unknown; {install} and run it again")
    if len(chosen) > MAX_EXPERTS:
        raise ConfigError(f"{len(chosen)} models are selected, at most {MAX_EXPERTS} fit; narrow them with --model")
    if not chosen:
        raise ConfigError(
            (f"no model matches {', '.join(patterns)}. " if patterns else "no models that chat were found. ")
            + f"Start a server, export a key ({', '.join(one.key_env for one in PROVIDERS)}), or give an address with "
            "--endpoint; `coe init --demo` needs none of these. Nothing was written"
        )
    return chosen, is_complete


def _write(settings: Settings, text: str) -> None:
    """Replace the file, through its link, once the loader accepts the text. Raises ConfigError, or OSError."""
    path = settings.config.resolve()
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        draft.write_text(text, encoding="utf-8")
        registry.load(draft, environ=settings.environ)
        if path.exists():
            draft.chmod(path.stat().st_mode)
        draft.replace(path)


def _finish(settings: Settings, *, is_live: bool) -> None:
    """Check the written file and, where `is_live`, its experts; print the result and the next commands."""
    from coe.fleet.engines import check_local_experts

    declared = registry.load(settings.config, environ=settings.environ)
    print_line(f"wrote {settings.config}: experts: {len(declared.experts)}, categories: {len(declared.categories)}")
    check_local_experts(declared, settings.config)
    for spec in declared.experts:
        price = f", ${spec.prices.input:g} and ${spec.prices.output:g} a million tokens" if spec.prices.output else ""
        print_line(f"  {spec.name}: {spec.model}, {spec.context_length} tokens{price}")
    findings = asyncio.run(check_live(declared, settings)) if is_live else []
    for finding in findings:
        print_line(finding.sentence)
    is_default = settings.config == Settings.read().config
    option = "" if is_default else f" --config {shlex.quote(os.path.relpath(settings.config))}"
    if not declared.assignment and len(declared.experts) > 1:
        print_line(f"{declared.general_expert} answers everything until the experts are measured.")
    print_line(f'Next:\n  coe up{option}\n  coe chat{option} "What is 17 * 23?"\n  coe tune{option}')
    if not all(finding.ok for finding in findings):
        print_error("some experts do not answer; correct or remove them, and run `coe check --live`")
        raise typer.Exit(1)
