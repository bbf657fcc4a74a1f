"""`/v1/documents` in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from gateway.document_bodies import LONGEST_ID, NAME, PRINTABLE, Question, Upload

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}


def components() -> Schema:
    """Schemas of what is taken and given."""
    found: Schema = {}
    for model in (Upload, Question):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        found |= schema.pop("$defs", {})
        found[model.__name__] = schema
    counts = dict.fromkeys(("added", "changed", "unchanged", "empty", "chunks"), _COUNT)
    passage = dict.fromkeys(("id", "text", "source", "title", "collection"), _TEXT) | {"score": {"type": "number"}}
    listed = {"object": {"const": "list"}, "has_more": {"type": "boolean"}}
    return found | {
        "Uploaded": _object({"object": {"const": "documents"}, **counts}),
        "Deleted": _object({"object": {"const": "document"}, "id": _TEXT, "deleted": {"const": True}}),
        "DocumentList": _object({**listed, "data": {"type": "array", "items": {"type": "object"}}}),
        "Passages": _object({"object": {"const": "list"}, "data": {"type": "array", "items": _object(passage)}}),
    }


def parameters(*names: str) -> list[Schema]:
    """Those of the query, and the document's id in the path."""
    name: Schema = {"type": "string", "pattern": NAME}
    line: Schema = {"type": "string", "maxLength": LONGEST_ID, "pattern": PRINTABLE}
    known = {
        "collection": ("query", name),
        "tenant": ("query", name),
        "after": ("query", line),
        "limit": ("query", {"type": "integer", "minimum": 1, "maximum": 1000}),
        "id": ("path", {"type": "string", "minLength": 1}),
    }
    return [
        {"name": one, "in": known[one][0], "required": known[one][0] == "path", "schema": known[one][1]}
        for one in names
    ]


def _object(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}
