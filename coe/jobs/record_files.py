"""Writes and reads routing records with their feedback as files: JSON Lines (`.jsonl`) or parquet (`.parquet`).

Both formats have the same columns: the fields of a record, and those of its rating. `coe log export` and `import` use
this; files are written in one step and read in pages.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from coe.errors import DataError, InvalidRequest
from coe.learning.estimation.experience import RATING_KINDS, precedence
from coe.learning.estimation.experience_loader import request_hash
from coe.learning.evaluation.tables import numbered_rows
from coe.records import open_log_and_feedback
from coe.records.codec import CALL_FIELDS, FIELDS, SCHEMA, RecordField, fields_of, read_values, to_json
from coe.records.feedback import MAX_NAME_CHARACTERS, Feedback
from coe.records.record import FieldInfo, RoutingRecord
from coe.records.selection import DAY
from coe.registry import LogSpec

SUFFIXES = (".jsonl", ".parquet")
ROW_GROUP_SIZE = 10_000
"""Rows of a parquet row group, which is held in memory: about 40 MB without prompts and embeddings."""
IMPORT_PAGE_SIZE = 2_000
"""Rows in memory during an import."""


@dataclass(frozen=True, slots=True)
class Rating:
    """The feedback on a request that learning uses: the rating and the corrected category."""

    feedback_kind: Annotated[str | None, FieldInfo("Kind of the rating: score, thumb or preferred.")] = None
    feedback_value: Annotated[float | None, FieldInfo("Score from 0 to 1, or thumb: 1 up, -1 down.")] = None
    feedback_preferred: Annotated[str | None, FieldInfo("Expert that should have answered.")] = None
    feedback_category: Annotated[str | None, FieldInfo("Category that the request belongs to.")] = None
    feedback_time: Annotated[float | None, FieldInfo("Unix time in seconds of the latest of both.")] = None


RATING_FIELDS = fields_of(Rating)
FILE_FIELDS: tuple[RecordField, ...] = (*FIELDS, *RATING_FIELDS)
"""The columns of a file."""

Row = tuple[RoutingRecord, Rating]


class RatingIndex:
    """The feedback that learning uses by request: the most reliable and then latest rating, and the latest correction.

    Takes some 300 bytes a request.
    """

    def __init__(self, events: Iterable[Feedback]) -> None:
        self._ratings: dict[int, Feedback] = {}
        self._corrections: dict[int, Feedback] = {}
        for event in events:
            if event.kind in (*RATING_KINDS, "category"):
                known = self._corrections if event.kind == "category" else self._ratings
                key = _request_key(event.request_id, event.tenant)
                known[key] = max(known.get(key, event), event, key=precedence)

    def of(self, record: RoutingRecord) -> Rating:
        """The feedback on that request by its own tenant; its fields are None where there is none."""
        key = _request_key(record.request_id, record.tenant)
        rating, corrected = self._ratings.get(key), self._corrections.get(key)
        value = rating.value if rating else None
        return Rating(
            feedback_kind=rating.kind if rating else None,
            feedback_value=float(value) if isinstance(value, int | float) else None,
            feedback_preferred=value if isinstance(value, str) else None,
            feedback_category=str(corrected.value) if corrected else None,
            feedback_time=max((one.time for one in (rating, corrected) if one), default=None),
        )


def _request_key(request_id: str, tenant: str | None) -> int:
    return request_hash(f"{tenant or ''}\0{request_id}")


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
    """Write the rows to `path` in one step and return their number; with `redact` the private fields are empty.

    An error or an interruption leaves no partial file. Raises DataError where the file cannot be written.
    """
    write = _write_parquet if path.suffix == ".parquet" else _write_jsonl
    with _draft(path) as draft:
        return write(draft, (_values(row, redact) for row in rows))


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows that `write_rows` wrote. Raises DataError, which names the row, for anything else."""
    for number, values in numbered_rows(path):
        place = f"{path}:{number}"
        if not isinstance(values, dict):
            raise DataError(f"{place}: not a row of a routing log")
        if missing := sorted(field.name for field in FIELDS if field.required and field.name not in values):
            raise DataError(f"{place}: not a row of a routing log, it lacks {', '.join(missing)}")
        if isinstance(schema := values.get("schema"), int) and schema > SCHEMA:
            raise DataError(f"{place}: a record of schema {schema}; upgrade the CoE that reads it")
        try:
            yield RoutingRecord(**read_values(FIELDS, values)), Rating(**read_values(RATING_FIELDS, values))
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None


def events_of(row: Row) -> Iterator[Feedback]:
    """The row's feedback, as events with stable ids, so that a repeated import adds nothing. Raises DataError."""
    record, rating = row
    values: dict[Any, Any] = {"category": rating.feedback_category}
    if (kind := rating.feedback_kind) is not None:
        values[kind] = rating.feedback_preferred if kind == "preferred" else rating.feedback_value
    for kind, value in values.items():
        if value is not None:
            event_id, when = f"{record.request_id}:{kind}"[:MAX_NAME_CHARACTERS], rating.feedback_time or 0.0
            try:
                yield Feedback(event_id, record.request_id, when, kind, value, record.tenant)
            except InvalidRequest as error:
                raise DataError(f"request {record.request_id}: not feedback of an export ({error})") from error


def _values(row: Row, redact: bool) -> dict[str, Any]:
    record, rating = row
    values = {field.name: getattr(record, field.name) for field in FIELDS}
    values |= {field.name: getattr(rating, field.name) for field in RATING_FIELDS}
    return values | {field.name: field.empty for field in FIELDS if field.info.private} if redact else values


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    path = path.resolve()  # a link stays a link
    draft = path.with_name(f".{path.name}.draft")  # the next run overwrites the draft of a killed one
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error}); check its folder and the free disk space") from error
    finally:
        with suppress(OSError):
            draft.unlink()


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    with path.open("wb") as file:
        for row in rows:
            file.write(to_json(row) + b"\n")
            count += 1
    return count


def _write_parquet(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    from pyarrow import Table, parquet

    schema, rows, count = _parquet_schema(), iter(rows), 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(rows, ROW_GROUP_SIZE)):
            writer.write_table(Table.from_pylist([_pairs(row) for row in group], schema=schema))
            count += len(group)
    return count


def _pairs(row: Mapping[str, Any]) -> dict[str, Any]:
    """Parquet takes maps as lists of pairs, and structs as dictionaries."""
    values = {name: list(value.items()) if isinstance(value, Mapping) else value for name, value in row.items()}
    return values | {"steps": [asdict(call) for call in row["steps"]]}


def _parquet_schema() -> Any:
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    types = {
        "text": text,
        "boolean": pyarrow.bool_(),
        "integer": pyarrow.int64(),
        "number": number,
        "base64": pyarrow.binary(),
        "list of texts": pyarrow.list_(text),
        "list of numbers": pyarrow.list_(number),
        "two numbers": pyarrow.list_(number),
        "numbers by name": pyarrow.map_(text, number),
    }
    types["list of calls"] = pyarrow.list_(
        pyarrow.struct([(field.name, types[field.kind.name]) for field in CALL_FIELDS])
    )
    return pyarrow.schema([(field.name, types[field.kind.name]) for field in FILE_FIELDS])
