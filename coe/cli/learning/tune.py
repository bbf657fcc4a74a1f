"""`coe tune`: measures the experts, makes a plan from the scores, and puts it into use, in one command."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from coe.artifacts.artifact_sync import synced_store
from coe.artifacts.store import ArtifactStore
from coe.cli.check import check_live
from coe.cli.common import Config, Json, declaration_for, keep_stdout_clean
from coe.cli.score import Concurrency, Judge, Probes, declared_expert, requested_probes
from coe.errors import DataError, ExpertUnavailable
from coe.measuring.probes.shipped import SHIPPED, folder_seed, write_seed
from coe.measuring.recorded_answers import ANSWERS
from coe.measuring.sandbox import installed
from coe.measuring.scoring import Scoring, open_journal, write_tables
from coe.measuring.tables import require_parquet
from coe.measuring.tuning.measurements import Estimate
from coe.measuring.tuning.schedule import Goal
from coe.measuring.tuning.tune import LOG_SECONDS, PLAN_DEVIATIONS, Limits, Status, Tuning, price_of_check
from coe.planning.job.plan import PlanOptions, make_plan
from coe.registry import ExpertSpec, Registry
from coe.settings import Settings
from coe.terminal import print_error, print_json, print_line, printable

LINE_SECONDS, REFRESH_SECONDS = 10.0, 0.5
"""Time between two lines of progress without a terminal, and between two changes of the line on one."""
_REASONS = {
    "settled": "the plan is settled: more scores would hardly change it",
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

    Checks that every expert answers, estimates cost and time, and asks. Then it scores the probes that could change the
    plan most, and stops when more would not: with a probability of 90 %, the plan is within 0.015 of the best one. No
    call starts that could cost more than --budget leaves. A stopped run continues where it stopped.

    Local experts must be running (`coe up` in another terminal).
    """
    keep_stdout_clean()
    require_parquet()
    settings, registry = declaration_for(config)
    if not yes and not sys.stdin.isatty():
        message = "there is no terminal to ask on; give it to measure and to put the plan into use"
        raise typer.BadParameter(message, param_hint="--yes")
    folder = settings.home / "quality" if out is None else out
    seed = folder_seed(folder)
    judging = declared_expert(registry, judge, "--judge") if judge else None
    read = requested_probes(probes, registry, settings.config, seed, runs_code=installed(), judge=judging)
    limits = Limits(budget, None if minutes is None else 60 * minutes)
    spent = price_of_check(registry, limits)
    experts = _answering(registry, settings, yes=yes)
    if judging is not None and judging not in experts:
        raise ExpertUnavailable(f"tune: the judge {judging.name!r} does not answer", expert=judging.name)
    scoring = Scoring(registry, read, (), experts, judging, concurrency)
    with open_journal(folder) as journal:
        write_seed(folder, seed)
        tuning = Tuning.of(scoring, journal, settings, limits=limits, goal=Goal(), seed=seed, spent=spent)
        if not confirmed(tuning, yes=yes):
            raise typer.Exit(1)
        reason = _measure(tuning, settings)
        benchmark = probes.stem if probes else SHIPPED
        report = _planned(tuning, settings, folder, benchmark=benchmark, reason=reason, yes=yes, json=json)
    if json:
        print_json(report)
    if reason == "stopped" or not report["in_use"]:
        raise typer.Exit(1)


def _answering(registry: Registry, settings: Settings, *, yes: bool) -> list[ExpertSpec]:
    """The experts that answer. Asks whether to continue without the others.

    Raises DataError if fewer than two answer, and ExpertUnavailable if one does not and `yes` excludes the question.
    """
    print_error("checking the experts")
    findings = asyncio.run(check_live(registry, settings))
    dead = dict.fromkeys(one.expert for one in findings if not one.ok)
    for finding in findings:
        if not finding.ok:
            print_error(finding.sentence)
    answering = [spec for spec in registry.experts if spec.name not in dead]
    if len(answering) < 2:
        raise DataError("tune: a plan needs two experts that answer; declare more, or correct those of experts.yaml")
    if names := ", ".join(dead):
        if yes:
            remedy = "correct them, or remove them from experts.yaml"
            raise ExpertUnavailable(f"tune: {names} cannot be measured; {remedy}", expert=next(iter(dead)))
        if not typer.confirm(f"Continue without scores for {names}?", err=True):
            raise typer.Exit(1)
    return answering


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
        with tune_progress(tuning.status, tuning.limits) as (interval, show, report):

            async def ticking() -> None:
                while True:
                    await asyncio.sleep(interval)
                    show()

            ticker = asyncio.create_task(ticking())
            try:
                return await tuning.run(settings, report)
            finally:
                ticker.cancel()
                with suppress(asyncio.CancelledError):
                    await ticker

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
    certainty = (
        ""
        if status.certainty is None
        else f"; within {tuning.goal.tolerance} of the best plan at {status.certainty:.0%}"
    )
    print_error(f"{_REASONS[reason]}: {status.scored} scores, ${status.spent:.2f}, {status.seconds:.0f} s{certainty}")
    report: dict[str, Any] = {"reason": reason, "status": asdict(status), "out": str(folder), "in_use": False}
    if reason == "stopped":
        return report
    store = synced_store(settings, "assignment")
    plan = _plan(settings, scoring.registry, store, folder, benchmark, dry_run=True)
    if not json:
        show_comparison(plan["against"], plan["assignment"])
    is_right = any((cell.score or 0.0) > 0 for cell in tuning.journal.scored.values())
    if not is_right:
        print_error(f"note: no expert answered a probe correctly; {folder / ANSWERS}.parquet has what they answered")
    is_sure = is_right and (reason in _FINISHED or (status.certainty or 0.0) >= tuning.goal.confidence)
    accepted = is_sure if yes else typer.confirm("Put this plan into use?", err=True)
    if accepted:
        plan = _plan(settings, scoring.registry, store, folder, benchmark, dry_run=False)
        report["in_use"] = True
        if not json:
            print_line("the plan is in use; running gateways apply it soon")
    else:
        why = "" if is_sure else ", since it is not settled: run again to continue"
        print_error(f"the plan is not put into use{why}; `coe plan {folder}` puts it into use as it is")
    return report | {"plan": plan}


