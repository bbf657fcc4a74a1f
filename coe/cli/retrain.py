"""`coe retrain`: what was logged and said about it becomes a better assignment, router and gate, where it is proven."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from coe.cli.common import Config, EngineOption, Json, keep_output_clean, seconds, settings_for
from coe.cli.status import status_report
from coe.errors import CoEError
from coe.jobs.engine import Engine, task_runner
from coe.jobs.gate_round import learn_gate
from coe.jobs.overlay_round import learn_overlays
from coe.jobs.plan_round import Outcome, learn_assignment, open_job
from coe.jobs.router_round import learn_router
from coe.jobs.signals import exit_on_sigterm
from coe.learning.monitoring.traffic_report import publish_traffic_report
from coe.settings import Settings
from coe.terminal import say, say_error, say_json

JITTER = 0.1
"""Part of the interval by which a round may be early or late, so that jobs on several machines do not meet."""

Probes = Annotated[Path | None, typer.Option("--probes", help="Folder of measured quality, as of `coe score`.")]
Name = Annotated[str | None, typer.Option("--benchmark", help="Which one, where the folder of --probes has several.")]
Since = Annotated[str, typer.Option("--since", help="Learn from requests not older than this, such as 12h or 30d.")]
Every = Annotated[str, typer.Option("--every", help="Go on with a round each such span, such as 6h, until SIGTERM.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Judge and show, and change nothing.")]


def retrain(
    probes: Probes = None,
    name: Name = None,
    since: Since = "30d",
    every: Every = "",
    dry_run: Dry = False,
    engine: EngineOption = Engine.LOCAL,
    config: Config = None,
    json: Json = False,
) -> None:
    """Learn from the routing log and its feedback; promote only what a test shows to be better."""
    if name is not None and probes is None:
        raise typer.BadParameter("names a part of measured quality: give --probes too", param_hint="--benchmark")
    keep_output_clean()
    settings, window = settings_for(config), seconds(since, option="--since")
    round_ = partial(learn, settings, probes=probes, benchmark=name, window=window, dry_run=dry_run, engine=engine)
    if not every:
        with exit_on_sigterm():
            _say(round_(), json)
            _watch(settings, dry_run)
        return
    pause, over = seconds(every, option="--every"), _told_to_stop()
    while True:
        try:
            _say(round_(), json)
            _watch(settings, dry_run)
        except CoEError as error:  # such as a Redis that is away: the next round may find it
            say_error(f"{error}; next try in about {every}")
        if over.wait(pause * random.uniform(1 - JITTER, 1 + JITTER)):  # noqa: S311 (nothing secret hangs on it)
            return


def learn(
    settings: Settings,
    *,
    probes: Path | None,
    benchmark: str | None = None,
    window: float,
    dry_run: bool,
    engine: Engine = Engine.LOCAL,
) -> list[Outcome]:
    """One round, of the last `window` seconds. Raises JobError where another is at work, or what is wrong."""
    now = time.time()
    with open_job(settings, since=now - window, now=now, dry_run=dry_run) as job, task_runner(engine) as work:
        found, experience = learn_assignment(job, probes=probes, benchmark=benchmark)
        if experience is None:
            return [found]
        router = learn_router(job, experience, work=work)
        overlays = None if router and router.promoted else learn_overlays(job, experience)  # they go with their router
        gate = None if router and router.promoted else learn_gate(job)
        return [found, *(one for one in (router, overlays, gate) if one is not None)]


def _watch(settings: Settings, dry_run: bool) -> None:
    """Look at the traffic, for the gateways' metrics."""
    if dry_run:
        return
    try:
        publish_traffic_report(settings, status_report(settings, now=time.time()))
    except CoEError as error:  # what was learnt stands
        say_error(f"the traffic was not looked at: {error}")


def _told_to_stop() -> threading.Event:
    """Set by SIGTERM and SIGINT; a round under way is ended first."""
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    return over


def _say(outcomes: Iterable[Outcome], json: bool) -> None:
    if json:
        say_json({outcome.kind: asdict(outcome) for outcome in outcomes})
        return
    for outcome in outcomes:
        say(f"{outcome.kind}: {outcome.sentence}")
        for move in outcome.report.get("moves", ()):
            say(f"  {move['sentence']}")
        if outcome.version:
            say(f"  version {outcome.version} is in use; gateways take it within a second or two")
        if outcome.folder:
            say(f"  report: {outcome.folder}/report.md")
