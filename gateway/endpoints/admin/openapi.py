"""The administrators' endpoints in the OpenAPI document."""

from __future__ import annotations

from gateway.endpoints.admin.operation import Operation, whole
from gateway.endpoints.admin.routes import OPERATIONS
from gateway.endpoints.schemas import EVENTS, JSON, PROBLEMS, TEXT, Schema, operation, problems

_PROBLEMS: dict[int, str] = {status: PROBLEMS[status] for status in (400, 408, 413, 415, 429)} | {
    404: "No such thing.",
    409: "It cannot be done now.",
    500: PROBLEMS[500],
    501: "What this needs is not installed where the gateway runs.",
    503: "What this asks is away or too slow, or the gateway is about to end.",
    504: PROBLEMS[504],
}
_EVENT: Schema = whole({"data": TEXT})
"""Of a stream, one event after another."""


def described(keys: bool) -> Schema:
    """By path; `keys` says whether any are declared."""
    paths: Schema = {}
    for one in OPERATIONS:
        paths.setdefault(one.path.replace(":path", ""), {})[one.method.lower()] = _administered(one, keys)
    return paths


def _administered(one: Operation, keys: bool) -> Schema:
    content = {EVENTS: {"schema": _EVENT}} if one.answer is None else {JSON: {"schema": one.answer}}
    more: Schema = {"parameters": parameters} if (parameters := one.parameters()) else {}
    if one.body is not None:
        more["requestBody"] = {"required": True, "content": {JSON: {"schema": one.body.model_json_schema()}}}
    failures = problems({status: _PROBLEMS[status] for status in one.problems})
    responses = {"200": {"description": one.summary, "content": content}, **failures}
    return operation(one.name, one.summary, responses, keys=keys, **more)
