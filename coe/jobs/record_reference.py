"""The text of docs/records.md, from the table of fields; `python -m coe.jobs.record_reference` prints it."""

from __future__ import annotations

import sys

from coe.jobs.record_files import RATING_FIELDS
from coe.records.fields import FIELDS, RecordField

PAGE = """\
# Routing records
<!-- Generated: python -m coe.jobs.record_reference > docs/records.md -->

The routing log holds one record for each request. `coe log --json` and `coe log export FILE.jsonl` write a record as
one JSON object, `coe log export FILE.parquet` as one row of a table, and `GET /v1/records/{{id}}` returns it. All of
them use these names.

- **API**: `list` fields are in `GET /v1/records` and in `GET /v1/records/{{id}}`, `record` fields in the latter only.
- **Filter**: the field is indexed, and `coe log` and `GET /v1/records` can filter by it.
- **Private**: the field holds or reveals the user's text. `coe log export --redact` leaves it empty.

A field with `?` may be null. JSON has no infinity and no NaN: null in a list of numbers is -inf, elsewhere NaN.
Fields that were added later are read with their defaults where a record lacks them.

| field | type | meaning | API | filter | private |
|---|---|---|---|---|---|
{fields}

## Feedback columns
`coe log export` adds the feedback that learning uses: the surest and then latest rating of the request, and its latest
corrected category.

| column | type | meaning |
|---|---|---|
{ratings}
"""


def reference() -> str:
    """The page, in Markdown."""
    ratings = (_line(f"`{field.name}`", _type(field), field.info.meaning) for field in RATING_FIELDS)
    return PAGE.format(fields="\n".join(map(_row, FIELDS)), ratings="\n".join(ratings))


def _row(field: RecordField) -> str:
    info = field.info
    return _line(f"`{field.name}`", _type(field), info.meaning, info.api, _yes(info.column), _yes(info.private))


def _type(field: RecordField) -> str:
    return field.kind.name + ("?" if field.optional else "")


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _yes(value: bool) -> str:
    return "yes" if value else ""


if __name__ == "__main__":
    sys.stdout.write(reference())
