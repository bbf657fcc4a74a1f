"""`GET /openapi.json`: an OpenAPI 3.1 document of the endpoints there are, good enough to generate clients from.

What entries of the OpenAPI document are made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, get_args

import orjson
from starlette.requests import Request
from starlette.responses import Response

from coe.core import Purpose, RetrievalMode
from coe.errors import CAUSES
from coe.registry import Registry
from gateway.endpoints import admin, documents
from gateway.endpoints.schemas import (
    COMPONENTS,
    EVENTS,
    JSON,
    PROBLEMS,
    TEXT,
    Schema,
    answer,
    body,
    operation,
    problems,
    ref,
)
from gateway.request.options import MAX_VERSION
from gateway.serving_state import Serving, ServingState

_FEEDBACK_PROBLEMS: dict[int, str] = {status: PROBLEMS[status] for status in (400, 408, 413, 415, 429, 500)} | {
    404: "No such request, or not any more; it is there from a second after the answer's end.",
    503: "Neither the log nor the spool takes it, or the gateway is about to end.",
}
_DOCUMENT_PROBLEMS: dict[int, str] = {
    404: "No such document, or no document store is declared.",
    409: "One id comes twice.",
    503: "The document store is away, too slow or another encoder's, or the gateway is about to end.",
}


_ASKED = ("Session", "Thrift", "Timeout", "Documents", "Explain", "Purpose", "Trace")
"""Headers that requests of all chat APIs may have."""
_VERSIONS = ("Version", "Beta")


@dataclass(frozen=True, slots=True)
class _Dialect:
    path: str
    name: str
    summary: str
    error: str = "Error"
    streams: bool = True
    asked: tuple[str, ...] = _ASKED


_DIALECTS = (
    _Dialect("/v1/chat/completions", "Chat", "OpenAI's Chat Completions"),
    _Dialect("/v1/completions", "Completion", "OpenAI's legacy Completions"),
    _Dialect("/v1/responses", "Responses", "OpenAI's Responses"),
    _Dialect("/v1/messages", "Messages", "Anthropic's Messages", error="AnthropicError", asked=_ASKED + _VERSIONS),
    _Dialect("/v1/embeddings", "Embeddings", "OpenAI's Embeddings", streams=False),
)


class OpenApi:
    """Written once for every serving state."""

    def __init__(self, current: ServingState) -> None:
        self._current = current
        self._written: tuple[Serving | None, bytes] = (None, b"")

    async def endpoint(self, _: Request) -> Response:
        """`GET /openapi.json`."""
        serving = self._current.serving
        if self._written[0] is not serving:
            self._written = (serving, orjson.dumps(document(serving.registry)))
        return Response(self._written[1], media_type=JSON)


def document(registry: Registry) -> Schema:
    """The document for what is declared: keys where there are any, and the limits of headers. Names no expert."""
    keys = bool(registry.access.keys)
    components: Schema = {
        "schemas": COMPONENTS | documents.components(),
        "headers": _HEADERS,
        "parameters": _parameters(registry),
    }
    if keys:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Composition of Experts", "version": version("coe")},
        "paths": {**{dialect.path: {"post": _asked(dialect, keys)} for dialect in _DIALECTS}, **_others(keys)},
        "components": components,
    }


def _asked(dialect: _Dialect, keys: bool) -> Schema:
    """The operation of one chat API."""
    content = {JSON: {"schema": ref(f"{dialect.name}Response")}}
    if dialect.streams:
        content[EVENTS] = {"schema": TEXT}
    told = {"description": "The expert's answer.", "content": content, "headers": _answer_headers(keys)}
    return operation(
        f"create{dialect.name}",
        dialect.summary,
        {"200": told, **problems(PROBLEMS, dialect.error)},
        keys=keys,
        error=dialect.error,
        parameters=[ref(name, section="parameters") for name in dialect.asked],
        requestBody=body(f"{dialect.name}Request"),
    )


def _others(keys: bool) -> Schema:
    wished = [ref(name, section="parameters") for name in ("Session", "Thrift", "Timeout", "Documents", "Explain")]
    named = {"name": "model", "in": "path", "required": True, "schema": TEXT}
    left = {"headers": _limit_headers(keys)}
    route = operation(
        "route",
        "Which expert would answer, and why",
        {"200": answer("The decision.", "Decision") | left, **problems(PROBLEMS)},
        keys=keys,
        parameters=wished,
        requestBody=body("ChatRequest"),
    )
    count = operation(
        "countTokens",
        "About how many tokens the input of a Messages request has",
        {"200": answer("An estimate.", "TokenCount") | left, **problems(PROBLEMS, "AnthropicError")},
        keys=keys,
        error="AnthropicError",
        parameters=wished,
        requestBody=body("MessagesRequest"),
    )
    feedback = operation(
        "feedback",
        "What somebody says of an answer: one of score, thumb, preferred, category",
        {
            "200": answer("It is stored.", "Feedback"),
            "202": answer("It is stored; the request is looked up when the routing log can be read again.", "Feedback"),
            **problems(_FEEDBACK_PROBLEMS),
        },
        keys=keys,
        requestBody=body("FeedbackRequest"),
    )
    models = operation("listModels", "What `model` may be", {"200": answer("The models.", "Models")}, keys=keys)
    model = operation(
        "getModel",
        "One of them",
        {"200": answer("The model.", "Model"), **problems({404: PROBLEMS[404]})},
        keys=keys,
        parameters=[named],
    )
    page = {"200": {"description": "Prometheus's text format.", "content": {"text/plain": {"schema": TEXT}}}}
    metrics = operation("metrics", "Metrics of all workers", page, keys=keys)
    live = operation("live", "Whether the process runs", {"200": answer("It does.", "Live")})
    ready = operation(
        "ready",
        "Whether it takes work",
        {"200": answer("It does.", "Ready"), "503": answer("It does not, or not any more.", "Ready")},
    )
    this = {"200": {"description": "This.", "content": {JSON: {"schema": {"type": "object"}}}}}
    return {
        "/v1/route": {"post": route},
        "/v1/messages/count_tokens": {"post": count},
        "/v1/feedback": {"post": feedback},
        **_documents(keys),
        **admin.described(keys),
        "/v1/models": {"get": models},
        "/v1/models/{model}": {"get": model},
        "/health/live": {"get": live},
        "/health/ready": {"get": ready},
        "/metrics": {"get": metrics},
        "/openapi.json": {"get": operation("openapi", "This document", this)},
    }


def _documents(keys: bool) -> Schema:
    """For administrators."""
    failures = problems({status: PROBLEMS[status] for status in (400, 408, 413, 415, 429)} | _DOCUMENT_PROBLEMS)

    def described(name: str, summary: str, given: str, **more: Any) -> Schema:
        return operation(name, summary, {"200": answer(summary, given), **failures}, keys=keys, **more)

    place = documents.parameters("id", "collection", "tenant")
    page = documents.parameters("collection", "tenant", "after", "limit")
    return {
        "/v1/documents": {
            "get": described("listDocuments", "Collections, or the documents of one", "DocumentList", parameters=page),
            "post": described("addDocuments", "Add or replace documents", "Uploaded", requestBody=body("Upload")),
        },
        "/v1/documents/search": {
            "post": described("searchDocuments", "Search passages", "Passages", requestBody=body("Question"))
        },
        "/v1/documents/{id}": {"delete": described("deleteDocument", "Forget a document", "Deleted", parameters=place)},
    }


_HEADERS: Schema = {
    "RetryAfter": {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 1}},
    "RateLimit": {"description": "Of this key, a minute; there where a limit is declared.", "schema": TEXT},
    "RequestId": {"description": "Names the request in the routing log.", "schema": TEXT},
    "Expert": {"description": "Who answered.", "schema": TEXT},
    "Category": {"description": "What the conversation is about.", "schema": TEXT},
    "Confidence": {"description": "Of the category.", "schema": {"type": "number", "minimum": 0, "maximum": 1}},
    "Reason": {"description": "Why this expert.", "schema": TEXT},
    "FallbackFrom": {"description": "The first choice, where another expert answers in its place.", "schema": TEXT},
    "Cause": {
        "description": "Why the first choice did not answer, or why the request failed.",
        "schema": {"enum": list(CAUSES)},
    },
    "Router": {"description": "Version of the category router.", "schema": TEXT},
    "Attempts": {"description": "How often experts were asked.", "schema": {"type": "integer", "minimum": 1}},
    "Retrieval": {
        "description": "How the gate to the documents stood (none, off, skipped, empty, failed, used); where used, how "
        "many passages of about how many tokens the expert was given.",
        "schema": TEXT,
    },
    "Timing": {"description": "Milliseconds of each step, where x-coe-explain asks for it.", "schema": TEXT},
    "Overhead": {"description": "Milliseconds until the decision.", "schema": {"type": "number", "minimum": 0}},
}


def _answer_headers(keys: bool) -> Schema:
    names = {
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
    return {header: ref(name, section="headers") for header, name in names.items()} | _limit_headers(keys)


def _limit_headers(keys: bool) -> Schema:
    kinds = [f"{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")]
    return {f"x-ratelimit-{kind}": ref("RateLimit", section="headers") for kind in kinds} if keys else {}


def _parameters(registry: Registry) -> Schema:
    low, high = registry.policy.cost_weight_limits
    version = {"type": "string", "maxLength": MAX_VERSION, "pattern": "^[ -~]*$"}
    return {
        "Session": _header("x-session-id", "The conversation this belongs to, so that it stays with its expert.", TEXT),
        "Thrift": _header(
            "x-coe-cost-weight",
            "0 for the best answer, 1 for the cheapest.",
            {"type": "number", "minimum": low, "maximum": high},
        ),
        "Timeout": _header(
            "x-coe-timeout",
            "Seconds the whole answer may take, at most what is declared.",
            {"type": "number", "minimum": 0.001, "maximum": 86400},
        ),
        "Documents": _header(
            "x-coe-retrieval",
            "Whether documents may be consulted: where it pays (auto), in any case, or never.",
            {"type": "string", "enum": list(get_args(RetrievalMode))},
        ),
        "Explain": _header(
            "x-coe-explain",
            "1 for more about the decision: the answer's header server-timing tells the steps; /v1/route, for "
            "administrators, the nearest training examples and what the experts were weighed by.",
            {"type": "string", "enum": ["0", "1"]},
        ),
        "Purpose": _header(
            "x-coe-purpose",
            "The CoE command that sends the request: it does not count as a user's in reports and learning. Ignored "
            "from keys without the scope admin.",
            {"type": "string", "enum": list(get_args(Purpose))},
        ),
        "Trace": _header("traceparent", "W3C trace context; passed on.", TEXT),
        "Version": _header("anthropic-version", "Passed on to servers that speak Messages.", version),
        "Beta": _header("anthropic-beta", "Beta features, passed on to servers that speak Messages.", version),
    }


def _header(name: str, text: str, schema: Schema) -> Schema:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
