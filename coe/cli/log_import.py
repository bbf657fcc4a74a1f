"""`coe log import`: what `coe log export` wrote goes into a routing log, this one or another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from coe.cli.common import Config, say, settings_for
from coe.errors import DataError, InvalidRequest
from coe.feedback import LONGEST, Feedback
from coe.learning.quality_files import require_parquet
from coe.record import RoutingRecord
from coe.records import open_feedback, open_log
from coe.records.codec import SCHEMA
from coe.records.selection import DAY
from coe.registry import LogSpec, load

PAGE = 2_000
"""Rows in memory at a time."""
_FIELDS = fields(RoutingRecord)

File = Annotated[Path, typer.Argument(help="A parquet file that `coe log export` wrote.")]
Row = Mapping[str, Any]


def import_(file: File, config: Config = None) -> None:
    """Add the records of a file, and what was said of them, to the routing log; what is there already stays."""
    require_parquet()
    settings = settings_for(config)
    declared = load(settings.config, environ=settings.environ).log
    count, old = asyncio.run(_add(file, declared, base=settings.home))
    say(f"{file}: {count} records")
    if old:
        say(f"{old} records are older than log.keep_days and left out")


async def _add(file: Path, declared: LogSpec, *, base: Path) -> tuple[int, int]:
    """How many records were added or there already, and how many were too old."""
    keep: dict[str, Any] = {"base": base, "retention": declared.keep_records, "days": declared.keep_days}
    log, feedback = open_log(declared.url, **keep), open_feedback(declared.url, **keep)
    oldest, count, old = time.time() - declared.keep_days * DAY, 0, 0
    try:
        for rows in read_rows(file):
            kept = [row for row in rows if row["time"] >= oldest]
            count, old = count + len(kept), old + len(rows) - len(kept)
            await log.append([record_of(row) for row in kept])
            await feedback.append([event for row in kept for event in events_of(row)])
    finally:
        await feedback.aclose()
        await log.aclose()
    return count, old


def read_rows(path: Path) -> Iterator[list[Row]]:
    """Pages of rows. Raises DataError for a file of another kind or of a newer schema."""
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            needed = {field.name for field in _FIELDS if field.default is MISSING and field.default_factory is MISSING}
            if missing := needed - set(file.schema_arrow.names):
                raise DataError(f"{path}: no export of a routing log, it lacks {', '.join(sorted(missing))}")
            for batch in file.iter_batches(batch_size=PAGE):
                rows = batch.to_pylist()
                if newer := [row for row in rows if (row.get("schema") or SCHEMA) > SCHEMA]:
                    raise DataError(f"{path}: records of schema {newer[0]['schema']}; upgrade the CoE that reads them")
                yield rows
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet ({error})") from error


def record_of(row: Row) -> RoutingRecord:
    """The record that a row of the export came from."""
    known = {field.name: row[field.name] for field in _FIELDS if field.name in row}
    known |= {name: tuple(known.get(name) or ()) for name in ("candidates", "worth", "price", "passages")}
    known["probabilities"] = dict(known["probabilities"] or ())
    known["plain"] = dict(known["plain"]) if known.get("plain") else None
    known["exploration"] = tuple(known["exploration"]) if known.get("exploration") else None
    return RoutingRecord(**known)


def events_of(row: Row) -> Iterator[Feedback]:
    """What was said of it, as events that are the same however often they are imported. Raises DataError."""
    request_id, when, tenant = row["request_id"], row.get("feedback_time"), row["tenant"]
    said: dict[Any, Any] = {"category": row.get("feedback_category")}
    if kind := row.get("feedback_kind"):
        said[kind] = row["feedback_preferred"] if kind == "preferred" else row["feedback_value"]
    for kind, value in said.items():
        if value is not None:
            try:
                yield Feedback(f"{request_id}:{kind}"[:LONGEST], request_id, float(when or 0.0), kind, value, tenant)
            except (InvalidRequest, TypeError) as error:
                raise DataError(f"request {request_id}: no feedback of an export ({error})") from error
