"""`coe log import`: adds the rows of a file that `coe log export` wrote to a routing log, this one or another."""

from __future__ import annotations

import asyncio
import time
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from coe.cli.common import Config, say, settings_for
from coe.cli.log_files import check_suffix
from coe.jobs.record_files import events_of, read_rows
from coe.records import open_feedback, open_log
from coe.records.selection import DAY
from coe.registry import LogSpec, load

PAGE = 2_000
"""Records in memory at a time."""

File = Annotated[Path, typer.Argument(help="A file that `coe log export` wrote.", exists=True, dir_okay=False)]


def import_(file: File, config: Config = None) -> None:
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
