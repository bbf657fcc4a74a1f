"""`coe log`: lists records of the routing log, and exports them to a file."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from coe.cli.common import Config, Json, declaration_for, duration_seconds, writable_file
from coe.learning.log_frame import Ratings, open_logs, write_rows
from coe.records import missing_file, open_log_and_feedback, require_log
from coe.records.record import RECORD, LogPage, LogQuery, RoutingLog, RoutingRecord
from coe.terminal import exit_on_sigterm, print_error, print_line

POLL_SECONDS = 0.5

Limit = Annotated[int, typer.Option("-n", "--limit", min=1, max=10_000, help="How many records.")]
Follow = Annotated[bool, typer.Option("-f", "--follow", help="Print new records until Ctrl-C.")]
Since = Annotated[str, typer.Option("--since", help="Only records newer than this, for example 30s, 15m, 2h or 7d.")]
Until = Annotated[str, typer.Option("--until", help="Only records older than this, for example 2h.")]
Category = Annotated[str, typer.Option("--category")]
Expert = Annotated[str, typer.Option("--expert")]
Outcome = Annotated[str, typer.Option("--outcome", help="ok, aborted, or an error code.")]
Reason = Annotated[str, typer.Option("--reason", help="routed, uncertain, sticky, fallback, ...")]
Session = Annotated[str, typer.Option("--session", help="The client's x-session-id.")]
Tenant = Annotated[str, typer.Option("--tenant")]
Id = Annotated[str, typer.Option("--id", help="The beginning of the request's id.")]


def _output_file(file: Path) -> Path | None:
    """Check that the file can be one of JSON Lines. Raises BadParameter."""
    if file.suffix != ".jsonl":
        raise typer.BadParameter(f"{file} must end in .jsonl")
    if file.exists() and not file.is_file():
        raise typer.BadParameter(f"{file} is not a regular file")
    return writable_file(file)


OutputFile = Annotated[Path, typer.Argument(metavar="FILE", callback=_output_file, help="The file to write, .jsonl.")]
Redact = Annotated[bool, typer.Option("--redact", help="Leave out prompts and text digests.")]

app = typer.Typer(invoke_without_command=True, help="List the newest records of the routing log, or export them.")


@app.callback()
def log(
    context: typer.Context,
    limit: Limit = 20,
    follow: Follow = False,
    since: Since = "",
    until: Until = "",
    category: Category = "",
    expert: Expert = "",
    outcome: Outcome = "",
    reason: Reason = "",
    session: Session = "",
    tenant: Tenant = "",
    id: Id = "",  # noqa: A002 (the option's name)
    config: Config = None,
    json: Json = False,
) -> None:
    """List the newest records of the routing log, oldest first; `export` writes them to a file."""
    if context.invoked_subcommand:
        return
    settings, registry = declaration_for(config)
    first, last = _ago(since, option="--since", default=0.0), _ago(until, option="--until", default=math.inf)
    exact = {"category": category, "expert": expert, "outcome": outcome, "reason": reason, "session": session}
    query = LogQuery(since=first, until=last, tenant=tenant, request_id=id, limit=limit, **exact)
    if not follow and (missing := missing_file(registry.log.url, base=settings.home)):
        print_error(f"{missing}: there is no routing log yet; the gateway creates it with the first request")
        return
    try:
        url, base = registry.log.url, settings.home
        shown = asyncio.run(_show(open_log_and_feedback(url, base=base)[0], query, follow=follow, json=json))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    if not shown:
        print_error("no records match")


@app.command("export")
def export_file(
    file: OutputFile,
    since: Since = "",
    until: Until = "",
    category: Category = "",
    redact: Redact = False,
    config: Config = None,
) -> None:
    """Write the routing log to a file of JSON Lines, each record with its feedback."""
    settings, registry = declaration_for(config)
    url, now = registry.log.url, time.time()
    require_log(url, base=settings.home)
    first, last = _ago(since, option="--since", default=0.0), _ago(until, option="--until", default=now)
    with open_logs(url, base=settings.home) as logs, exit_on_sigterm():
        ratings = Ratings(event for page in logs.feedback(since=first) for event in page)
        pages = logs.records(since=first, until=last, category=category)
        rows = ((record, ratings.of(record)) for page in pages for record in page)
        count = write_rows(file, rows, redact=redact)
    print_line(f"{file}: {count} records")
    _note_damage(logs.damaged)


async def _show(routing_log: RoutingLog, query: LogQuery, *, follow: bool, json: bool) -> int:
    """Print the records and, with `follow`, new ones without end. Returns the number of records."""
    try:
        newest = await routing_log.back(query)
        _print(replace(newest, records=newest.records[::-1]), json=json, with_head=True)
        cursor = newest.end
        while follow:
            page = await routing_log.read(replace(query, after=cursor))
            _print(page, json=json, with_head=False)
            if page.cursor == cursor:  # nothing new; a page of records that do not match moves the cursor
                await asyncio.sleep(POLL_SECONDS)
            cursor = page.cursor
        return len(newest.records)
    finally:
        await routing_log.aclose()


def _print(page: LogPage, *, json: bool, with_head: bool) -> None:
    _note_damage(page.damaged)
    if with_head and not json:
        print_line(_HEADER)
    for record in page.records:
        print_line(RECORD.adapter.dump_json(record, warnings=False).decode() if json else _line(record))


def _note_damage(count: int) -> None:
    if count:
        print_error(f"{count} entries of the log are damaged and left out")


_FORM = "{:19}  {:17} {:>4}  {:14} {:9} {:18} {:>11} {:>8}  {:36}  {}"
"""A line of the list, whose records arrive one after the other."""
_HEADER = _FORM.format("time", "category", "conf", "expert", "reason", "outcome", "tokens", "ms", "id", "cause, recipe")


def _line(record: RoutingRecord) -> str:
    when = datetime.fromtimestamp(record.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    tokens = "+".join("-" if count is None else str(count) for count in (record.input_tokens, record.output_tokens))
    notes = [f"{record.fallback_from or record.expert}: {record.cause}"] if record.cause else []
    if record.recipe:
        calls = (f"{call.expert} {call.outcome}{'*' if call.accepted else ''}" for call in record.steps)
        notes.append(f"{record.recipe} {record.recipe_stop}: {', '.join(calls)}")  # * marks the returned answer
    return _FORM.format(
        *(when, record.category or "-", f"{record.confidence:.2f}", record.expert or "-", record.reason or "-"),
        *(record.outcome, tokens, f"{record.total_ms:.0f}", record.request_id, "; ".join(notes)),
    ).rstrip()


def _ago(text: str, *, option: str, default: float) -> float:
    """The Unix time that is the given duration ago."""
    return time.time() - duration_seconds(text, option=option) if text else default
