"""Finds models for `coe init`: where they may be, the requests for their lists, and the choice of a few.

A list is untrusted input: its size is bounded, and names that a declaration cannot hold are left out, above all
`${NAME}`, which the loader would replace by a variable of the environment.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fnmatch import fnmatch
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson

from coe.errors import REMEDIES, ConfigError, pip_install
from coe.experts.error_mapping import connection_cause
from coe.experts.http.client import Client
from coe.registry.capabilities import KnownModel, known_model

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
