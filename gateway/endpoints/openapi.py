"""Writes the OpenAPI 3.1 document from the operations, good enough to generate clients from.

What depends on the declaration: authorization, where keys are declared, and the limits of headers. No expert is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from coe.registry import Registry
from gateway.endpoints.headers import LIMIT_HEADERS, RESPONSE_HEADERS, request_headers
from gateway.endpoints.http import JSON
from gateway.endpoints.operation import Operation, Schema, Success, ref

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
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Composition of Experts", "version": version("coe")},
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
    if parameters := _parameters(one):
        entry["parameters"] = parameters
    if one.body is not None:
        name = one.body if isinstance(one.body, str) else one.body.__name__
        entry["requestBody"] = {"required": True, "content": {JSON: {"schema": ref(name)}}}
    if keyed:  # OpenAPI 3.1 has the roles that are required here, whatever the scheme
        roles = [] if one.scope == "any_key" else [one.scope]
        entry["security"] = [{"bearer": roles}, {"apiKey": roles}]
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
