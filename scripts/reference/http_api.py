"""The page on the HTTP API, from the OpenAPI document."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from scripts.reference.markdown import bounds, code, sentence, table
from scripts.reference.sources import openapi

TITLE = "HTTP API"
ABOUT = "Every endpoint with its parameters, request and response."

_PAGE = """\
# HTTP API

The gateway serves the endpoints below. `GET /openapi.json` returns the same as an OpenAPI 3.1 document, from which
clients can be generated. Bodies are JSON and need `content-type: application/json`. Fields that the gateway does not
know reach the expert unchanged. [Headers](headers.md) and [errors](errors.md) have pages of their own.

If `access.keys` declares API keys, send one as `authorization: Bearer KEY`, `x-api-key: KEY` or
`api-key: KEY`. A slash at the end of a path makes no difference.

## Common statuses

These statuses mean the same at every endpoint that returns them, unless its own table states another meaning.

{common}
{groups}"""
_COMMON = ("400", "401", "403", "408", "413", "415", "421", "429", "431", "500")
_MANY = 8
"""Most words that are listed as a type."""
_HEALTH = "Health, metrics and schema"
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "Model APIs": ("/v1/chat", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/models"),
    "Decisions and feedback": ("/v1/route", "/v1/feedback"),
    "Documents": ("/v1/documents",),
    _HEALTH: ("/health", "/metrics", "/openapi.json"),
    "Administration": ("/",),
}
"""Path prefixes by section title; the first prefix that matches counts."""

Schema = dict[str, Any]


def page() -> str:
    """The page, in Markdown."""
    found: dict[str, list[str]] = {title: [] for title in _GROUPS}
    for path, item in openapi()["paths"].items():
        title = next(title for title, starts in _GROUPS.items() if path.startswith(starts))
        title = _HEALTH if path == "/" else title
        found[title] += [_operation(method.upper(), path, operation) for method, operation in item.items()]
    groups = "".join(f"\n## {title}\n" + "".join(parts) for title, parts in found.items())
    return _PAGE.format(common=table(("status", "meaning"), _common().items()), groups=groups)


def paths() -> frozenset[str]:
    """Every path, with `{name}` for what varies."""
    return frozenset(openapi()["paths"])


def _operation(method: str, path: str, operation: Schema) -> str:
    also = [operation["description"] + "\n"] if "description" in operation else []
    parts = [f"\n### {method} {path}\n", sentence(operation["summary"]) + "\n", *also, _scope(operation) + "\n"]
    parameters = [resolved(one) for one in operation.get("parameters", ())]
    if wished := [code(one["name"]) for one in parameters if one["in"] == "header"]:
        parts.append(f"Request headers: {', '.join(wished)}.\n")
    if rows := [_parameter(one) for one in parameters if one["in"] != "header"]:
        parts.append(table(("parameter", "in", "type", "meaning"), rows) + "\n")
    if "requestBody" in operation and (rows := list(_fields(_json_schema(operation["requestBody"])))):
        parts.append("Request body:\n\n" + table(("field", "type", "meaning"), rows) + "\n")
    responses = {status: resolved(one) for status, one in sorted(operation["responses"].items())}
    if rows := list(_fields(_json_schema(responses["200"]))):
        parts.append("Response body (200):\n\n" + table(("field", "type", "meaning"), rows) + "\n")
    outcomes = {status: _outcome(one) for status, one in responses.items()}
    usual = [status for status, text in outcomes.items() if _common().get(status) == text]
    own = [(status, text) for status, text in outcomes.items() if status not in usual]
    parts.append(table(("status", "meaning"), own) + "\n")
    if usual:
        parts.append(f"[Common statuses](#common-statuses): {', '.join(usual)}.\n")
    return "\n".join(parts)


def _scope(operation: Schema) -> str:
    if "security" not in operation:
        return "Needs no key."
    scopes = operation["security"][0]["bearer"]
    return f"Needs a key with the scope {' and '.join(map(code, scopes))}." if scopes else "Needs a key of any scope."


@cache
def _common() -> dict[str, str]:
    """The meaning that each of the common statuses has most often."""
    counts: dict[str, Counter[str]] = {status: Counter() for status in _COMMON}
    for item in openapi()["paths"].values():
        for operation in item.values():
            for status in counts.keys() & operation["responses"].keys():
                counts[status][_outcome(resolved(operation["responses"][status]))] += 1
    return {status: count.most_common(1)[0][0] for status, count in counts.items() if count}


def _outcome(response: Schema) -> str:
    streams = "text/event-stream" in response.get("content", {})
    return sentence(response["description"]) + (" A stream of server-sent events where requested." if streams else "")


def _parameter(one: Schema) -> tuple[str, str, str, str]:
    return code(one["name"]), one["in"], type_of(one["schema"]), _about(one, one["schema"])


def _json_schema(body: Schema) -> Schema:
    return resolved(body.get("content", {}).get("application/json", {}).get("schema", {}))


def _fields(schema: Schema) -> Iterator[tuple[str, str, str]]:
    required = schema.get("required", ())
    for name, value in schema.get("properties", {}).items():
        optional = "" if name in required else ", optional"
        yield code(name), type_of(value) + optional, _about(value, resolved(value))


def _about(*places: Schema) -> str:
    return next((sentence(place["description"]) for place in places if place.get("description")), "")


def resolved(value: Schema) -> Schema:
    """The component that a reference leads to, or the value itself."""
    if "$ref" not in value:
        return value
    found: Any = openapi()
    for step in value["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return resolved(found)


def type_of(value: Schema) -> str:
    """The type of a JSON schema in words."""
    value = resolved(value)
    if "enum" in value and len(value["enum"]) > _MANY:
        return "string"
    if "enum" in value:
        return " or ".join(code(str(word)) for word in value["enum"] if word != "")
    if "const" in value:
        return code(json.dumps(value["const"]).strip('"'))
    for options in (value.get("anyOf"), value.get("oneOf")):
        if options:
            return " or ".join(dict.fromkeys(map(type_of, options)))
    kind = value.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        return f"list of {type_of(value.get('items', {}))}"
    return str(kind) + bounds(value)
