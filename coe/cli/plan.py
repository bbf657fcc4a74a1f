"""`coe plan` makes a plan from measured scores and puts it into use; `coe solve` solves it under other budgets.

`coe plan` prints the report of `coe.planning.job.plan`. `coe solve` reads budgets as JSON lines and publishes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from numpy.typing import NDArray

from coe.artifacts.artifact_sync import synced_store
from coe.artifacts.store import ArtifactStore
from coe.cli.common import Config, Json, duration_seconds, image_file, keep_stdout_clean, print_result, settings_for
from coe.errors import ArtifactError, CoEError, DataError
from coe.planning import Plan, Problem, present_problem, solve
from coe.planning.grid import select
from coe.planning.job.plan import PlanOptions, make_plan, plan_to_json
from coe.planning.paired_scores import Difference
from coe.planning.problem import BUDGET_ROWS
from coe.planning.uses import ASSUMED_INPUT_TOKENS, ASSUMED_OUTPUT_TOKENS
from coe.registry import load
from coe.terminal import print_json, print_line

Scores = Annotated[Path | None, typer.Argument(help="Folder with prompts, scores and models, from `coe score`.")]
Benchmark = Annotated[str | None, typer.Option("--benchmark", help="Benchmark to use, if the folder holds several.")]
Deviations = Annotated[
    float, typer.Option("--deviations", min=0, help="Plan by quality this many standard errors below the mean.")
]
Sweep = Annotated[str | None, typer.Option("--sweep", help="ROW=LIMIT,LIMIT,...: also plan under these limits.")]
Plot = Annotated[Path | None, typer.Option("--plot", callback=image_file, help="Image of the sweep (.png or .svg).")]
Forget = Annotated[bool, typer.Option("--forget", help="Return to the assignment declared in experts.yaml.")]
DropFeedback = Annotated[
    bool, typer.Option("--drop-feedback", help="Plan on the scores alone, without what `coe retrain` learned.")
]
LogSince = Annotated[
    str, typer.Option("--log-since", help="Also measure uses in the routing log since then (30d, 12h); 0 for none.")
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
    log_since: LogSince = "30d",
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
        _clear_plan(store, json)
        return
    if scores is None:
        raise typer.BadParameter("give the folder of scores, or --forget")
    if plot is not None and sweep is None:
        raise typer.BadParameter("draws a sweep: give --sweep too", param_hint="--plot")
    row, limits = _limits(sweep) if sweep else ("", [])
    registry = load(settings.config, environ=settings.environ)
    seconds = 0 if log_since == "0" else duration_seconds(log_since, option="--log-since")
    options = PlanOptions(benchmark, deviations, row, limits, plot, drop_feedback, dry_run, seconds)
    report = make_plan(settings, registry, store, scores, options)
    print_json(report) if json else show_plan(report, scores, is_dry_run=dry_run)


def _clear_plan(store: ArtifactStore, json: bool) -> None:
    store.clear(by="plan", why="--forget")
    note = "the assignment of experts.yaml is in use; running gateways apply it soon"
    print_result({"assignment": None, "note": note}, note, json=json)


def _limits(text: str) -> tuple[str, list[float]]:
    """The budget row and the limits of --sweep."""
    row, _, limits = text.partition("=")
    if row not in BUDGET_ROWS:
        raise typer.BadParameter(f"unknown row {row!r}; known: {', '.join(BUDGET_ROWS)}", param_hint="--sweep")
    try:
        return row, [float(limit) for limit in limits.split(",")]
    except ValueError:
        raise typer.BadParameter(
            "write ROW=LIMIT,LIMIT,... such as mean_active_b=2,4,8", param_hint="--sweep"
        ) from None


def show_plan(report: Mapping[str, Any], scores: Path, *, is_dry_run: bool) -> None:
    """Print the report; `scores` is the folder that the advice to run `coe score` names."""
    print_line(f"{'category':20} {'expert':16} {'runner-up':16} margin")
    for row in report["assignment"]:
        margin = "pinned" if row["pinned"] else f"{row['margin']:6.3f}{_margin_error(row)}"
        print_line(f"{row['category']:20} {row['expert']:16} {row['runner_up'] or '-':16} {margin}")
    for line in (*_left_out(report["left_out"], scores), *_feedback(report["feedback"])):
        print_line(line)
    print_line(
        f"\nplanned quality {report['quality']:.4f}; " + ", ".join(f"{k} {v:.4g}" for k, v in report["used"].items())
    )
    print_line(f"\n{'expert':16} {'price':>8}  quality lost without it")
    for name, price in report["prices"].items():
        value = report["value_of_expert"].get(name, "not found in time")
        lost = value if isinstance(value, str) else "no plan without it" if value is None else f"{value:.4f}"
        print_line(f"{name:16} {price:8.4f}  {lost}")
    for line in against_lines(report["against"]):
        print_line(line)
    if names := report["assumed_tokens"]:
        print_line(
            f"assumed: {ASSUMED_INPUT_TOKENS} input and {ASSUMED_OUTPUT_TOKENS} output tokens a request to "
            f"{', '.join(names)}, whose tokens were not measured; coe score measures them"
        )
    if logged := report["uses"]["logged"]:
        print_line(f"uses: tokens, costs and times also come from {logged} requests in the routing log")
    print_line(_residual(report["residual"]))
    for line in (*_sweep(report), *(_gate(report["gate"]) if "gate" in report else ())):
        print_line(line)
    print_line(
        "\nthe assignment in use is unchanged" if is_dry_run else "\nthe plan is in use; running gateways apply it soon"
    )


def _margin_error(row: Mapping[str, Any]) -> str:
    """The paired standard error of a margin, and whether the probes show no difference; empty if it is unknown."""
    if (error := row["margin_error"]) is None:
        return ""
    level = " level" if Difference(row["margin"], error).verdict == "level" else ""
    return f" ± {error:.3f}{level}"


def against_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The plan, which is the first row, against each single expert, a line each."""
    lines = [f"\n{'this plan against':20} {'quality':>8} {'cost':>10}  (US dollars per thousand requests)"]
    for row in rows:
        compared = _less_plan(row["less_plan"]) if row["expert"] else ""
        cost = "unknown" if row["cost"] is None else f"{row['cost']:.4g}"
        lines.append(f"{row['expert'] or 'this plan':20} {row['quality']:8.4f} {cost:>10}{compared}")
    return lines


