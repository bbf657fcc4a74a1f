"""The page on HTTP headers, from the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from scripts.reference.http_api import resolved, type_of
from scripts.reference.markdown import code, sentence, table
from scripts.reference.sources import REASONS, openapi

TITLE = "Headers"
ABOUT = "Request headers that clients may send, and response headers that the gateway adds."

_PAGE = """\
# Headers

These headers carry options of a request and describe its answer. No header carries text of a prompt or an answer.

## Request headers

All request headers are optional, except the API key where `access.keys` declares keys.

{request_headers}

## Response headers

Responses of the model APIs carry these headers. `x-request-id` and `retry-after` are on other responses too.

{response_headers}

## Reasons

`x-coe-reason` states why the expert was chosen.

{reasons}

## Causes

`x-coe-cause` states why an expert did not answer. [Errors](errors.md#causes) lists the causes with their remedies.
"""
_REASONS: Mapping[str, str] = {
    "routed": "The expert has the highest expected utility for the request.",
    "explored": "Exploration drew another expert of nearly the same expected quality.",
    "uncertain": "The confidence is below the threshold, so the general expert answers.",
    "sticky": "A follow-up stays with the expert of the conversation.",
    "pinned": "The client named the expert in `model`.",
    "rule": "A rule of experts.yaml names the expert.",
    "spilled": "The best expert is overloaded, and another is hardly worse.",
    "cached": "An identical request was answered before; this expert wrote the answer.",
    "fallback": "The first choice did not answer; another expert answers in its place.",
}
_KEYS = (
    ("`authorization`", "text", "`Bearer KEY`, the API key."),
    ("`x-api-key`", "text", "The API key, as Anthropic's clients send it."),
)


def page() -> str:
    """The page, in Markdown. Raises KeyError for a reason that is not described here."""
    parameters = openapi()["components"]["parameters"].values()
    request_headers = [(code(one["name"]), type_of(one["schema"]), sentence(one["description"])) for one in parameters]
    response_headers = [
        (code(name), type_of(one["schema"]), sentence(one["description"])) for name, one in _response_headers()
    ]
    reasons = [(code(reason), _REASONS[reason]) for reason in REASONS]
    return _PAGE.format(
        request_headers=table(("header", "type", "meaning"), [*_KEYS, *request_headers]),
        response_headers=table(("header", "type", "meaning"), response_headers),
        reasons=table(("reason", "meaning"), reasons),
    )


@cache
def names() -> frozenset[str]:
    """Every header of the page."""
    request_headers = {one["name"] for one in openapi()["components"]["parameters"].values()}
    return frozenset(request_headers | {name for name, _ in _response_headers()} | {"authorization", "x-api-key"})


def _response_headers() -> list[tuple[str, dict[str, Any]]]:
    found: dict[str, dict[str, Any]] = {}
    for item in openapi()["paths"].values():
        for operation in item.values():
            for response in operation["responses"].values():
                for name, header in resolved(response).get("headers", {}).items():
                    found[name] = resolved(header)
    return list(found.items())
