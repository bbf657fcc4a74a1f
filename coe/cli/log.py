"""`coe log`: what was asked, who answered, and how it went."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from datetime import datetime
from typing import Annotated

import typer

from coe.cli.common import Config, Json, seconds, settings_for
from coe.cli.log_files import export, import_
from coe.records import missing_file, open_log
from coe.records.codec import encode
from coe.records.record import LogPage, LogQuery, RoutingLog, RoutingRecord
from coe.registry import Registry, load
from coe.terminal import say, say_error

POLL = 0.5

Count = Annotated[int, typer.Option("-n", "--limit", min=1, max=10_000, help="How many records.")]
Follow = Annotated[bool, typer.Option("-f", "--follow", help="Go on with new records until Ctrl-C.")]
Since = Annotated[str, typer.Option("--since", help="Not older than this, such as 30s, 15m, 2h, 7d.")]
Category = Annotated[str, typer.Option("--category")]
Expert = Annotated[str, typer.Option("--expert")]
Until = Annotated[str, typer.Option("--until", help="Older than this, such as 2h.")]
Outcome = Annotated[str, typer.Option("--outcome", help="ok, aborted, or an error code.")]
Reason = Annotated[str, typer.Option("--reason", help="routed, uncertain, sticky, fallback, ...")]
Session = Annotated[str, typer.Option("--session", help="What the client sent as x-session-id.")]
Tenant = Annotated[str, typer.Option("--tenant")]
Id = Annotated[str, typer.Option("--id", help="How the request's id begins.")]

app = typer.Typer(invoke_without_command=True, help="List the newest records of the routing log, or carry them.")
app.command("export")(export)
app.command("import")(import_)


@app.callback()
def log(
    context: typer.Context,
    limit: Count = 20,
    follow: Follow = False,
    since: Since = "",
    deadline: Until = "",
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
    """List the newest records of the routing log, oldest first; `export` and `import` carry them to a file and back."""
    if context.invoked_subcommand:
        return
    settings = settings_for(config)
    registry = load(settings.config, environ=settings.environ)
    query = LogQuery(
        since=_ago(since, option="--since"),
        until=_ago(deadline, option="--until", otherwise=math.inf),
        category=category,
        expert=expert,
        outcome=outcome,
        reason=reason,
        session=session,
        tenant=tenant,
        request_id=id,
        limit=limit,
    )
    if not follow and (missing := missing_file(registry.log.url, base=settings.home)):
        say_error(f"{missing}: there is no routing log yet; the gateway creates it with the first request")
        return
    try:
        shown = asyncio.run(_show(open_log(registry.log.url, base=settings.home), query, follow=follow, json=json))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    if not shown:
        say_error(_no_match(query, registry))


def _no_match(query: LogQuery, registry: Registry) -> str:
    """The note for an empty list, with the declared names where the query names something else."""
    for name, known in (("category", registry.category_names), ("expert", registry.expert_names)):
        if (value := getattr(query, name)) and value not in known:
            return f"no records match; {value!r} is no declared {name}; declared: {', '.join(known)}"
    return "no records match"


async def _show(routing_log: RoutingLog, query: LogQuery, *, follow: bool, json: bool) -> int:
    """Print the records and, with `follow`, new ones without end. Returns how many there were."""
    try:
        page = await routing_log.tail(query)
        if not json:
            say(_HEADER)
        _print(page, json)
        while follow:
            page = await _newer(routing_log, replace(query, after=page.cursor))
            _print(page, json)
        return len(page.records)
    finally:
        await routing_log.aclose()


async def _newer(routing_log: RoutingLog, query: LogQuery) -> LogPage:
    page = await routing_log.read(query)
    if page.cursor == query.after:  # nothing new; a page of records that do not match moves the cursor
        await asyncio.sleep(POLL)
    return page


_HEADER = (
    f"{'time':19}  {'category':17} {'conf':>4}  {'expert':14} {'reason':9} {'outcome':18} {'tokens':>11} {'ms':>8}  "
    f"{'id':36}  cause"
)


def _print(page: LogPage, json: bool) -> None:
    if page.damaged:
        say_error(f"{page.damaged} entries of the log are damaged and left out")
    for record in page.records:
        if json:
            say(encode(record).decode())
        else:
            say(_line(record))


def _line(record: RoutingRecord) -> str:
    when = datetime.fromtimestamp(record.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    tokens = f"{_or_dash(record.input_tokens)}+{_or_dash(record.output_tokens)}"
    return (
        f"{when}  {record.category or '-':17} {record.confidence:4.2f}  {record.expert or '-':14} "
        f"{record.reason or '-':9} {record.outcome:18} {tokens:>11} {record.total_ms:8.0f}  "
        f"{record.request_id:36}  {_cause(record)}"
    ).rstrip()


def _cause(record: RoutingRecord) -> str:
    """The first choice that did not answer, and the cause; empty for a request whose first choice answered."""
    return f"{record.fallback_from or record.expert}: {record.cause}" if record.cause else ""


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _ago(text: str, *, option: str, otherwise: float = 0.0) -> float:
    return time.time() - seconds(text, option=option) if text else otherwise
