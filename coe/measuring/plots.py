"""Draws images of a benchmark, a budget sweep, a training and a learning round; the file suffix gives the format.

All drawing is without pyplot, so that no display and no global state is needed. Raises CoEError without matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from coe.errors import CoEError
from coe.planning import ParetoRow

RELIABILITY, RISK_COVERAGE = "reliability.png", "risk_coverage.png"


def plot_benchmark(report: Mapping[str, Any], path: Path) -> None:
    """Draw quality against mean active parameters: the frontier and every method of known size; bars without sizes."""
    figure, axes = _figure()
    methods = {name: found for name, found in report["methods"].items() if name != "random"}
    sized = {name: found for name, found in methods.items() if found["mean_active_b"] is not None}
    if report["frontier"]:
        points = sorted(report["frontier"], key=lambda point: point["mean_active_b"])
        axes.plot([p["mean_active_b"] for p in points], [p["mean"] for p in points], marker=".", label="CoE, by price")
        for name, found in sized.items():
            axes.errorbar(
                found["mean_active_b"], found["mean"], yerr=found["standard_error"], fmt="o", capsize=2, label=name
            )
        axes.set_xlabel("mean active parameters, billions")
        axes.set_ylabel("mean score")
        axes.legend(fontsize="small")
    else:
        axes.barh(list(methods), [found["mean"] for found in methods.values()])
        axes.set_xlabel("mean score")
    axes.set_title(f"{report['benchmark']}: {report['models']} models, {report['prompts']} prompts")
    figure.savefig(path)


def plot_sweep(rows: Sequence[ParetoRow], *, row: str, path: Path) -> None:
    """Draw planned quality against the limit of the swept budget row; efficient plans are joined."""
    figure, axes = _figure()
    best = [point for point in rows if point.efficient]
    axes.plot([p.limit for p in best], [p.quality for p in best], marker="o", label="efficient")
    rest = [point for point in rows if not point.efficient]
    axes.plot([p.limit for p in rest], [p.quality for p in rest], linestyle="", marker="x", label="no better")
    axes.set_xlabel(row)
    axes.set_ylabel("planned quality")
    axes.legend(fontsize="small")
    figure.savefig(path)


def plot_training(metrics: Mapping[str, Any], folder: Path) -> None:
    """Draw the held-out metrics of `routers.build`: reliability.png and risk_coverage.png in `folder`.

    Draws nothing without matplotlib: training must not fail for an image, and the numbers are in `metrics`.
    """
    if find_spec("matplotlib") is None:
        return
    figure, axes = _figure()
    bins = metrics["reliability"]
    axes.plot([0, 1], [0, 1], color="0.7", label="calibrated")
    axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], marker="o", label="held-out prompts")
    axes.set(xlabel="confidence", ylabel="accuracy", title=f"Reliability, ECE {metrics['ece']:.3f}")
    axes.legend(fontsize="small")
    _save(figure, folder / RELIABILITY)
    figure, axes = _figure()
    curve = metrics["risk_coverage"]
    axes.plot([p["coverage"] for p in curve], [p["risk"] for p in curve], marker=".")
    kept = 1 - metrics["rejected"]
    axes.axvline(kept, color="0.7", label=f"general below confidence {metrics['confidence_threshold']:.2f}")
    axes.set(xlabel="coverage, most confident first", ylabel="error rate", title="Risk and coverage", ylim=(0, None))
    axes.legend(fontsize="small")
    _save(figure, folder / RISK_COVERAGE)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None})  # the bytes are part of a digest, so no version


def _figure(*, width: int = 8) -> tuple[Any, Any]:
    figure = _empty_figure(width=width, height=5)
    return figure, figure.add_subplot()


def _empty_figure(*, width: int, height: int) -> Any:
    try:
        module = import_module("matplotlib.figure")
    except ImportError as error:
        raise CoEError("plot: matplotlib is not installed; install it, or leave the image out") from error
    return module.Figure(figsize=(width, height), layout="constrained")


def plot_round(report: Mapping[str, Any], path: Path) -> None:
    """Draw the report of a plan or router round: the evidence, and the off-policy estimates where it has them."""
    figure = _empty_figure(width=9, height=4)
    *earned, gained = figure.subplots(1, 1 + ("estimates" in report), squeeze=False)[0]
    for axes in earned:
        _estimates(axes, report["estimates"])
    _evidence(gained, report["evidence"])
    figure.suptitle(f"round {report['round']}: {'promoted' if report['promoted'] else 'kept'} ({report['reason']})")
    figure.savefig(path)


def _estimates(axes: Any, found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    for shift, (who, methods) in zip((-0.1, 0.1), found.items(), strict=False):
        ends = [(e["value"] - e["low"], e["high"] - e["value"]) for e in methods.values()]
        places = [place + shift for place in range(len(methods))]
        axes.errorbar(
            places, [e["value"] for e in methods.values()], yerr=list(zip(*ends, strict=True)), fmt="o", label=who
        )
        axes.set_xticks(range(len(methods)), list(methods))
        axes.legend(fontsize="small")
    axes.set_ylabel("mean reward, 95 %")
    axes.set_title("off-policy estimates" if found else "no rated requests of the current assignment")


def _evidence(axes: Any, evidence: list[Mapping[str, Any]]) -> None:
    rows = [(one["source"], one["overall"]) for one in evidence]
    rows += [(f"{one['source']}: {name}", part) for one in evidence for name, part in one["guarded"].items()]
    axes.errorbar(
        [part["value"] for _, part in rows], range(len(rows)), xerr=[part["error"] for _, part in rows], fmt="o"
    )
    axes.axvline(0.0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize="small")
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_xlabel("candidate less current, one standard error")
    axes.set_title("evidence")


def plot_calibration(bins: list[dict[str, float]], path: Path) -> None:
    """Draw probability against frequency as an image (.png or .svg)."""
    figure, axes = _figure(width=5)
    axes.plot([0, 1], [0, 1], color="0.7")
    axes.plot([one["probability"] for one in bins], [one["helped"] for one in bins], marker="o")
    axes.set(xlabel="probability that passages help", ylabel="share that they helped", title="Retrieval gate")
    figure.savefig(path)
