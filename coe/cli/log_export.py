"""`coe log export`: the routing log, with what was said about each answer, as one parquet file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from coe.cli.common import Config, say, say_error, settings_for
from coe.cli.spans import seconds
from coe.errors import DataError
from coe.feedback import Feedback
from coe.learning.feedback import RATINGS, rank
from coe.learning.gathering import identity
from coe.learning.quality_files import require_parquet
from coe.learning.reading import open_logs
from coe.record import RoutingRecord
from coe.registry import load

GROUP = 10_000
"""Records of a row group, which are in memory together: some 40 MB without prompts and embeddings."""

File = Annotated[Path, typer.Argument(help="The parquet file to write.")]
Since = Annotated[str, typer.Option("--since", help="Not older than this, such as 12h or 7d.")]
Until = Annotated[str, typer.Option("--until", help="Not newer than this.")]
Category = Annotated[str, typer.Option("--category")]


def export(file: File, since: Since = "", until: Until = "", category: Category = "", config: Config = None) -> None:
    """Write the routing log to a parquet file, feedback joined to it by request."""
    require_parquet()
    settings = settings_for(config)
    url, now = load(settings.config, environ=settings.environ).log.url, time.time()
    first = now - seconds(since, option="--since") if since else 0.0
    last = now - seconds(until, option="--until") if until else now
    with open_logs(url, base=settings.home) as logs:
        said = Said(event for page in logs.feedback(since=first) for event in page)
        pages = logs.records(since=first, until=last, category=category)
        count = write(file, (_row(record, said) for page in pages for record in page))
    say(f"{file}: {count} records")
    if logs.damaged:
        say_error(f"{logs.damaged} entries of the log are damaged and left out")


class Said:
    """The surest and then latest rating, and the latest corrected category, of each request: what is learnt from. Some
    300 bytes for each."""

    def __init__(self, events: Iterable[Feedback]) -> None:
        self._told: tuple[dict[int, Feedback], dict[int, Feedback]] = {}, {}
        for event in events:
            if event.kind in (*RATINGS, "category"):
                known, key = self._told[event.kind == "category"], identity(event.request_id)
                known[key] = max(known.get(key, event), event, key=_counts)

    def columns(self, request_id: str) -> dict[str, Any]:
        """The columns of feedback, None where there is none."""
        rating, corrected = (known.get(identity(request_id)) for known in self._told)
        value = rating.value if rating else None
        return {
            "feedback_kind": rating.kind if rating else None,
            "feedback_value": value if isinstance(value, int | float) else None,
            "feedback_preferred": value if isinstance(value, str) else None,
            "feedback_category": corrected.value if corrected else None,
            "feedback_time": max((one.time for one in (rating, corrected) if one), default=None),
        }


def _counts(event: Feedback) -> tuple[int, float, str]:
    return -rank(event.kind), event.time, event.event_id


def _row(record: RoutingRecord, said: Said) -> dict[str, Any]:
    return {
        **asdict(record),
        "probabilities": list(record.probabilities.items()),
        "plain": None if record.plain is None else list(record.plain.items()),
        **said.columns(record.request_id),
    }


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write the rows in groups, the file in one step. Raises DataError where it cannot be written."""
    from pyarrow import Table, parquet

    schema, count = _schema(), 0
    draft = path.with_name(f".{path.name}.draft")
    try:
        with parquet.ParquetWriter(draft, schema, compression="zstd") as writer:
            for group in _groups(rows):
                writer.write_table(Table.from_pylist(group, schema=schema))
                count += len(group)
        draft.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error}); name a file in a folder that exists") from error
    finally:
        with suppress(OSError):
            draft.unlink()
    return count


def _groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    group: list[Mapping[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == GROUP:
            yield group
            group = []
    if group:
        yield group


def _schema() -> Any:
    """RoutingRecord's fields by their types, then the columns of feedback."""
    import pyarrow as pa

    text, number, whole = pa.string(), pa.float64(), pa.int64()
    special = {
        "candidates": pa.list_(text),
        "worth": pa.list_(number),
        "passages": pa.list_(text),
        "price": pa.list_(number),
        "exploration": pa.list_(number),
        "probabilities": pa.map_(text, number),
        "plain": pa.map_(text, number),
        "embedding": pa.binary(),
        "stream": pa.bool_(),
    }
    numbers = {"time", "confidence", "propensity", "routing_ms", "first_piece_ms", "total_ms"}
    numbers |= {"familiarity", "thrift", "cost", "gate", "gain", "retrieval_ms", "feedback_value", "feedback_time"}
    wholes = {"passage_tokens", "attempts", "input_tokens", "output_tokens", "schema"}
    names = (*RoutingRecord.__dataclass_fields__, "feedback_kind", "feedback_value", "feedback_preferred")
    return pa.schema(
        [
            (name, special.get(name, number if name in numbers else whole if name in wholes else text))
            for name in (*names, "feedback_category", "feedback_time")
        ]
    )
