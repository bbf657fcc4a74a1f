"""`coe log export`: the routing log, with the feedback on each answer, as one file.

`coe log import`: adds the rows of a file that `coe log export` wrote to a routing log, this one or another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from coe.cli.common import Config, seconds, settings_for, writable
from coe.errors import DataError
from coe.jobs.record_files import SUFFIXES, Rating, events_of, read_rows, write_rows
from coe.jobs.signals import exit_on_sigterm
from coe.learning.estimation.experience import RATING_KINDS, certainty_rank
from coe.learning.estimation.experience_loader import open_logs, request_hash
from coe.learning.evaluation.quality import require_parquet
from coe.records import missing_file, open_feedback, open_log
from coe.records.feedback import Feedback
from coe.records.record import RoutingRecord
from coe.records.selection import DAY
from coe.registry import LogSpec, load
from coe.terminal import say, say_error

File = Annotated[Path, typer.Argument(help="The file to write, .jsonl or .parquet.")]
Since = Annotated[str, typer.Option("--since", help="Not older than this, such as 12h or 7d.")]
Until = Annotated[str, typer.Option("--until", help="Not newer than this.")]
Category = Annotated[str, typer.Option("--category")]
Redact = Annotated[bool, typer.Option("--redact", help="Leave out prompts, embeddings and text digests.")]


def export(
    file: File,
    since: Since = "",
    deadline: Until = "",
    category: Category = "",
    redact: Redact = False,
    config: Config = None,
) -> None:
    """Write the routing log to a file, JSON Lines or parquet, each record with its feedback."""
    check_suffix(file)
    writable(file)
    settings = settings_for(config)
    url, now = load(settings.config, environ=settings.environ).log.url, time.time()
    if missing := missing_file(url, base=settings.home):
        raise DataError(f"{missing}: there is no routing log yet; check --config and COE_HOME")
    first = now - seconds(since, option="--since") if since else 0.0
    last = now - seconds(deadline, option="--until") if deadline else now
    with open_logs(url, base=settings.home) as logs, exit_on_sigterm():
        said = Said(event for page in logs.feedback(since=first) for event in page)
        pages = logs.all(since=first, deadline=last, category=category)
        rows = ((record, said.rating(record)) for page in pages for record in page)
        count = write_rows(file, rows, redact=redact)
    say(f"{file}: {count} records")
    if logs.damaged:
        say_error(f"{logs.damaged} entries of the log are damaged and left out")


def check_suffix(file: Path) -> None:
    """Raises BadParameter for a file that is neither JSON Lines nor parquet, ConfigError where pyarrow is missing."""
    if file.suffix not in SUFFIXES:
        raise typer.BadParameter(f"{file} must end in {' or '.join(SUFFIXES)}", param_hint="FILE")
    if file.exists() and not file.is_file():
        raise typer.BadParameter(f"{file} is not a regular file", param_hint="FILE")
    if file.suffix == ".parquet":
        require_parquet()


class Said:
    """The surest and then latest rating, and the latest corrected category, of each request: what is learnt from. Some
    300 bytes for each."""

    def __init__(self, events: Iterable[Feedback]) -> None:
        self._told: tuple[dict[int, Feedback], dict[int, Feedback]] = {}, {}
        for event in events:
            if event.kind in (*RATING_KINDS, "category"):
                known, key = self._told[event.kind == "category"], _key(event.request_id, event.tenant)
                known[key] = max(known.get(key, event), event, key=_counts)

    def rating(self, record: RoutingRecord) -> Rating:
        """The feedback on that request by its own tenant; its fields are None where there is none."""
        rating, corrected = (known.get(_key(record.request_id, record.tenant)) for known in self._told)
        value = rating.value if rating else None
        return Rating(
            feedback_kind=rating.kind if rating else None,
            feedback_value=float(value) if isinstance(value, int | float) else None,
            feedback_preferred=value if isinstance(value, str) else None,
            feedback_category=str(corrected.value) if corrected else None,
            feedback_time=max((one.time for one in (rating, corrected) if one), default=None),
        )


def _key(request_id: str, tenant: str | None) -> int:
    return request_hash(f"{tenant or ''}\0{request_id}")


def _counts(event: Feedback) -> tuple[int, float, str]:
    return -certainty_rank(event.kind), event.time, event.event_id


PAGE = 2_000
"""Records in memory at a time."""

File_log_import = Annotated[
    Path, typer.Argument(help="A file that `coe log export` wrote.", exists=True, dir_okay=False)
]


def import_(file: File_log_import, config: Config = None) -> None:
    """Add the records of a file and their feedback to the routing log; what is there already stays."""
    check_suffix(file)
    settings = settings_for(config)
    declared = load(settings.config, environ=settings.environ).log
    count, old = asyncio.run(_add(file, declared, base=settings.home))
    say(f"{file}: {count} records are in the log now, new or already there")
    if old:
        say(f"{old} records are older than log.keep_days and left out")


async def _add(file: Path, declared: LogSpec, *, base: Path) -> tuple[int, int]:
    """Returns how many records were added or there already, and how many were too old."""
    keep: dict[str, Any] = {"base": base, "retention": declared.keep_records, "days": declared.keep_days}
    log, feedback = open_log(declared.url, **keep), open_feedback(declared.url, **keep)
    oldest, count, old = time.time() - declared.keep_days * DAY, 0, 0
    rows = read_rows(file)
    try:
        while page := list(islice(rows, PAGE)):
            kept = [row for row in page if row[0].time >= oldest]
            count, old = count + len(kept), old + len(page) - len(kept)
            await log.append([record for record, _ in kept])
            await feedback.append([event for row in kept for event in events_of(row)])
    finally:
        await feedback.aclose()
        await log.aclose()
    return count, old
