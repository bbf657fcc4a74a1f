"""`coe retrain`: learns from the routing log, and promotes each candidate that a test shows to be better.

The candidates are a plan and a router; each has its own round in `coe/learning`. With
`--every` the command repeats until SIGTERM. After each run it publishes the traffic report for the gateways' metrics.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from coe.artifacts.manifest import ASSIGNMENT, ROUTER
from coe.cli.common import (
    Benchmark,
    Config,
    DryRun,
    Json,
    duration_seconds,
    keep_stdout_clean,
    print_result,
    settings_for,
    table,
)
from coe.errors import CoEError
from coe.learning import plan_round, router_round
from coe.learning.round import Outcome, conclude, open_job
from coe.reports.report import report
from coe.reports.response import publish
from coe.settings import Settings
from coe.terminal import exit_on_sigterm, print_error

Probes = Annotated[Path | None, typer.Option("--probes", help="Folder of measured quality, as `coe score` writes it.")]
Since = Annotated[str, typer.Option("--since", help="Learn from requests not older than this, for example 12h or 30d.")]
Remove = Annotated[list[str] | None, typer.Option("--remove", metavar="ID", help="Withdraw it; may be repeated.")]
Every = Annotated[str, typer.Option("--every", help="Repeat at this interval, for example 6h, until SIGTERM.")]


def retrain(
    probes: Probes = None,
    benchmark: Benchmark = None,
    since: Since = "30d",
    every: Every = "",
    dry_run: DryRun = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Learn from the routing log and its feedback; promote only what a test shows to be better."""
    if benchmark is not None and probes is None:
        raise typer.BadParameter("needs the folder of measured quality: give --probes too", param_hint="--benchmark")
    keep_stdout_clean()
    settings, window = settings_for(config), duration_seconds(since, option="--since")
    run = partial(run_rounds, settings, probes=probes, benchmark=benchmark, window=window, dry_run=dry_run)

    def run_once() -> None:
        outcomes = run()
        print_result({outcome.kind: asdict(outcome) for outcome in outcomes}, _lines(outcomes), json=json)
        if not dry_run:
            try:
                publish(settings, report(settings, now=time.time()))
            except CoEError as error:  # the rounds' results stand
                print_error(f"the traffic report was not updated: {error}")

    if every:
        _repeat(run_once, every)
    else:
        with exit_on_sigterm():
            run_once()


def corrections(remove: Remove = None, config: Config = None, json: Json = False) -> None:
    """List corrected prompts, and which of them the router in use has as exemplars; --remove withdraws them at once."""
    settings = settings_for(config)
    registry, used = router_round.exemplars_in_use(settings)
    found = router_round.withdraw(settings, remove) if remove else router_round.all_corrections(settings, registry)
    columns = ("id", "category", "was", "exemplar", "key", "request", "prompt")
    rows = [
        (one.digest, one.category, one.was, one.digest in used, one.event.key, one.event.request_id, one.prompt[:80])
        for one in found
    ]
    title = "withdrawn" if remove else "corrections"
    print_result(
        {title: [dict(zip(columns, row, strict=True)) for row in rows]}, [title, table(columns, rows)], json=json
    )


def run_rounds(
    settings: Settings, *, probes: Path | None, benchmark: str | None, window: float, dry_run: bool
) -> list[Outcome]:
    """Run a round of each kind on the requests of the last `window` seconds.

    Raises JobError where another job holds the lock, or the error of a damaged state.
    """
    now = time.time()
    with open_job(settings, since=now - window, now=now, dry_run=dry_run) as job:
        outcomes = [conclude(ASSIGNMENT, plan_round.judge(job, probes, benchmark), job)]
        outcomes.append(conclude(ROUTER, router_round.judge(job), job))
        return [outcome for outcome in outcomes if outcome is not None]


def _repeat(run_once: Callable[[], None], every: str) -> None:
    """Run at the interval until SIGTERM or SIGINT, which let a round in progress finish."""
    interval, stopped = duration_seconds(every, option="--every"), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    while not stopped.is_set():
        try:
            run_once()
        except CoEError as error:  # for example an unreachable Redis, which the next round may reach
            print_error(f"{error}; next try in about {every}")
        stopped.wait(interval)


def _lines(outcomes: Iterable[Outcome]) -> Iterator[str]:
    for outcome in outcomes:
        yield f"{outcome.kind}: {outcome.sentence}"
        yield from (f"  {move['sentence']}" for move in outcome.report.get("moves", ()))
        if outcome.version:
            yield f"  version {outcome.version} is in use; gateways apply it within a second or two"
        if outcome.folder:
            yield f"  report: {outcome.folder}/report.json"
