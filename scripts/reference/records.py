"""The page on routing records, from the JSON schema of their fields."""

from __future__ import annotations

from typing import Any

from scripts.reference.http_api import type_of
from scripts.reference.markdown import code, table
from scripts.reference.sources import INDEXED, LISTED, PRIVATE, RATING_SCHEMA, RECORD_SCHEMA

TITLE = "Routing records"
ABOUT = "Every field of a routing record, and the feedback columns of an export."

_PAGE = """\
# Routing records

The routing log holds one record for each routed request. `coe log --json` and `coe log export FILE.jsonl` write a
record as one JSON object, and `GET /v1/records/{{id}}` returns it. All of them use these names.

- **API**: `list` fields are in `GET /v1/records` and in `GET /v1/records/{{id}}`. `record` fields are in the latter
  only.
- **Filter**: `coe log` and `GET /v1/records` can filter by the field.
- **Private**: the field holds or reveals the user's text. `coe log export --redact` leaves it empty.

JSON has no infinity: null in a list of numbers is -inf.
Fields that were added later are read with their defaults where a record lacks them.

{fields}

## Calls of a recipe

The field `steps` lists the calls to the members of a [recipe](../concepts/recipes.md), in the order in which they
began. Each call is an object with these fields:

{calls}

## Feedback columns

`coe log export` adds the feedback that learning uses. It consists of the rating with the most weight, the latest among
equals, and the latest corrected category.

{feedback}
"""


def page() -> str:
    """The page, in Markdown."""
    yes, fields = {True: "yes", False: ""}, []
    for name, row in _rows(RECORD_SCHEMA).items():
        api = "list" if name in LISTED else "record"
        fields.append((*row, api, yes[name in INDEXED], yes[name in PRIVATE]))
    calls = _rows(RECORD_SCHEMA["$defs"]["RecipeCall"]).values()
    feedback = _rows(RATING_SCHEMA).values()
    return _PAGE.format(
        fields=table(("field", "type", "meaning", "API", "filter", "private"), fields),
        calls=table(("field", "type", "meaning"), calls),
        feedback=table(("column", "type", "meaning"), feedback),
    )


def _rows(schema: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Name, type and meaning of each field."""
    return {
        name: (code(name), "list of calls" if name == "steps" else type_of(value), value["description"])
        for name, value in schema["properties"].items()
    }
