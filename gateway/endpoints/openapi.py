"""Writes the OpenAPI 3.1 document from the operations, good enough to generate clients from.

Two parts depend on the declaration: authorization, present if API keys are declared, and the limits of header values.
The document names no expert.
The headers of the chat APIs are components of the document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from coe import __version__
from coe.core import NO_RECIPE, Purpose, RetrievalMode
from coe.errors import CAUSES
from coe.registry import AUTO, Registry
from gateway.endpoints.operation import JSON, TEXT, Operation, Schema, Success, ref
from gateway.request.options import MAX_RECIPE_CHARACTERS, MAX_VERSION_CHARACTERS

DECISION_HEADERS = ("Session", "CostWeight", "Timeout", "Retrieval", "Recipe", "OnlyLocal", "Explain")
"""Request headers that a decision depends on."""
CALL_HEADERS = (*DECISION_HEADERS, "Cache", "Purpose", "Trace")
"""Request headers of all chat APIs."""
ANTHROPIC_HEADERS = ("Version", "Beta")

_SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_RETRIEVAL_TEXT = (
    "Result of retrieval (none, off, skipped, empty, failed, withheld, used). If used, also the number of passages and "
    "of their tokens."
)
_ROUTING: Mapping[str, tuple[str, str, Schema]] = {
    "x-request-id": ("RequestId", "Id of the request in the routing log.", TEXT),
    "x-coe-expert": ("Expert", "The expert that answered; of a recipe, the member.", TEXT),
    "x-coe-category": ("Category", "The predicted category of the conversation.", TEXT),
    "x-coe-confidence": ("Confidence", "Calibrated probability of the category.", _SHARE),
    "x-coe-reason": ("Reason", "Why this expert was chosen.", TEXT),
    "x-coe-rule": ("Rule", "The rule of experts.yaml that applied, where one did.", TEXT),
    "x-coe-fallback-from": ("FallbackFrom", "The first choice, where another expert answers in its place.", TEXT),
    "x-coe-cause": (
        "Cause",
        "Why the first choice did not answer, or why the request failed.",
        {"enum": list(CAUSES)},
    ),
    "x-coe-language": ("Language", "ISO 639 code of the request's language; `und` if not identified.", TEXT),
    "x-coe-router": ("Router", "Version of the category router.", TEXT),
    "x-coe-attempts": ("Attempts", "Number of calls to experts.", {"type": "integer", "minimum": 0}),
    "x-coe-overhead-ms": ("Overhead", "Milliseconds until the decision.", {"type": "number", "minimum": 0}),
    "x-coe-retrieval": ("Retrieval", _RETRIEVAL_TEXT, TEXT),
    "x-coe-recipe": ("Recipe", "The recipe, where one was called.", TEXT),
    "x-coe-steps": ("Steps", "Number of steps of the recipe that began.", {"type": "integer", "minimum": 1}),
    "x-coe-calls": ("Calls", "Number of calls of the recipe to experts.", {"type": "integer", "minimum": 1}),
    "x-coe-dropped": (
        "Dropped",
        "What was left out of the request: types of tools and items that the expert's server cannot read, fields that "
        "it rejects, and fields that select a model.",
        TEXT,
    ),
    "x-coe-cache": (
        "Cache",
        "Whether the answer is from the cache, where the request uses it.",
        {"enum": ["hit", "miss"]},
    ),
    "server-timing": ("Timing", "Milliseconds of each step, where x-coe-explain requests it.", TEXT),
}
"""Response headers of the chat APIs: the component of each, its description and its schema."""
ROUTING_HEADERS = {header: component for header, (component, _, _) in _ROUTING.items()}
LIMIT_HEADERS = {
    f"x-ratelimit-{kind}-{unit}": "RateLimit"
    for kind in ("limit", "remaining", "reset")
    for unit in ("requests", "tokens")
}
RESPONSE_HEADERS: Schema = {
    "RetryAfter": {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 1}},
    "RateLimit": {"description": "Limit of this key per minute; present where one is declared.", "schema": TEXT},
    **{component: {"description": text, "schema": schema} for component, text, schema in _ROUTING.values()},
}


def request_headers(registry: Registry) -> Schema:
    """Parameter components; the cost weight has the declared limits."""
    low, high = registry.policy.cost_weight_limits
    version = {"type": "string", "maxLength": MAX_VERSION_CHARACTERS, "pattern": "^[ -~]*$"}
    return {
        "Session": _header("x-session-id", "Id of the conversation, which keeps it on its expert.", TEXT),
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
        "Recipe": _header(
            "x-coe-recipe",
            f"Name of a recipe that answers, where `model` is `{AUTO}`; {NO_RECIPE} for single experts only.",
            {"type": "string", "maxLength": MAX_RECIPE_CHARACTERS},
        ),
        "Explain": _header(
            "x-coe-explain",
            "1 for details of the decision: the time of each step in server-timing, and for administrators the routed "
            "text, the nearest training examples and the nearest measured prompts in /v1/route.",
            {"type": "string", "enum": ["0", "1"]},
        ),
        "OnlyLocal": _header(
            "x-coe-only-local",
            "true for a request that only local experts may receive. Its text is not stored in the routing log.",
            {"type": "string", "enum": ["true", "false"]},
        ),
        "Cache": _header(
            "x-coe-cache",
            "off for an answer that is not from the cache and is not stored.",
            {"type": "string", "enum": ["on", "off"]},
        ),
        "Purpose": _header(
            "x-coe-purpose",
            "The CoE command that sends the request, which reports and learning do not count as a user's. Ignored "
            "from keys without the scope admin.",
            {"type": "string", "enum": list(get_args(Purpose))},
        ),
        "Trace": _header("traceparent", "W3C trace context; passed on.", TEXT),
        "Version": _header("anthropic-version", "Passed on to servers that speak Messages.", version),
        "Beta": _header("anthropic-beta", "Beta features, passed on to servers that speak Messages.", version),
    }


def _header(name: str, text: str, schema: Schema) -> Schema:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


_SCHEMAS = "#/components/schemas/{model}"
_ORIGIN_REFUSED: dict[int, str] = {
    403: "A web page of an origin that is not allowed sent the request.",
    421: "The host name is not allowed.",
}
_KEY_REFUSED: dict[int, str] = {
    401: "No API key, or one that is not known.",
    403: "The key may not do this, or a web page of an origin that is not allowed sent the request.",
}
_RETRY_AFTER_STATUSES = (429, 503)


def document(operations: Iterable[Operation], schemas: Mapping[str, Schema], registry: Registry) -> Schema:
    """The document of `operations`, whose `ref`s lead to `schemas`."""
    keys = bool(registry.access.keys)
    paths: Schema = {}
    models: Schema = {}
    for one in operations:
        paths.setdefault(one.path.replace(":path", ""), {})[one.method.lower()] = _entry(one, keys)
        if isinstance(one.body, type):
            schema = one.body.model_json_schema(ref_template=_SCHEMAS)
            models |= {**schema.pop("$defs", {}), one.body.__name__: schema}
    components: Schema = {
        "schemas": {**schemas, **models},
        "headers": RESPONSE_HEADERS,
        "parameters": request_headers(registry),
    }
    if keys:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            "azureKey": {"type": "apiKey", "in": "header", "name": "api-key"},
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Composition of Experts", "version": __version__},
        "paths": paths,
        "components": components,
    }


def _entry(one: Operation, keys: bool) -> Schema:
    keyed = keys and one.scope != "public"
    refused = _ORIGIN_REFUSED | (_KEY_REFUSED if keyed else {})
    limits = LIMIT_HEADERS if keys and one.limited else {}
    responses = {str(status): _success(found, limits) for status, found in one.responses.items()}
    failures = {str(status): _failure(status, text, one.error) for status, text in {**one.problems, **refused}.items()}
    entry: Schema = {"operationId": one.name, "summary": one.summary, "responses": responses | failures}
    if one.also:
        places = [f"`{path.replace(':path', '')}`" for path in one.also]
        entry["description"] = f"Also at {', '.join(places)}."
    if parameters := _parameters(one):
        entry["parameters"] = parameters
    if one.body is not None:
        name = one.body if isinstance(one.body, str) else one.body.__name__
        schemas = {JSON: name, **one.other_bodies}
        content = {media_type: {"schema": ref(schema)} for media_type, schema in schemas.items()}
        entry["requestBody"] = {"required": True, "content": content}
    if keyed:  # OpenAPI 3.1 has the roles that are required here, whatever the scheme
        roles = [] if one.scope == "any_key" else [one.scope]
        entry["security"] = [{"bearer": roles}, {"apiKey": roles}, {"azureKey": roles}]
    return entry


def _success(found: Success, limits: Mapping[str, str]) -> Schema:
    content = {media_type: {"schema": schema} for media_type, schema in found.content.items()}
    headers = {header: ref(name, section="headers") for header, name in {**found.headers, **limits}.items()}
    return {"description": found.description, "content": content} | ({"headers": headers} if headers else {})


def _failure(status: int, text: str, error: str) -> Schema:
    found: Schema = {"description": text, "content": {JSON: {"schema": ref(error)}}}
    if status in _RETRY_AFTER_STATUSES:
        found["headers"] = {"retry-after": ref("RetryAfter", section="headers")}
    return found


def _parameters(one: Operation) -> list[Schema]:
    text = {"type": "string", "minLength": 1}
    names = [part[1:-1].partition(":")[0] for part in one.path.split("/") if part.startswith("{")]
    path = [{"name": name, "in": "path", "required": True, "schema": text} for name in names]
    headers = [ref(name, section="parameters") for name in one.request_headers]
    return [*path, *([] if one.query is None else _query_parameters(one.query)), *headers]


def _query_parameters(model: type[BaseModel]) -> list[Schema]:
    schema = model.model_json_schema()
    required = schema.get("required", ())
    return [_query_parameter(name, found, name in required) for name, found in schema["properties"].items()]


def _query_parameter(name: str, schema: Mapping[str, Any], required: bool) -> Schema:
    """A query string has no null: a parameter that may be null is left out."""
    found = {key: value for key, value in schema.items() if key != "title"}
    if "anyOf" in found:
        found |= next(one for one in found.pop("anyOf") if one != {"type": "null"})
    if found.get("default", ...) is None:
        del found["default"]
    about = {"description": found.pop("description")} if "description" in found else {}
    return {"name": name, "in": "query", "required": required, **about, "schema": found}
