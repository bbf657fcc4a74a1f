"""Writes and reads routing records with their feedback as files: JSON Lines (`.jsonl`) or parquet (`.parquet`).

Both formats have the same columns: the fields of a record, and those of its rating. `coe log export` and `import` use
this; files are written in one step and read in pages.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

import orjson
from pydantic import ConfigDict, TypeAdapter, ValidationError

from coe.errors import DataError, InvalidRequest
from coe.learning.experience import RATING_KINDS, precedence
from coe.learning.experience_loader import request_hash
from coe.measuring.tables import numbered_rows
from coe.records import open_log_and_feedback
from coe.records.codec import RECORD, is_newer
from coe.records.feedback import MAX_NAME_CHARACTERS, Feedback
from coe.records.record import CONFIG, DAY, RecipeCall, RoutingRecord
from coe.registry.sections import LogSpec

SUFFIXES = (".jsonl", ".parquet")
ROW_GROUP_SIZE = 10_000
"""Rows of a parquet row group, which is held in memory: about 40 MB without prompts and embeddings."""
IMPORT_PAGE_SIZE = 2_000
"""Rows in memory during an import."""


@dataclass(frozen=True, slots=True)
class Rating:
    """The feedback on a request that learning uses: the rating and the corrected category."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG

    feedback_kind: str | None = None
    """Kind of the rating: score, thumb or preferred."""
    feedback_value: float | None = None
    """Score from 0 to 1, or thumb: 1 up, -1 down."""
    feedback_preferred: str | None = None
    """Expert that should have answered."""
    feedback_category: str | None = None
    """Category that the request belongs to."""
    feedback_time: float | None = None
    """Unix time in seconds of the latest of both."""


RATING = TypeAdapter(Rating)
MAPS = ("probabilities", "router_probabilities")
"""Fields that parquet has as lists of pairs."""
REDACTED: dict[str, Any] = {"digest": "", "prompt": None, "left_out": (), "embedding": None}
"""Values in place of the fields that hold or reveal the user's text."""

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
    """Write the rows to `path` in one step and return their number; with `redact` without the fields of REDACTED.

    An error or an interruption leaves no partial file. Raises DataError where the file cannot be written.
    """
    write = _write_parquet if path.suffix == ".parquet" else _write_jsonl
    with _draft(path) as draft:
        return write(draft, ((replace(record, **REDACTED), rating) for record, rating in rows) if redact else rows)


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows that `write_rows` wrote. Raises DataError, which names the row, for anything else."""
    for number, values in numbered_rows(path):
        place = f"{path}:{number}"
        if not isinstance(values, dict):
            raise DataError(f"{place}: not a row of a routing log")
        values |= {name: dict(values[name]) for name in MAPS if isinstance(values.get(name), list)}
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


def _write_jsonl(path: Path, rows: Iterable[Row]) -> int:
    count = 0
    with path.open("wb") as file:
        for record, rating in rows:
            file.write(
                orjson.dumps(RECORD.adapter.dump_python(record, mode="json", warnings=False) | asdict(rating)) + b"\n"
            )
            count += 1
    return count


def _write_parquet(path: Path, rows: Iterable[Row]) -> int:
    from pyarrow import Table, parquet

    schema, rows, count = _parquet_schema(), iter(rows), 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(rows, ROW_GROUP_SIZE)):
            writer.write_table(Table.from_pylist([_parquet_row(row) for row in group], schema=schema))
            count += len(group)
    return count


def _parquet_row(row: Row) -> dict[str, Any]:
    values: dict[str, Any] = RECORD.adapter.dump_python(row[0], warnings=False) | asdict(row[1])
    return values | {name: list(values[name].items()) for name in MAPS if values[name] is not None}


def _parquet_schema() -> Any:
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    types: dict[Any, Any] = {
        str: text,
        bool: pyarrow.bool_(),
        int: pyarrow.int64(),
        float: number,
        bytes: pyarrow.binary(),
        tuple[str, ...]: pyarrow.list_(text),
        tuple[float, ...]: pyarrow.list_(number),
        tuple[float, float]: pyarrow.list_(number),
        Mapping[str, float]: pyarrow.map_(text, number),
    }

    def columns(declared: type) -> list[tuple[str, Any]]:
        hints = get_type_hints(declared)
        plain = {
            field.name: next(one for one in (hints[field.name], *get_args(hints[field.name])) if one in types)
            for field in fields(declared)
        }
        return [(name, types[hint]) for name, hint in plain.items()]

    types[tuple[RecipeCall, ...]] = pyarrow.list_(pyarrow.struct(columns(RecipeCall)))
    return pyarrow.schema([*columns(RoutingRecord), *columns(Rating)])
