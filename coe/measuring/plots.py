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


def plot_against(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw mean quality against cost of a plan and of single experts, as `coe plan` compares them."""
    figure, axes = _figure()
    for row in rows:
        cost, is_plan = row["cost"] or 0.0, row["expert"] is None
        axes.plot(cost, row["estimate"], marker="*" if is_plan else "o", markersize=14 if is_plan else 7)
        latency = "" if row["latency_ms"] is None else f", {row['latency_ms'] / 1000:.1f} s"
        axes.annotate(
            ("this plan" if is_plan else row["expert"]) + latency,
            (cost, row["estimate"]),
            xytext=(8, 4),
            textcoords="offset points",
            fontweight="bold" if is_plan else "normal",
        )
    axes.margins(0.25, 0.15)
    axes.set(xlabel="US dollars per thousand requests", ylabel="mean quality")
    axes.set_title("This plan against each single expert")
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


def plot_calibration(bins: list[dict[str, float]], path: Path) -> None:
    """Draw probability against frequency as an image (.png or .svg)."""
    figure, axes = _figure(width=5)
    axes.plot([0, 1], [0, 1], color="0.7")
    axes.plot([one["probability"] for one in bins], [one["helped"] for one in bins], marker="o")
    axes.set(xlabel="probability that passages help", ylabel="share that they helped", title="Retrieval gate")
    figure.savefig(path)
