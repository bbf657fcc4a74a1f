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
from coe.errors import ArtifactError, CoEError, DataError
from coe.measuring.quality import Difference
from coe.planning.job.plan import PlanOptions, make_plan, plan_to_json
from coe.planning.plan import Plan
from coe.planning.problem import BUDGET_ROWS, Problem
from coe.planning.solver import solve
from coe.planning.uses import ASSUMED_INPUT_TOKENS, ASSUMED_OUTPUT_TOKENS
from coe.registry import load
from coe.reports.report import ages
from coe.terminal import print_json

Scores = Annotated[Path | None, typer.Argument(help="Folder with prompts, scores and models, from `coe score`.")]
Forget = Annotated[bool, typer.Option("--forget", help="Return to the assignment declared in experts.yaml.")]
DropFeedback = Annotated[
    bool,
    typer.Option("--drop-feedback", help="Plan on the scores alone, without the ratings."),
]
LogSince = Annotated[
    str, typer.Option("--log-since", help="Also measure uses in the routing log since then (30d, 12h); 0 for none.")
]


def plan(
    scores: Scores = None,
    benchmark: Benchmark = None,
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
        store.clear(by="plan", why="--forget")
        note = "the assignment of experts.yaml is in use; running gateways apply it soon"
        print_result({"assignment": None, "note": note}, note, json=json)
        return
    if scores is None:
        raise typer.BadParameter("give the folder of scores, or --forget")
    registry = load(settings.config, environ=settings.environ)
    seconds = 0 if log_since == "0" else duration_seconds(log_since, option="--log-since")
    options = PlanOptions(benchmark, drop_feedback, dry_run, seconds)
    report = make_plan(settings, registry, store, scores, options)
    print_result(report, plan_lines(report, scores, is_dry_run=dry_run), json=json)


def plan_lines(report: Mapping[str, Any], scores: Path, *, is_dry_run: bool) -> Iterator[str]:
    """Yield the report as text; `scores` is the folder that the advice to run `coe score` names."""
    assignment, against = comparison(report)
    yield assignment
    yield from _notes(report, scores)
    yield ages(report["measured_at"], report["demoted"])
    used = ", ".join(f"{name} {value:.4g}" for name, value in report["used"].items())
    yield f"\nplanned quality {report['quality']:.4f}; {used}\n"
    losses = {name: "no plan without it" if lost is None else lost for name, lost in report["value_of_expert"].items()}
    yield table(
        ("expert", ">price", "quality lost without it"),
        [
            (name, f"{price:.4f}", f"{lost:.4f}" if isinstance(lost, float) else lost)
            for name, price in report["prices"].items()
            for lost in [losses.get(name, "not found in time")]
        ],
    )
    yield against
    residual = report["residual"]
    gain = f" ({residual['gain']:+.4f} ± {residual['error']:.4f})" if residual["error"] else ""
    yield f"\nresidual: {'not used: ' + residual['refused'] if residual['refused'] else 'used'}{gain}"
    if "gate" in report:
        policies, shares = ("never", "always", "gated"), ("opened", "saved")
        gated = {**report["gate"]["experts"], "all": report["gate"]["all"]}
        rows = [
            (name, *(f"{found[one]:.3f}" for one in policies), *(f"{found[one]:.1%}" for one in shares))
            for name, found in gated.items()
        ]
        yield "\n" + table(("retrieval", ">never", ">always", ">gated", ">opened", ">tokens saved"), rows)
    yield (
        "\nthe assignment in use is unchanged" if is_dry_run else "\nthe plan is in use; running gateways apply it soon"
    )


def comparison(report: Mapping[str, Any]) -> tuple[str, str]:
    """Return two tables: the expert of each category, and the plan next to each single expert."""
    columns = ("category", "expert", ">quality", ">probes", "runner-up", "margin")
    rows = [
        (row["category"], row["expert"], _interval(row), f"{row['probes']:.0f}", row["runner_up"], _margin(row))
        for row in report["assignment"]
    ]
    return table(columns, rows), against_table(report["against"])


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['quality']:.3f} ± {row['error']:.3f}"


def _margin(row: Mapping[str, Any]) -> str:
    """The margin with its paired standard error, and whether the probes show no difference."""
    if row["pinned"]:
        return "pinned"
    if (error := row["margin_error"]) is None:
        return f"{row['margin']:.3f}"
    level = " level" if Difference(row["margin"], error).verdict == "level" else ""
    return f"{row['margin']:.3f} ± {error:.3f}{level}"


def against_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the plan, which is the first row, next to each single expert; costs are US dollars."""
    cells = []
    for row in rows:
        less = row["less_plan"] if row["expert"] else {"standard_error": None}
        error = less["standard_error"]
        compared = "" if error is None else f"{less['difference']:+.4f} ± {error:.4f} {less['verdict']}"
        cost = "unknown" if row["cost"] is None else f"{row['cost']:.4g}"
        latency = None if row.get("latency_ms") is None else f"{row['latency_ms'] / 1000:.1f} s"
        cells.append((row["expert"] or "this plan", f"{row['quality']:.4f}", cost, latency, compared))
    return "\n" + table(("this plan against", ">quality", ">$ per 1000", ">latency", "less this plan"), cells)


def _notes(report: Mapping[str, Any], scores: Path) -> Iterator[str]:
    """Yield what the plan leaves out, assumes and keeps, a line each, with the remedy."""
    left_out, feedback = report["left_out"], report["feedback"]
    if experts := left_out["experts"]:
        options = " ".join(f"--expert {name}" for name in experts)
        yield (
            f"left out: {', '.join(experts)}, without usable scores; requests by name, pins and exploration reach "
            f"them. To score: coe score PROBES --out {scores} {options}"
        )
    for category, expert in left_out["categories"].items():
        yield f"left out: {category}, pinned to {expert}, which has no scores; {expert} answers it"
    for category, count in left_out["undeclared"].items():
        yield f"left out: {count} prompts of {category}, which experts.yaml does not declare"
    if unprobed := left_out["unprobed"]:
        yield f"estimated: {', '.join(unprobed)}, without probes; add probes of them and run coe score again"
    if kept := feedback["kept"]:
        yield f"kept from feedback: {', '.join(kept)} (moved by coe retrain; --drop-feedback plans without it)"
    if dropped := feedback["dropped"]:
        yield f"dropped: the feedback on {', '.join(dropped)}, which coe retrain had moved"
    if names := report["assumed_tokens"]:
        yield (
            f"assumed: {ASSUMED_INPUT_TOKENS} input and {ASSUMED_OUTPUT_TOKENS} output tokens a request to "
            f"{', '.join(names)}, whose tokens were not measured; coe score measures them"
        )
    if logged := report["uses"]["logged"]:
        yield f"uses: tokens, costs and times also come from {logged} requests in the routing log"


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
    plan = Plan.read(store.published(version).folder)
    for answer in answers(iter(lambda: sys.stdin.readline(MAX_LINE_CHARACTERS), ""), plan.problem, plan.traffic):
        print_json(answer)


def answers(lines: Iterable[str], problem: Problem, traffic: NDArray[np.float64] | None) -> Iterator[dict[str, Any]]:
    """Yield {"plan": ...} or {"error": ...} for each line; a limit that is not above 0 is an error too."""
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
