"""Reads the options of a request from its headers: session, cost weight, timeout, retrieval, trace context, versions.
`resolve_model` adds what an alias or operating point in `model` stands for, `with_rules` the rules that match.

Without a header, the value declared in experts.yaml applies. `gateway/endpoints/openapi.json` describes each header.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

from starlette.types import Scope

from coe.core import NO_RECIPE, Api, Chat, ExpertRule, Purpose, RequestOptions, RetrievalMode
from coe.errors import HeadersTooLarge, InvalidRequest
from coe.registry import AUTO, Policy, Registry
from coe.registry.aliases import ResolvedModel
from coe.routing.eligibility import check_model, check_recipe, only_local
from coe.routing.rules import RequestFacts, Rules
from gateway.access import Caller
from gateway.access.estimate import input_tokens

MAX_SESSION_CHARACTERS = 128
MAX_HEADER_BYTES = 32 * 1024
"""Bytes of all headers together."""
MAX_RECIPE_CHARACTERS = 80
"""Characters of the name of a recipe or arm."""
MAX_VERSION_CHARACTERS = 2048
"""Characters of each header that names versions."""
_CHOICES: Mapping[bytes, tuple[str, Mapping[bytes, Any]]] = {
    b"x-coe-retrieval": ("retrieval", {word.encode(): word for word in get_args(RetrievalMode)}),
    b"x-coe-explain": ("explain", {b"0": False, b"1": True}),
    b"x-coe-cache": ("cache", {b"on": True, b"off": False}),
    b"x-coe-only-local": ("only_local", {b"true": True, b"false": False}),
    b"x-coe-purpose": ("purpose", {word.encode(): word for word in get_args(Purpose)}),
}
"""Headers with a fixed set of values, and the option that each sets."""
_TRACE_HEADERS = (b"traceparent", b"tracestate")
_VERSIONS = (b"anthropic-version", b"anthropic-beta")
"""Headers of a Messages request that its expert's server receives too. No other client header reaches a server."""


def read_options(
    scope: Scope, policy: Policy, *, tenant: str | None = None, api: Api = "chat", rule: ExpertRule | None = None
) -> RequestOptions:
    """Read x-session-id, the x-coe-* headers, the trace context and, for the Messages API, Anthropic's versions. The
    `rule` of the API key can only become stricter.

    Raises InvalidRequest for an unknown choice, a number outside the declared limits, or an invalid version.
    """
    cost_weight, timeout, size = policy.cost_weight, policy.timeout, 0
    choices: dict[str, Any] = {}
    session: str | None = None
    trace: dict[str, str] = {}
    versioned = api == "messages"
    versions: dict[str, str] = {}
    for name, value in scope["headers"]:
        size += len(name) + len(value)
        if name == b"x-coe-cost-weight":
            cost_weight = _number(value, "x-coe-cost-weight", *policy.cost_weight_limits)
        elif name == b"x-coe-timeout":
            timeout = min(_number(value, "x-coe-timeout", 0.001, 86400.0), policy.timeout)
        elif name == b"x-session-id" and 0 < len(value) <= MAX_SESSION_CHARACTERS:
            session = value.decode("latin-1")
        elif name in _TRACE_HEADERS and value.isascii():  # the standard demands ASCII, and HTTP clients fail on more
            trace[name.decode()] = value.decode("latin-1")
        elif name in _CHOICES:
            field, values = _CHOICES[name]
            choice = _choice(value, name.decode(), values)
            # the last of repeated headers wins, except that `x-coe-only-local: true` cannot be undone
            choices[field] = choice or choices.get(field, False) if field == "only_local" else choice
        elif name == b"x-coe-recipe" and value:
            choices["recipe"] = _recipe(value)
        elif versioned and value and name in _VERSIONS:
            _add_version(versions, name.decode(), value.decode("latin-1"))
    if size > MAX_HEADER_BYTES:
        raise HeadersTooLarge(f"the headers are longer than {MAX_HEADER_BYTES // 1024} KiB together")
    rule = only_local(rule) if choices.pop("only_local", False) else rule
    return RequestOptions(
        session, cost_weight, timeout, trace, tenant=tenant, version_headers=versions, rule=rule, **choices
    )


def resolve_model(
    chat: Chat, options: RequestOptions, registry: Registry, headers: Iterable[tuple[bytes, bytes]]
) -> tuple[Chat, RequestOptions]:
    """Replace an alias or operating point by the model that it stands for, and set the point's cost weight unless the
    request has a header for it.

    Raises ModelNotFound for a model or recipe that does not exist for the caller. Names are checked here
    before anything else, so that no other error, price or cached answer reveals an excluded model.
    """
    if chat.model == AUTO and not options.recipe:  # the usual case; no alias has this name
        return chat, options
    found = registry.models.resolve(chat.model) or ResolvedModel(chat.model)
    check_model(found.model, registry, options.rule, sent=chat.model)
    if options.recipe not in ("", NO_RECIPE, found.model):
        check_recipe(options.recipe, registry, options.rule)
    if found.cost_weight is not None and all(name != b"x-coe-cost-weight" for name, _ in headers):
        options = replace(options, cost_weight=found.cost_weight)
    return chat if found.model == chat.model else replace(chat, model=found.model), options


def with_rules(
    chat: Chat,
    options: RequestOptions,
    rules: Rules,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    caller: Caller,
    model: str,
) -> RequestOptions:
    """Add the rules of experts.yaml that match, and limit the request to local experts if one says so. `model` is the
    client's value."""
    client = next((value for name, value in headers if name == b"user-agent"), b"").decode("latin-1")
    routed = chat.model == AUTO and options.recipe in ("", NO_RECIPE)
    key, tenant = caller.key or "", caller.tenant or ""
    names = rules.matching(RequestFacts(chat, model, input_tokens, client, key, tenant, routed))
    rule = only_local(options.rule) if rules.only_local(names) else options.rule
    return replace(options, rules=names, rule=rule) if names else options


def _add_version(versions: dict[str, str], name: str, value: str) -> None:
    """Add a header line; several lines of one name form one list."""
    joined = f"{versions[name]},{value}" if name in versions else value
    if len(joined) > MAX_VERSION_CHARACTERS or not (joined.isascii() and joined.isprintable()):
        message = f"{name} must be at most {MAX_VERSION_CHARACTERS} printable ASCII characters"
        raise InvalidRequest(message, param=name)
    versions[name] = joined


def _recipe(value: bytes) -> str:
    """The value of x-coe-recipe. The decision checks whether it is declared."""
    if len(value) > MAX_RECIPE_CHARACTERS or not value.isascii():
        message = f"x-coe-recipe must be the name of a recipe or off, at most {MAX_RECIPE_CHARACTERS} characters"
        raise InvalidRequest(message, param="x-coe-recipe")
    return value.decode("ascii")


def _choice(value: bytes, name: str, values: Mapping[bytes, Any]) -> Any:
    if value not in values:
        raise InvalidRequest(f"{name} must be one of {b', '.join(values).decode()}", param=name)
    return values[value]


def _number(value: bytes, name: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise InvalidRequest(f"{name} must be a number from {low:g} to {high:g}", param=name)
    return number
