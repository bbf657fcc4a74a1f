"""Reads a request's head into its options: session, cost weight, timeout, retrieval, trace context, versions.

`resolve_model` adds what an alias or operating point in `model` stands for, `with_rules` the rules that match.

Without a header, the value declared in experts.yaml applies. `gateway/endpoints/openapi.json` describes each header. A
header that is repeated counts as one whose values are separated by commas, so most are then refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from coe.core import NO_RECIPE, Api, Chat, Purpose, RequestOptions, RetrievalMode
from coe.errors import InvalidRequest
from coe.registry import AUTO, Policy, Registry
from coe.registry.aliases import ResolvedModel
from coe.routing.eligibility import check_model, check_recipe, only_local
from coe.routing.rules import RequestFacts, Rules
from gateway.access.access import Caller
from gateway.access.estimate import input_tokens
from gateway.request.body import Head

MAX_SESSION_CHARACTERS = 128
MAX_RECIPE_CHARACTERS = 80
"""Characters of the name of a recipe or arm."""
MAX_VERSION_CHARACTERS = 2048
"""Characters of each header that names versions."""
COST_WEIGHT = b"x-coe-cost-weight"
_TRACE_HEADERS = (b"traceparent", b"tracestate")
_VERSIONS = (b"anthropic-version", b"anthropic-beta")
"""Headers of a Messages request that its expert's server receives too. No other client header reaches a server."""


def read_options(head: Head, policy: Policy, *, caller: Caller, api: Api = "chat") -> RequestOptions:
    """Read x-session-id, the x-coe-* headers, the trace context and, for the Messages API, Anthropic's versions. The
    rule of the caller's API key can only become stricter.

    Raises InvalidRequest for an unknown choice, a number outside the declared limits, or an invalid version.
    """
    chosen: dict[str, Any] = {"cost_weight": policy.cost_weight, "timeout": policy.timeout, "rule": caller.rule}
    if not head.keys().isdisjoint(_HEADERS):
        for name, (option, read) in _OPTIONS.items():
            if name in head and (value := read(head[name], name.decode(), policy)) is not None:
                chosen[option] = value
        if chosen.pop("only_local", False):
            chosen["rule"] = only_local(caller.rule)
        trace = {name.decode(): head[name] for name in _TRACE_HEADERS if name in head}
        # the standard demands ASCII, and HTTP clients fail on more
        chosen["trace_headers"] = {name: value.decode() for name, value in trace.items() if value.isascii()}
    if api == "messages":
        chosen["version_headers"] = {
            name.decode(): _version(head[name], name.decode()) for name in _VERSIONS if head.get(name)
        }
    return RequestOptions(tenant=caller.tenant, **chosen)


def resolve_model(chat: Chat, options: RequestOptions, registry: Registry, head: Head) -> tuple[Chat, RequestOptions]:
    """Replace an alias or operating point by the model that it stands for, and set the point's cost weight unless the
    request has a header for it.

    Raises ModelNotFound for a model or recipe that does not exist for the caller. Names are checked here
    before anything else, so that no other error, price or cached answer reveals an excluded model.
    """
    if chat.model == AUTO and not options.recipe:  # the usual case; no alias has this name
        return chat, options
    model = registry.models.resolve(chat.model) or ResolvedModel(chat.model)
    check_model(model.model, registry, options.rule, sent=chat.model)
    if options.recipe not in ("", NO_RECIPE, model.model):
        check_recipe(options.recipe, registry, options.rule)
    if model.cost_weight is not None and COST_WEIGHT not in head:
        options = replace(options, cost_weight=model.cost_weight)
    return chat if model.model == chat.model else replace(chat, model=model.model), options


def with_rules(
    chat: Chat, options: RequestOptions, rules: Rules, head: Head, *, caller: Caller, model: str
) -> RequestOptions:
    """Add the rules of experts.yaml that match, and limit the request to local experts if one says so. `model` is the
    client's value."""
    client = head.get(b"user-agent", b"").decode("latin-1")
    routed = chat.model == AUTO and options.recipe in ("", NO_RECIPE)
    key, tenant = caller.key or "", caller.tenant or ""
    names = rules.matching(RequestFacts(chat, model, input_tokens, client, key, tenant, routed))
    rule = only_local(options.rule) if rules.only_local(names) else options.rule
    return replace(options, rules=names, rule=rule) if names else options


def _recipe(value: bytes, name: str, _: Policy) -> str:
    """The value of x-coe-recipe. The decision checks whether it is declared."""
    if len(value) > MAX_RECIPE_CHARACTERS or not value.isascii():
        message = f"{name} must be the name of a recipe or off, at most {MAX_RECIPE_CHARACTERS} characters"
        raise InvalidRequest(message, param=name)
    return value.decode("ascii")


def _version(value: bytes, name: str) -> str:
    version = value.decode("latin-1")
    if len(version) > MAX_VERSION_CHARACTERS or not (version.isascii() and version.isprintable()):
        message = f"{name} must be at most {MAX_VERSION_CHARACTERS} printable ASCII characters"
        raise InvalidRequest(message, param=name)
    return version


def _session(value: bytes, _: str, __: Policy) -> str | None:
    return value.decode("latin-1") if 0 < len(value) <= MAX_SESSION_CHARACTERS else None


def _choice(value: bytes, name: str, _: Policy, *, values: Mapping[bytes, Any]) -> Any:
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


def _cost_weight(value: bytes, name: str, policy: Policy) -> float:
    return _number(value, name, *policy.cost_weight_limits)


def _timeout(value: bytes, name: str, policy: Policy) -> float:
    return min(_number(value, name, 0.001, 86400.0), policy.timeout)


_Read = Callable[[bytes, str, Policy], Any]


def _one_of(values: Mapping[bytes, Any]) -> _Read:
    return partial(_choice, values=values)


_OPTIONS: Mapping[bytes, tuple[str, _Read]] = {
    b"x-session-id": ("session", _session),
    COST_WEIGHT: ("cost_weight", _cost_weight),
    b"x-coe-timeout": ("timeout", _timeout),
    b"x-coe-recipe": ("recipe", _recipe),
    b"x-coe-retrieval": ("retrieval", _one_of({word.encode(): word for word in get_args(RetrievalMode)})),
    b"x-coe-explain": ("explain", _one_of({b"0": False, b"1": True})),
    b"x-coe-cache": ("cache", _one_of({b"on": True, b"off": False})),
    b"x-coe-only-local": ("only_local", _one_of({b"true": True, b"false": False})),
    b"x-coe-purpose": ("purpose", _one_of({word.encode(): word for word in get_args(Purpose)})),
}
"""The option that each header sets, and the function that reads it."""
_HEADERS = frozenset((*_OPTIONS, *_TRACE_HEADERS))