def _plan(
    settings: Settings, registry: Registry, store: ArtifactStore, folder: Path, benchmark: str, *, dry_run: bool
) -> Mapping[str, Any]:
    options = PlanOptions(benchmark, PLAN_DEVIATIONS, "", (), None, False, dry_run, LOG_SECONDS)
    return make_plan(settings, registry, store, folder, options)


def status_line(status: Status, limits: Limits) -> str:
    """Return the state of a run in one line."""
    dollars = "" if limits.dollars is None else f" of ${limits.dollars:.2f}"
    minutes = f"{status.seconds // 60:.0f}:{status.seconds % 60:02.0f}"
    if limits.seconds is not None:
        minutes += f" of {limits.seconds // 60:.0f}:{limits.seconds % 60:02.0f}"
    certainty = "first probes" if status.certainty is None else f"certainty of the plan {status.certainty:.0%}"
    scores = f"{status.known} of {status.cells} scores ({status.scored} new)"
    return f"{scores}, ${status.spent:.2f}{dollars}, {minutes} min, {certainty}"


@contextmanager
def tune_progress(
    status: Callable[[], Status], limits: Limits
) -> Iterator[tuple[float, Callable[[], None], Callable[[str], None]]]:
    """Yield the seconds between two calls of a function that shows the state, that function, and one that prints a
    line. On a terminal the state is a line that changes, else it is a new line each time."""
    if not sys.stderr.isatty():
        yield LINE_SECONDS, lambda: print_error(status_line(status(), limits)), print_error
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("measuring") as spinner:
        yield (
            REFRESH_SECONDS,
            lambda: spinner.update(status_line(status(), limits)),
            lambda line: console.print(printable(line), markup=False, highlight=False, soft_wrap=True),
        )


def show_comparison(against: Sequence[Mapping[str, Any]], assignment: Sequence[Mapping[str, Any]]) -> None:
    """Print the expert of each category, and the plan next to each single expert: quality, cost, latency."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout, highlight=False)
    chosen = Table(title="plan", title_justify="left")
    for name in ("category", "expert", "runner-up"):
        chosen.add_column(name)
    for row in assignment:
        expert = f"{row['expert']} (declared)" if row["pinned"] else row["expert"]
        chosen.add_row(row["category"], expert, row["runner_up"] or "-")
    console.print(chosen)
    table = Table(title="this plan against each single expert", title_justify="left")
    table.add_column("expert")
    for name in ("quality", "vs. plan", "$ per 1000", "latency"):
        table.add_column(name, justify="right")
    plan = next(row["estimate"] for row in against if row["expert"] is None)
    for row in against:
        latency = "-" if row["latency_ms"] is None else f"{row['latency_ms'] / 1000:.1f} s"
        cost = "-" if row["cost"] is None else f"{row['cost']:.3g}"
        style = "bold" if row["expert"] is None else None
        table.add_row(
            row["expert"] or "this plan", f"{row['estimate']:.3f}", _difference(row, plan), cost, latency, style=style
        )
    console.print(table)


def _difference(row: Mapping[str, Any], plan: float) -> str:
    """The difference of an expert's quality from the plan's, with its standard error if it is known."""
    if row["expert"] is None:
        return ""
    error = row["less_plan"]["standard_error"]
    return f"{row['estimate'] - plan:+.3f}" + ("" if error is None else f" ± {error:.3f}")