def _less_plan(found: Mapping[str, Any]) -> str:
    if found["standard_error"] is None:
        return ""
    return f"  {found['difference']:+.4f} ± {found['standard_error']:.4f} {found['verdict']}"


def _left_out(found: Mapping[str, Any], scores: Path) -> list[str]:
    """The parts that the plan leaves out, a line each, with the command that scores them."""
    lines = []
    if experts := found["experts"]:
        options = " ".join(f"--expert {name}" for name in experts)
        lines.append(
            f"left out: {', '.join(experts)}, without usable scores; requests by name, pins and exploration reach "
            f"them. To score: coe score PROBES --out {scores} {options}"
        )
    for category, expert in found["categories"].items():
        lines.append(f"left out: {category}, pinned to {expert}, which has no scores; {expert} answers it")
    for category, count in found["undeclared"].items():
        lines.append(f"left out: {count} prompts of {category}, which experts.yaml does not declare")
    if unprobed := found["unprobed"]:
        lines.append(f"estimated: {', '.join(unprobed)}, without probes; add probes of them and run coe score again")
    return [f"\n{lines[0]}", *lines[1:]] if lines else []


def _feedback(found: Mapping[str, Sequence[str]]) -> list[str]:
    """The categories whose feedback is kept in the plan, and those whose feedback it drops."""
    lines = []
    if kept := found["kept"]:
        lines.append(f"kept from feedback: {', '.join(kept)} (moved by coe retrain; --drop-feedback plans without it)")
    if dropped := found["dropped"]:
        lines.append(f"dropped: the feedback on {', '.join(dropped)}, which coe retrain had moved")
    return lines


