"""Requests the list of models of many servers at the same time, each with bounded time and bytes.

A list is untrusted input: names that a declaration cannot hold are left out, above all `${NAME}`, which the loader
would replace by a variable of the environment.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from typing import Any

import orjson

from coe.cli.init.sources import Source
from coe.errors import REMEDIES, Cause, pip_install
from coe.experts.error_mapping import connection_cause
from coe.experts.http.client import Client

MAX_LIST_BYTES = 8 * 2**20
"""Size of a list; the longest ones, of several hundred models with descriptions, have about 1 MiB."""
MAX_MODELS = 5000
_NAME = re.compile(r"[A-Za-z0-9@/.][A-Za-z0-9@._:/+~-]{0,199}")
"""Names of models that are written to a file: no spaces, quotes, `$` or control characters."""
_VARIABLE_PREFIX = "os.environ/"
_CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length", "max_input_tokens")
_STATUS_CAUSES: Mapping[int, Cause] = {401: "unauthorized", 403: "forbidden", 404: "not_found", 429: "rate_limited"}
_COE = "coe"
"""`owned_by` of the models of a gateway."""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model as its server lists it. `created` is a Unix time, 0 if unknown.

    `prices` are US dollars per million tokens of input and output. None: the server does not report it.
    """

    id: str
    created: float = 0.0
    context_length: int | None = None
    prices: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The models of a source at `base_url`, or the cause and the remedy of a failure.

    `left_out` counts entries without a name that a declaration can hold, repeated ones, and those after `MAX_MODELS`.
    """

    source: Source
    base_url: str
    models: tuple[ListedModel, ...] = ()
    left_out: int = 0
    cause: Cause | None = None
    problem: str = ""
    remedy: str = ""

    @property
    def is_absent(self) -> bool:
        """True if nothing runs at the usual port of a local server."""
        return self.source.kind == "local" and self.cause == "connection_refused"


class NoList(Exception):
    """A page lists no models. The message is the problem."""


async def list_models(sources: Sequence[Source], environ: Mapping[str, str]) -> list[Listing]:
    """Return the models of each source, in their order. Raises nothing: a failure is part of its listing."""
    async with Client() as session:
        tasks = (_first_list(one, environ.get(one.key_env, ""), session) for one in sources)
        return list(await asyncio.gather(*tasks))


async def _first_list(source: Source, key: str, session: Client) -> Listing:
    """Try the addresses of a source. The first failure counts: others are guesses."""
    if source.runtime == "litellm" and find_spec("litellm") is None:
        why = "its API needs litellm, which is not installed"
        return Listing(source, source.base_urls[0], cause="unsupported", problem=why, remedy=pip_install("providers"))
    if not key.isascii() or not (key.isprintable() and key == key.strip()):
        why = f"{source.key_env} holds characters that no key has, such as a line break"
        return Listing(source, source.base_urls[0], cause="unauthorized", problem=why, remedy="export it again")
    failed = None
    for base_url in source.base_urls:
        listing = await _list(source, base_url, key, session)
        if listing.cause is None or listing.cause in ("connection_refused", "unauthorized", "forbidden"):
            return listing
        failed = failed or listing
    assert failed is not None
    return failed


async def _list(source: Source, base_url: str, key: str, session: Client) -> Listing:
    url, headers = f"{base_url}/models", {"accept": "application/json"}
    if source.runtime == "litellm":  # Anthropic's
        url += "?limit=1000"
        headers |= {"x-api-key": key, "anthropic-version": "2023-06-01"}
    elif key:
        headers["authorization"] = f"Bearer {key}"
    try:
        async with asyncio.timeout(source.timeout):
            status, page = await session.get(url, headers, max_bytes=MAX_LIST_BYTES)
    except TimeoutError:
        return _failed(source, base_url, "timeout", f"{source.timeout:g} s")
    except (OSError, ValueError) as error:
        return _failed(source, base_url, connection_cause(error) or "connection_lost")
    if status != 200:
        cause = _STATUS_CAUSES.get(status, "server_error" if status >= 500 else "unexpected_status")
        return _failed(source, base_url, cause, f"HTTP {status}")
    try:
        models, left_out = read_models(page)
    except NoList as error:
        return _failed(source, base_url, "invalid_response", str(error))
    return Listing(source, base_url, models, left_out)


def _failed(source: Source, base_url: str, cause: Cause, detail: str = "") -> Listing:
    what, remedy = REMEDIES[cause][0], "start the server, or give the address of its API, as a rule http://HOST:PORT/v1"
    if source.kind == "local" and cause in ("not_found", "invalid_response", "unexpected_status"):
        what, remedy = "another program uses its port", "give the address of a server at another port with --endpoint"
    elif cause in ("unauthorized", "forbidden") and source.key_env:
        remedy = f"set {source.key_env} to a valid key"
    elif cause in ("unauthorized", "forbidden"):
        remedy = f"run `coe init --endpoint {base_url} --key-env VARIABLE` with the variable of its key"
    elif source.kind == "provider":
        remedy = "check the network of this machine, and run `coe init` again"
    problem = f"{what} [{detail}]" if detail else what
    return Listing(source, base_url, cause=cause, problem=problem, remedy=remedy)


def read_models(page: bytes) -> tuple[tuple[ListedModel, ...], int]:
    """Return the models of a page in the form of OpenAI, Anthropic or Together, and the number left out.

    Raises NoList for a page of another form, and for the list of a CoE gateway.
    """
    if len(page) > MAX_LIST_BYTES:
        raise NoList(f"more than {MAX_LIST_BYTES // 2**20} MiB")
    try:
        value: Any = orjson.loads(page)
    except orjson.JSONDecodeError:
        raise NoList("no JSON") from None
    items = value.get("data") if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise NoList("no list of models")
    if items and all(isinstance(item, dict) and item.get("owned_by") == _COE for item in items):
        raise NoList("a CoE gateway, whose models are experts already; give the addresses of its experts")
    found: dict[str, ListedModel] = {}
    for item in items[:MAX_MODELS]:
        if (model := _model(item)) is not None:
            found.setdefault(model.id, model)
    return tuple(found.values()), len(items) - len(found)


def _model(item: Any) -> ListedModel | None:
    """Return a listed model; None for one without a name that can be written."""
    name = item.get("id") if isinstance(item, dict) else None
    if not isinstance(name, str):
        return None
    name = name.removeprefix("models/")  # of Gemini
    if not _NAME.fullmatch(name) or name.startswith(_VARIABLE_PREFIX):
        return None
    return ListedModel(name, _created(item), _context_length(item), _prices(item.get("pricing")))


def _created(item: Mapping[str, Any]) -> float:
    created = item.get("created", item.get("created_at"))
    if isinstance(created, str):
        try:
            return datetime.fromisoformat(created).timestamp()
        except (ValueError, OverflowError):
            return 0.0
    return float(created) if isinstance(created, int | float) and not isinstance(created, bool) else 0.0


def _context_length(item: Mapping[str, Any]) -> int | None:
    meta = item.get("meta")
    reported = [item.get(field) for field in _CONTEXT_FIELDS] + [meta.get("n_ctx") if isinstance(meta, dict) else None]
    return next((n for n in reported if isinstance(n, int) and not isinstance(n, bool) and 0 < n < 10**9), None)


def _prices(reported: Any) -> tuple[float, float] | None:
    """Return prices per million tokens: OpenRouter reports them per token, Together per million."""
    if not isinstance(reported, dict):
        return None
    for fields, factor in ((("prompt", "completion"), 1e6), (("input", "output"), 1.0)):
        try:
            prices = [float(reported[field]) * factor for field in fields]
        except (KeyError, TypeError, ValueError):
            continue
        if all(0 <= price < 1e6 for price in prices):
            return prices[0], prices[1]
    return None
