"""Writes and reads routing records with their feedback as files of JSON Lines, for `coe log export` and `import`.

A line has the fields of a record, and those of its rating. Files are written in one step and read in pages.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import orjson
from pydantic import ValidationError

from coe.errors import DataError, InvalidRequest
from coe.learning.log_frame import RATING, Row
from coe.measuring.tables import numbered_rows
from coe.records import open_log_and_feedback
from coe.records.codec import RECORD, is_newer
from coe.records.feedback import MAX_NAME_CHARACTERS, Feedback, FeedbackKind
from coe.records.record import DAY
from coe.registry.sections import LogSpec

IMPORT_PAGE_SIZE = 2_000
"""Rows in memory during an import."""
REDACTED: dict[str, Any] = {"digest": "", "prompt": None, "left_out": ()}
"""Values in place of the fields that hold or reveal the user's text."""


async def import_rows(file: Path, declared: LogSpec, *, base: Path) -> tuple[int, int]:
    """Add the rows of a file to the declared log.

    Returns the number of records added or already there, and of those older than its retention.
    """
    options: dict[str, Any] = {"base": base, "retention": declared.keep_records, "days": declared.keep_days}
    log, feedback = open_log_and_feedback(declared.url, **options)
    oldest, count, old = time.time() - declared.keep_days * DAY, 0, 0
    rows = read_rows(file)
    try:
        while page := list(islice(rows, IMPORT_PAGE_SIZE)):
            kept = [row for row in page if row[0].time >= oldest]
            count, old = count + len(kept), old + len(page) - len(kept)
            await log.append([record for record, _ in kept])
            await feedback.append([event for row in kept for event in events_of(row)])
    finally:
        await feedback.aclose()
        await log.aclose()
    return count, old


def write_rows(path: Path, rows: Iterable[Row], *, redact: bool = False) -> int:
    """Write the rows to `path` in one step and return their number; with `redact` without the fields of REDACTED.

    An error or an interruption leaves no partial file. Raises DataError where the file cannot be written.
    """
    if redact:
        rows = ((replace(record, **REDACTED), rating) for record, rating in rows)
    path = path.resolve()  # a link stays a link
    draft = path.with_name(f".{path.name}.draft")  # the next run overwrites the draft of a killed one
    try:
        count = 0
        with draft.open("wb") as file:
            for record, rating in rows:
                fields = RECORD.adapter.dump_python(record, mode="json", warnings=False) | asdict(rating)
                file.write(orjson.dumps(fields) + b"\n")
                count += 1
        draft.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error}); check its folder and the free disk space") from error
    finally:
        with suppress(OSError):
            draft.unlink()
    return count


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows that `write_rows` wrote. Raises DataError, which names the row, for anything else."""
    for number, values in numbered_rows(path):
        place = f"{path}:{number}"
        if not isinstance(values, dict):
            raise DataError(f"{place}: not a row of a routing log")
        try:
            record = RECORD.adapter.validate_python(values, strict=False)
            yield record, RATING.validate_python(values, strict=False)
        except ValidationError as error:
            raise DataError(f"{place}: {_problem(error)}") from None


def _problem(error: ValidationError) -> str:
    if is_newer(error):
        return "a record of a newer schema; upgrade the CoE that reads it"
    problems = error.errors(include_input=False)
    if missing := sorted(str(one["loc"][0]) for one in problems if one["type"] == "missing"):
        return f"not a row of a routing log, it lacks {', '.join(missing)}"
    return f"{'.'.join(map(str, problems[0]['loc']))}: {problems[0]['msg']}"


def events_of(row: Row) -> Iterator[Feedback]:
    """The row's feedback, as events with stable ids, so that a repeated import adds nothing. Raises DataError."""
    record, rating = row
    rated = rating.feedback_preferred if rating.feedback_kind == "preferred" else rating.feedback_value
    corrected = rating.feedback_category
    for kind, value in ((rating.feedback_kind, rated), ("category" if corrected is not None else None, corrected)):
        if kind is not None:
            event_id, when = f"{record.request_id}:{kind}"[:MAX_NAME_CHARACTERS], rating.feedback_time or 0.0
            try:
                yield Feedback(event_id, record.request_id, when, cast("FeedbackKind", kind), value, record.tenant)
            except InvalidRequest as error:
                raise DataError(f"request {record.request_id}: not feedback of an export ({error})") from error
