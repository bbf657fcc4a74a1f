"""Request and response headers of the chat APIs, as components of the OpenAPI document."""

from __future__ import annotations

from typing import get_args

from coe.core import Purpose, RetrievalMode
from coe.errors import CAUSES
from coe.registry import Registry
from gateway.endpoints.operation import Schema
from gateway.request.options import MAX_VERSION_CHARACTERS

_TEXT: Schema = {"type": "string"}

DECISION_HEADERS = ("Session", "CostWeight", "Timeout", "Retrieval", "Explain")
"""Request headers that a decision depends on."""
CALL_HEADERS = (*DECISION_HEADERS, "Purpose", "Trace")
"""Request headers of all chat APIs."""
ANTHROPIC_HEADERS = ("Version", "Beta")

ROUTING_HEADERS = {
    "x-request-id": "RequestId",
    "x-coe-expert": "Expert",
    "x-coe-category": "Category",
    "x-coe-confidence": "Confidence",
    "x-coe-reason": "Reason",
    "x-coe-fallback-from": "FallbackFrom",
    "x-coe-cause": "Cause",
    "x-coe-router": "Router",
    "x-coe-attempts": "Attempts",
    "x-coe-overhead-ms": "Overhead",
    "x-coe-retrieval": "Retrieval",
    "server-timing": "Timing",
}
"""Response headers of the chat APIs, each with its component."""
LIMIT_HEADERS = {
    f"x-ratelimit-{kind}-{unit}": "RateLimit"
    for kind in ("limit", "remaining", "reset")
    for unit in ("requests", "tokens")
}

RESPONSE_HEADERS: Schema = {
    "RetryAfter": {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 1}},
    "RateLimit": {"description": "Limit of this key per minute; present where one is declared.", "schema": _TEXT},
    "RequestId": {"description": "Id of the request in the routing log.", "schema": _TEXT},
    "Expert": {"description": "The expert that answered.", "schema": _TEXT},
    "Category": {"description": "The predicted category of the conversation.", "schema": _TEXT},
    "Confidence": {
        "description": "Calibrated probability of the category.",
        "schema": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "Reason": {"description": "Why this expert was chosen.", "schema": _TEXT},
    "FallbackFrom": {"description": "The first choice, where another expert answers in its place.", "schema": _TEXT},
    "Cause": {
        "description": "Why the first choice did not answer, or why the request failed.",
        "schema": {"enum": list(CAUSES)},
    },
    "Router": {"description": "Version of the category router.", "schema": _TEXT},
    "Attempts": {"description": "Number of calls to experts.", "schema": {"type": "integer", "minimum": 1}},
    "Retrieval": {
        "description": "Outcome of the retrieval gate (none, off, shut, empty, failed, open); where open, the number "
        "of passages and of their tokens.",
        "schema": _TEXT,
    },
    "Timing": {"description": "Milliseconds of each step, where x-coe-explain requests it.", "schema": _TEXT},
    "Overhead": {"description": "Milliseconds until the decision.", "schema": {"type": "number", "minimum": 0}},
}


def request_headers(registry: Registry) -> Schema:
    """Parameter components; the cost weight has the declared limits."""
    low, high = registry.policy.cost_weight_limits
    version = {"type": "string", "maxLength": MAX_VERSION_CHARACTERS, "pattern": "^[ -~]*$"}
    return {
        "Session": _header("x-session-id", "Id of the conversation, which keeps it on its expert.", _TEXT),
        "CostWeight": _header(
            "x-coe-cost-weight",
            "0 for the best answer, 1 for the cheapest.",
            {"type": "number", "minimum": low, "maximum": high},
        ),
        "Timeout": _header(
            "x-coe-timeout",
            "Seconds that the whole response may take, at most the declared timeout.",
            {"type": "number", "minimum": 0.001, "maximum": 86400},
        ),
        "Retrieval": _header(
            "x-coe-retrieval",
            "Whether documents are retrieved: where the gate expects a gain (auto), always (on), or never (off).",
            {"type": "string", "enum": list(get_args(RetrievalMode))},
        ),
        "Explain": _header(
            "x-coe-explain",
            "1 for details of the decision. The response header server-timing has the time of each step; /v1/route "
            "returns, to administrators, the nearest training examples and what each expert was rated by.",
            {"type": "string", "enum": ["0", "1"]},
        ),
        "Purpose": _header(
            "x-coe-purpose",
            "The CoE command that sends the request, which reports and learning do not count as a user's. Ignored "
            "from keys without the scope admin.",
            {"type": "string", "enum": list(get_args(Purpose))},
        ),
        "Trace": _header("traceparent", "W3C trace context; passed on.", _TEXT),
        "Version": _header("anthropic-version", "Passed on to servers that speak Messages.", version),
        "Beta": _header("anthropic-beta", "Beta features, passed on to servers that speak Messages.", version),
    }


def _header(name: str, text: str, schema: Schema) -> Schema:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
