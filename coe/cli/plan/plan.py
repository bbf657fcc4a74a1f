"""`coe plan`: makes the plan of the scored experts under the declared budget and puts it into use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coe.artifacts.store import ArtifactStore
from coe.cli.common import Config, Json, image_file, keep_stdout_clean, settings_for
from coe.cli.plan.show import show_plan
from coe.jobs.planning.plan import PlanOptions, make_plan
from coe.mapping import Budget
from coe.registry import load
from coe.runtime.artifact_sync import synced_store
from coe.terminal import print_json, print_line

Scores = Annotated[Path | None, typer.Argument(help="Folder with prompts, scores and models, as of `coe score`.")]
Benchmark = Annotated[str | None, typer.Option("--benchmark", help="The benchmark, where the folder holds several.")]
Deviations = Annotated[
    float, typer.Option("--deviations", min=0, help="Plan by quality this many standard errors below the mean.")
]
Sweep = Annotated[str | None, typer.Option("--sweep", help="ROW=LIMIT,LIMIT,...: also plan under these limits.")]
Plot = Annotated[Path | None, typer.Option("--plot", callback=image_file, help="Image of the sweep (.png or .svg).")]
Forget = Annotated[bool, typer.Option("--forget", help="Return to the assignment declared in experts.yaml.")]
DropFeedback = Annotated[
    bool, typer.Option("--drop-feedback", help="Plan on the scores alone, without what `coe retrain` learned.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and keep the assignment in use.")]


def plan(
    scores: Scores = None,
    benchmark: Benchmark = None,
    deviations: Deviations = 1.0,
    sweep: Sweep = None,
    plot: Plot = None,
    dry_run: DryRun = False,
    forget: Forget = False,
    drop_feedback: DropFeedback = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Find the best expert for every category under the budget, exactly, and put the plan into use.

    Categories that `coe retrain` has moved since keep the feedback that moved them, unless --drop-feedback is given.
    Where the folder has the effect of passages (`coe score --retrieval both`), the retrieval gate is fitted too.
    """
    keep_stdout_clean()
    settings = settings_for(config)
    store = synced_store(settings, "assignment")
    if forget:
        _forget(store, json)
        return
    if scores is None:
        raise typer.BadParameter("give the folder of scores, or --forget")
    if plot is not None and sweep is None:
        raise typer.BadParameter("draws a sweep: give --sweep too", param_hint="--plot")
    row, limits = _limits(sweep) if sweep else ("", [])
    registry = load(settings.config, environ=settings.environ)
    options = PlanOptions(benchmark, deviations, row, limits, plot, drop_feedback, dry_run)
    report = make_plan(settings, registry, store, scores, options)
    if json:
        print_json(report)
    else:
        show_plan(report, scores, is_dry_run=dry_run)


def _forget(store: ArtifactStore, json: bool) -> None:
    store.clear(by="plan", why="--forget")
    note = "the assignment of experts.yaml is in use; running gateways apply it soon"
    print_json({"assignment": None, "note": note}) if json else print_line(note)


def _limits(text: str) -> tuple[str, list[float]]:
    """The budget row and the limits of --sweep."""
    row, _, limits = text.partition("=")
    if row not in Budget().__dataclass_fields__:
        known = ", ".join(Budget().__dataclass_fields__)
        raise typer.BadParameter(f"unknown row {row!r}; known: {known}", param_hint="--sweep")
    try:
        return row, [float(limit) for limit in limits.split(",")]
    except ValueError:
        raise typer.BadParameter(
            "write ROW=LIMIT,LIMIT,... such as mean_active_b=2,4,8", param_hint="--sweep"
        ) from None