def _residual(found: Mapping[str, Any]) -> str:
    """Report if the texts of requests select experts beyond their categories, with the evidence."""
    gain = f" ({found['gain']:+.4f} ± {found['error']:.4f})" if found["error"] else ""
    return f"residual: not used: {found['refused']}{gain}" if found["refused"] else f"residual: used{gain}"


def _sweep(report: Mapping[str, Any]) -> list[str]:
    """A line for each limit, efficient plans marked, and the limits that no plan keeps."""
    lines = [f"\n{'limit':>10} {'quality':>8}  hosted"] if report["sweep"] or report["sweep_impossible"] else []
    for row in report["sweep"]:
        mark = "*" if row["efficient"] else " "
        lines.append(f"{row['limit']:10.4g} {row['quality']:8.4f}{mark} {', '.join(row['hosted'])}")
    return [*lines, *(f"{limit:10.4g} cannot be kept" for limit in report["sweep_impossible"])]


def _gate(report: Mapping[str, Any]) -> list[str]:
    lines = [f"\n{'retrieval':16} {'never':>7} {'always':>7} {'gated':>7} {'opened':>7} {'tokens saved':>13}"]
    for name, found in {**report["experts"], "all": report["all"]}.items():
        quality = " ".join(f"{found[policy]:7.3f}" for policy in ("never", "always", "gated"))
        lines.append(f"{name:16} {quality} {found['opened']:7.1%} {found['saved']:13.1%}")
    return lines


Version = Annotated[str | None, typer.Argument(help="[default: the one in use]")]
MAX_LINE_CHARACTERS = 10_000
"""Longer input lines are read in parts."""


def solve_lines(version: Version = None, config: Config = None) -> None:
    """Solve a plan again under other budgets.

    Each line on standard input is a JSON object of budget rows, such as {"memory_gb": 24}, that replace the declared
    budget. Each line on standard output is the plan, or the error.
    """
    keep_stdout_clean()
    settings = settings_for(config)
    store = ArtifactStore(settings.artifacts, "assignment")
    version = version or store.in_use()
    if version is None:
        raise ArtifactError("solve: no plan was made from scores yet; run `coe plan`")
    plan, registry = Plan.read(store.published(version).folder), load(settings.config, environ=settings.environ)
    problem, traffic = present_problem(plan, plan.declaration(registry)), plan.traffic
    if traffic is not None:
        traffic = select(traffic, plan.problem.categories, problem.categories, missing=0.0)
    for answer in answers(iter(lambda: sys.stdin.readline(MAX_LINE_CHARACTERS), ""), problem, traffic):
        print_json(answer)


def answers(lines: Iterable[str], problem: Problem, traffic: NDArray[np.float64] | None) -> Iterator[dict[str, Any]]:
    """{"plan": ...} or {"error": ...} for each line."""
    for line in lines:
        try:
            limited = replace(problem, budget=_budget(line))
            plan = plan_to_json(limited, solve(limited, traffic=traffic))
            yield {"plan": {"budget": limited.budget} | plan}
        except CoEError as error:
            yield {"error": str(error)}


def _budget(line: str) -> dict[str, float]:
    """Raises DataError for a line that is not a budget."""
    try:
        rows = orjson.loads(line)
        if not isinstance(rows, dict) or not set(rows) <= set(BUDGET_ROWS):
            raise ValueError
        return {row: float(limit) for row, limit in rows.items() if limit is not None}
    except (TypeError, ValueError):
        raise DataError(f"solve: each line must be a JSON object with keys from {', '.join(BUDGET_ROWS)}") from None
