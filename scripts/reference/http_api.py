"""The page on the HTTP API, from the OpenAPI document."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cache
from itertools import chain
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

If `access.keys` declares API keys, send one as `authorization: Bearer KEY` or
`x-api-key: KEY`. A slash at the end of a path makes no difference.

## Common statuses

These statuses mean the same at every endpoint that returns them, unless its own table states another meaning.

{common}
{groups}"""
_OWN = ("404", "409")
"""Statuses about what an endpoint addresses, which its table always explains."""
_MANY = 8
"""Most words that are listed as a type."""
_HEALTH = "Health, metrics and schema"
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "Model APIs": ("/v1/chat", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/models"),
    "Passed through": ("/v1/rerank", "/v1/score", "/tokenize", "/v1/moderations", "/v1/audio", "/v1/images"),
    "Decisions and feedback": ("/v1/route", "/v1/feedback"),
    "Documents": ("/v1/documents",),
    _HEALTH: ("/health", "/metrics", "/openapi.json"),
    "Administration": ("/",),
}
"""Path prefixes by section title; the first prefix that matches counts."""

Schema = dict[str, Any]
Row = tuple[str, str, str, str]
"""Name, place, type and meaning."""


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
    about = [sentence(operation["summary"]), operation.get("description", ""), _scope(operation)]
    rows = [_parameters(operation)] if "parameters" in operation else []
    if "requestBody" in operation:
        rows.append(_fields(_json_schema(operation["requestBody"]), "body"))
    responses = {status: resolved(one) for status, one in sorted(operation["responses"].items())}
    outcomes = {status: _outcome(one) for status, one in responses.items()}
    usual = [status for status, text in outcomes.items() if _common().get(status) == text]
    rows += [_response(status, responses[status], text) for status, text in outcomes.items() if status not in usual]
    if usual:
        rows.append([(", ".join(usual), "status", "", "[Common statuses](#common-statuses).")])
    cells = table(("name", "in", "type", "meaning"), chain.from_iterable(rows))
    return f"\n### {method} {path}\n\n{' '.join(filter(None, about))}\n\n{cells}\n"


def _parameters(operation: Schema) -> list[Row]:
    """A row for each parameter of the path or query, and one for all headers, which have a page of their own."""
    parameters = [resolved(one) for one in operation["parameters"]]
    rows = [
        (code(one["name"]), one["in"], type_of(one["schema"]), _about(one, one["schema"]))
        for one in parameters
        if one["in"] != "header"
    ]
    headers = ", ".join(code(one["name"]) for one in parameters if one["in"] == "header")
    return [*rows, (headers, "header", "", "[Headers](headers.md).")] if headers else rows


def _response(status: str, response: Schema, outcome: str) -> list[Row]:
    """A row for a status, which lists its fields that need no explanation, and one for each other field.

    Errors have the same fields everywhere, which the page on errors describes.
    """
    fields = _fields(_json_schema(response), status) if status < "400" else []
    plain = ", ".join(name for name, _, _, meaning in fields if not meaning)
    listed = f"{outcome} Fields: {plain}." if plain else outcome
    return [(status, "status", "", listed), *(field for field in fields if field[3])]


def _scope(operation: Schema) -> str:
    if "security" not in operation:
        return "Needs no key."
    scopes = operation["security"][0]["bearer"]
    return f"Needs a key with the scope {' and '.join(map(code, scopes))}." if scopes else "Needs a key of any scope."


@cache
def _common() -> dict[str, str]:
    """The most frequent meaning of each status of an error that several endpoints share."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for item in openapi()["paths"].values():
        for operation in item.values():
            for status, response in operation["responses"].items():
                counts[status][_outcome(resolved(response))] += 1
    most = {status: count.most_common(1)[0] for status, count in sorted(counts.items()) if status >= "400"}
    return {status: meaning for status, (meaning, count) in most.items() if count > 1 and status not in _OWN}


def _outcome(response: Schema) -> str:
    streams = "text/event-stream" in response.get("content", {})
    return sentence(response["description"]) + (" A stream of server-sent events where requested." if streams else "")


def _json_schema(body: Schema) -> Schema:
    return resolved(body.get("content", {}).get("application/json", {}).get("schema", {}))


def _fields(schema: Schema, place: str) -> list[Row]:
    required = schema.get("required", ())
    return [
        (code(name), place, type_of(value) + ("" if name in required else ", optional"), _about(value, resolved(value)))
        for name, value in schema.get("properties", {}).items()
    ]


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
