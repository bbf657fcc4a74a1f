"""Draws images of a benchmark; the file suffix gives the format.

All drawing is without pyplot, so that no display and no global state is needed. Raises CoEError without matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from coe.errors import CoEError


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


def _figure() -> tuple[Any, Any]:
    try:
        module = import_module("matplotlib.figure")
    except ImportError as error:
        raise CoEError("plot: matplotlib is not installed; install it, or leave the image out") from error
    figure = module.Figure(figsize=(8, 5), layout="constrained")
    return figure, figure.add_subplot()
