"""`coe tune`: measures the experts, makes a plan from the scores, and puts it into use, in one command."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from coe.artifacts.artifact_sync import synced_store
from coe.cli.check import check_live
from coe.cli.common import Config, Json, declaration_for, keep_stdout_clean
from coe.cli.plan import comparison
from coe.cli.score import Concurrency, Judge, Probes, declared_expert, requested_probes
from coe.errors import DataError, ExpertUnavailable
from coe.measuring.probes import SHIPPED
from coe.measuring.recorded_answers import ANSWERS
from coe.measuring.sandbox import installed
from coe.measuring.scoring import Scoring, open_journal, write_tables
from coe.measuring.tables import require_parquet
from coe.measuring.tune import LOG_SECONDS, Estimate, Goal, Limits, Status, Tuning, price_of_check
from coe.planning.job.plan import PlanOptions, make_plan
from coe.registry import Registry
from coe.settings import Settings
from coe.terminal import print_error, print_json, print_line

LINE_SECONDS = 10.0
"""Time between two lines of progress."""
_REASONS = {
    "settled": "the plan is settled: it is hardly expected to lose to the best one",
    "little to gain": "the remaining probes are expected to gain almost nothing",
    "all scored": "every probe that could change the plan is scored",
    "no expert answers": "no expert answers any more",
    "time": "the time is over",
    "budget": "the budget is spent: any further call could break it",
    "stopped": "stopped; run again to continue",
}

_FINISHED = ("settled", "little to gain", "all scored")
"""Reasons after which `--yes` puts the plan into use; after others, it may rest on few scores."""

Out = Annotated[Path | None, typer.Option("--out", help="Folder for scores [default: quality in the state folder].")]
Budget = Annotated[float | None, typer.Option("--budget", min=0, help="US dollars that calls may cost at most.")]
Minutes = Annotated[float | None, typer.Option("--minutes", min=0, help="No call starts after this time.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: measure, and put a finished plan into use.")]


def tune(
    probes: Probes = None,
    budget: Budget = None,
    minutes: Minutes = None,
    out: Out = None,
    concurrency: Concurrency = 8,
    judge: Judge = None,
    yes: Yes = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Measure the experts, plan, compare the plan with each single expert, and put it into use.

    Checks that every expert answers, estimates cost and time, and asks. Then it scores the probes that are expected to
    improve the plan most per call and dollar. It stops when the plan is expected to lose at most 0.008 to the best one,
    or when the remaining probes are expected to gain almost nothing. No call starts that could cost more than --budget
    leaves. A stopped run continues where it stopped.

    Local experts must be running (`coe up` in another terminal).
    """
    keep_stdout_clean()
    require_parquet()
    settings, registry = declaration_for(config)
    if not yes and not sys.stdin.isatty():
        message = "there is no terminal to ask on; give it to measure and to put the plan into use"
        raise typer.BadParameter(message, param_hint="--yes")
    folder = settings.home / "quality" if out is None else out
    judging = declared_expert(registry, judge, "--judge") if judge else None
    read = requested_probes(probes, registry, settings.config, runs_code=installed(), judge=judging)
    limits = Limits(budget, None if minutes is None else 60 * minutes)
    spent = price_of_check(registry, limits)
    _check_experts(registry, settings)
    scoring = Scoring(registry, read, (), registry.experts, judging, concurrency)
    with open_journal(folder) as journal:
        tuning = Tuning.of(scoring, journal, settings, limits=limits, goal=Goal(), spent=spent)
        if not confirmed(tuning, yes=yes):
            raise typer.Exit(1)
        reason = _measure(tuning, settings)
        benchmark = probes.stem if probes else SHIPPED
        report = _planned(tuning, settings, folder, benchmark=benchmark, reason=reason, yes=yes, json=json)
    if json:
        print_json(report)
    if reason == "stopped" or not report["in_use"]:
        raise typer.Exit(1)


def _check_experts(registry: Registry, settings: Settings) -> None:
    """Raise DataError for fewer than two experts, and ExpertUnavailable where one does not answer."""
    if len(registry.experts) < 2:
        raise DataError("tune: a plan needs two experts; declare more")
    print_error("checking the experts")
    silent = [finding for finding in asyncio.run(check_live(registry, settings)) if not finding.ok]
    for finding in silent:
        print_error(finding.sentence)
    if silent:
        names = ", ".join(dict.fromkeys(finding.expert for finding in silent))
        remedy = "correct them, or remove them from experts.yaml"
        raise ExpertUnavailable(f"tune: {names} cannot be measured; {remedy}", expert=silent[0].expert)


