"""The page on routing records, from the table of their fields."""

from __future__ import annotations

from typing import Any

from coe.records.codec import CALL_FIELDS
from scripts.reference.markdown import code, table
from scripts.reference.sources import FEEDBACK_FIELDS, RECORD_FIELDS

TITLE = "Routing records"
ABOUT = "Every field of a routing record, and the feedback columns of an export."

_PAGE = """\
# Routing records

The routing log holds one record for each routed request. `coe log --json` and `coe log export FILE.jsonl` write a
record as one JSON object. `coe log export FILE.parquet` writes it as one row of a table. `GET /v1/records/{{id}}`
returns it. All of them use these names.

- **API**: `list` fields are in `GET /v1/records` and in `GET /v1/records/{{id}}`. `record` fields are in the latter
  only.
- **Filter**: the field is indexed, and `coe log` and `GET /v1/records` can filter by it.
- **Private**: the field holds or reveals the user's text. `coe log export --redact` leaves it empty.

A field with `?` may be null. JSON has no infinity and no NaN: null in a list of numbers is -inf, elsewhere NaN.
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
    fields = [
        (*_named(one), one.info.meaning, one.info.api, _yes(one.info.column), _yes(one.info.private))
        for one in RECORD_FIELDS
    ]
    calls = [(*_named(one), one.info.meaning) for one in CALL_FIELDS]
    feedback = [(*_named(one), one.info.meaning) for one in FEEDBACK_FIELDS]
    return _PAGE.format(
        fields=table(("field", "type", "meaning", "API", "filter", "private"), fields),
        calls=table(("field", "type", "meaning"), calls),
        feedback=table(("column", "type", "meaning"), feedback),
    )


def _named(field: Any) -> tuple[str, str]:
    return code(field.name), field.kind.name + ("?" if field.optional else "")


def _yes(value: bool) -> str:
    return "yes" if value else ""
