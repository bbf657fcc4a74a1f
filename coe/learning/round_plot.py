"""The image of a round of learning: what both assignments are estimated to earn, and the evidence for a change."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from coe.errors import CoEError


def plot_round(report: Mapping[str, Any], path: Path) -> None:
    """Draw a report as `round_report` or `router_report` makes it; the file's ending chooses the format (png, svg,
    pdf)."""
    try:
        module = import_module("matplotlib.figure")  # not pyplot, which keeps global state and looks for a screen
    except ImportError as error:
        raise CoEError("plot: matplotlib is not installed; install it, or leave the image out") from error
    figure = module.Figure(figsize=(9, 4), layout="constrained")
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
    axes.set_title("off-policy estimates" if found else "no request tells of the current assignment")


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