def confirmed(tuning: Tuning, *, yes: bool) -> bool:
    """Show the estimate and ask. Raises DataError if the cost is unknown and nothing bounds or accepts it."""
    first, most = tuning.estimates()
    limits = [f"${tuning.limits.dollars:g}"] if tuning.limits.dollars is not None else []
    limits += [f"{tuning.limits.seconds / 60:g} min"] if tuning.limits.seconds is not None else []
    print_error(f"estimate: {_use(first)} for the first probes, {_use(most)} for all that are missing")
    print_error(f"limits: {' and '.join(limits)}" if limits else "limits: none; --budget and --minutes set some")
    if unpriced := tuning.unpriced:
        names = ", ".join(unpriced)
        print_error(f"unknown: what calls of {names} cost; declare their `prices` (0 for a server of your own)")
        if tuning.limits.seconds is None and not yes:
            raise DataError(f"tune: the cost of {names} is unknown: declare `prices`, or give --minutes or --yes")
    return yes or not most.calls or typer.confirm("Measure?", err=True)


def _use(estimate: Estimate) -> str:
    return f"{estimate.calls} calls, ${estimate.dollars:.2f}, {estimate.seconds / 60:.1f} min"


def _measure(tuning: Tuning, settings: Settings) -> str:
    """Score; returns the reason for the end. Ctrl-C ends it too, and keeps what was scored."""

    async def measure() -> str:
        async def show_progress() -> None:
            while True:
                await asyncio.sleep(LINE_SECONDS)
                print_error(status_line(tuning.status(), tuning.limits))

        progress = asyncio.create_task(show_progress())
        try:
            return await tuning.run(settings, print_error)
        finally:
            progress.cancel()
            await asyncio.wait([progress])

    try:
        return asyncio.run(measure())
    except KeyboardInterrupt:
        return "stopped"


def _planned(
    tuning: Tuning, settings: Settings, folder: Path, *, benchmark: str, reason: str, yes: bool, json: bool
) -> dict[str, Any]:
    """Write the scores, plan, show the plan, ask, and put it into use. Returns the report."""
    scoring, status = tuning.scoring, tuning.status()
    if not status.known and reason != "stopped":
        remedy = "see `coe check --live`" if reason == "no expert answers" else "raise --minutes or --budget"
        raise DataError(f"tune: {_REASONS[reason]}, and no probe is scored yet; {remedy}")
    write_tables(scoring, tuning.journal, folder, benchmark=benchmark)
    print_error(f"{_REASONS[reason]}: {status_line(status, tuning.limits)}")
    report: dict[str, Any] = {"reason": reason, "status": asdict(status), "out": str(folder), "in_use": False}
    if reason == "stopped":
        return report
    store = synced_store(settings, "assignment")
    options = PlanOptions(benchmark, drop_feedback=False, dry_run=True, log_seconds=LOG_SECONDS)
    plan = make_plan(settings, scoring.registry, store, folder, options)
    if not json:
        for text in comparison(plan):
            print_line(text)
    is_right = any((cell.score or 0.0) > 0 for cell in tuning.journal.scored.values())
    if not is_right:
        print_error(f"note: no expert answered a probe correctly; {folder / ANSWERS}.parquet has what they answered")
    is_sure = is_right and (reason in _FINISHED or (status.loss is not None and status.loss <= tuning.goal.tolerance))
    accepted = is_sure if yes else typer.confirm("Put this plan into use?", err=True)
    if accepted:
        plan = make_plan(settings, scoring.registry, store, folder, replace(options, dry_run=False))
        report["in_use"] = True
        if not json:
            print_line("the plan is in use; running gateways apply it soon")
    else:
        why = "" if is_sure else ", since it is not settled: run again to continue"
        print_error(f"the plan is not put into use{why}; `coe plan {folder}` puts it into use as it is")
    return report | {"plan": plan}


def status_line(status: Status, limits: Limits) -> str:
    """Return the state of a run in one line."""
    dollars = "" if limits.dollars is None else f" of ${limits.dollars:.2f}"
    minutes = f"{status.seconds // 60:.0f}:{status.seconds % 60:02.0f}"
    if limits.seconds is not None:
        minutes += f" of {limits.seconds // 60:.0f}:{limits.seconds % 60:02.0f}"
    loss = "first probes" if status.loss is None else f"expected loss of the plan {status.loss:.4f}"
    scores = f"{status.known} of {status.cells} scores ({status.scored} new)"
    return f"{scores}, ${status.spent:.2f}{dollars}, {minutes} min, {loss}"
