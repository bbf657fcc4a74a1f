"""Prints the report of `coe plan` on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coe.terminal import print_line


def show_plan(report: Mapping[str, Any], scores: Path, *, is_dry_run: bool) -> None:
    """Print the report; `scores` is the folder that the advice to run `coe score` names."""
    print_line(f"{'category':20} {'expert':16} {'runner-up':16} margin")
    for row in report["assignment"]:
        margin = "pinned" if row["pinned"] else f"{row['margin']:6.3f}"
        print_line(f"{row['category']:20} {row['expert']:16} {row['runner_up'] or '-':16} {margin}")
    for line in (*_left_out(report["left_out"], scores), *_feedback(report["feedback"])):
        print_line(line)
    print_line(
        f"\nplanned quality {report['quality']:.4f}; " + ", ".join(f"{k} {v:.4g}" for k, v in report["used"].items())
    )
    print_line(f"\n{'expert':16} {'price':>8}  quality lost without it")
    for name, price in report["prices"].items():
        print_line(f"{name:16} {price:8.4f}  {_marginal_value(report['value_of_expert'], name)}")
    print_line(f"\n{'this plan against':20} {'quality':>8} {'cost':>10}  (US dollars per thousand requests)")
    for row in report["against"]:
        print_line(f"{row['expert'] or 'this plan':20} {row['quality']:8.4f} {row['cost']:10.4g}")
    for line in (*_sweep(report), *(_gate(report["gate"]) if "gate" in report else ())):
        print_line(line)
    print_line(
        "\nthe assignment in use is unchanged" if is_dry_run else "\nthe plan is in use; running gateways apply it soon"
    )


def _marginal_value(values: Mapping[str, float | None], name: str) -> str:
    if name not in values:
        return "not found in time"
    value = values[name]
    return "no plan without it" if value is None else f"{value:.4f}"


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
    if moved := found["moved_by_scores"]:
        lines.append(f"moved by the scores, in spite of feedback: {', '.join(moved)}")
    if dropped := found["dropped"]:
        lines.append(f"dropped: the feedback on {', '.join(dropped)}, which coe retrain had moved")
    return lines


def _sweep(report: Mapping[str, Any]) -> list[str]:
    """A line for each limit, efficient plans marked, and the limits that no plan keeps."""
    infeasible, lines = report["sweep_impossible"], []
    if report["sweep"] or infeasible:
        lines.append(f"\n{'limit':>10} {'quality':>8}  hosted")
    for row in report["sweep"]:
        mark = "*" if row["efficient"] else " "
        lines.append(f"{row['limit']:10.4g} {row['quality']:8.4f}{mark} {', '.join(row['hosted'])}")
    if infeasible:
        limits, smallest = ", ".join(f"{limit:g}" for limit in infeasible["limits"]), infeasible["smallest"]
        feasible = "" if smallest is None else f"; the smallest feasible limit is {smallest:.4g}"
        lines.append(f"{infeasible['row']} {limits} cannot be kept{feasible}")
    return lines


def _gate(report: Mapping[str, Any]) -> list[str]:
    lines = [f"\n{'retrieval':16} {'never':>7} {'always':>7} {'gated':>7} {'opened':>7} {'tokens saved':>13}"]
    for name, found in {**report["experts"], "all": report["all"]}.items():
        quality = " ".join(f"{found[policy]:7.3f}" for policy in ("never", "always", "gated"))
        lines.append(f"{name:16} {quality} {found['opened']:7.1%} {found['saved']:13.1%}")
    return lines
