"""What entries of the OpenAPI document are made of."""

from __future__ import annotations

from typing import Any

from gateway.endpoints.schemas import Schema, ref

JSON, EVENTS = "application/json", "text/event-stream"
PROBLEMS: dict[int, str] = {
    400: "The request is wrong; `param` names the field.",
    404: "No such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "The expert refuses the request.",
    429: "Too many requests, at the gateway, for this key or at the expert.",
    431: "The headers are too large.",
    500: "A bug of the gateway.",
    502: "The expert answered nonsense.",
    503: "No expert can be reached, or the gateway is about to end.",
    504: "No answer in time.",
}
_ENTRANCE: dict[int, str] = {
    403: "A web page of an origin that is not allowed sent the request.",
    421: "The host name is not allowed.",
}
_DENIED: dict[int, str] = {
    401: "No API key, or one that is not known.",
    403: "The key may not do this, or a web page of an origin that is not allowed sent the request.",
}
_LATER = (429, 503)
"""Statuses that say when to come back."""


def operation(
    name: str, summary: str, responses: Schema, *, keys: bool = False, error: str = "Error", **more: Any
) -> Schema:
    refusals = problems(_ENTRANCE | (_DENIED if keys else {}), error)
    entry: Schema = {"operationId": name, "summary": summary, "responses": {**responses, **refusals}, **more}
    if keys:
        entry["security"] = [{"bearer": []}, {"apiKey": []}]
    return entry


def body(name: str) -> Schema:
    return {"required": True, "content": {JSON: {"schema": ref(name)}}}


def answer(text: str, name: str) -> Schema:
    return {"description": text, "content": {JSON: {"schema": ref(name)}}}


def problems(known: dict[int, str], error: str = "Error") -> Schema:
    return {
        str(status): answer(text, error)
        | ({"headers": {"retry-after": ref("RetryAfter", section="headers")}} if status in _LATER else {})
        for status, text in known.items()
    }
