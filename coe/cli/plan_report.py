"""The report of `coe plan`: what is planned, what is left out of it, and what each single expert would give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coe.cli.plan_gate import told
from coe.learning.evaluation.quality import Quality
from coe.mapping import Assignment, ParetoRow, PlanInputs, planned_quality, planned_use
from coe.mapping.score_table import ScoreTable
from coe.registry import Registry
from coe.terminal import say


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The parts of a declaration that a plan leaves out.

    `experts` have no usable scores. `categories` are pinned to one of these, which answers them without the plan.
    `undeclared` counts prompts of categories that experts.yaml does not declare. `unprobed` are planned categories
    without a prompt, whose quality is estimated from the other categories.
    """

    experts: tuple[str, ...]
    categories: Mapping[str, str]
    undeclared: Mapping[str, int]
    unprobed: tuple[str, ...]

    @classmethod
    def of(cls, registry: Registry, data: Quality, table: ScoreTable) -> LeftOut:
        """Between a declaration, the scores and the table that is planned on."""
        pinned = {name: registry.assignment[name] for name in registry.category_names if name not in table.categories}
        strange = Counter(name for name in data.categories if name not in registry.category_names)
        counts = dict(zip(table.categories, table.count.max(axis=1).tolist(), strict=True))
        return cls(data.unscored, pinned, dict(strange), tuple(name for name, count in counts.items() if not count))


def plan_report(
    basis: PlanInputs,
    assignment: Assignment,
    rows: Sequence[ParetoRow],
    values: Mapping[str, float | None],
    *,
    pins: Mapping[str, str],
) -> dict[str, Any]:
    """The plan as JSON. A pinned category has no margin: nothing was chosen there."""
    problem = basis.problem
    columns = zip(assignment.categories, assignment.choice, assignment.runner_up, assignment.margin, strict=True)
    return {
        "quality": planned_quality(problem, assignment),
        "used": planned_use(problem, assignment),
        "hosted": assignment.hosted,
        "assignment": [
            {
                "category": category,
                "expert": expert,
                "runner_up": second,
                "margin": None if category in pins else margin,
                "pinned": category in pins,
            }
            for category, expert, second, margin in columns
        ],
        "prices": dict(zip(assignment.experts, assignment.price.tolist(), strict=True)),
        "duals": dict(assignment.duals),
        "value_of_expert": values,
        "against": _against(basis, assignment),
        "sweep": [asdict(row) | {"used": dict(row.used)} for row in rows],
    }


def _against(basis: PlanInputs, assignment: Assignment) -> list[dict[str, Any]]:
    """The plan, then each single expert serving all planned categories: quality as the plan trusts it, and cost in US
    dollars per thousand requests. Pins and limits do not hold for single experts."""
    problem = basis.problem
    bounds = basis.table.lower(deviations=basis.deviations, pseudo_count=basis.pseudo_count)
    single = problem.weights @ bounds
    found: list[dict[str, Any]] = [
        {
            "expert": None,
            "quality": planned_quality(problem, assignment),
            "cost": planned_use(problem, assignment).get("mean_cost"),
        }
    ]
    for name, quality, cost in zip(problem.experts, single.tolist(), problem.use("mean_cost").tolist(), strict=True):
        found.append({"expert": name, "quality": quality, "cost": cost})
    return found


def show_plan(report: Mapping[str, Any], scores: Path, *, kept: bool) -> None:
    """Print the report; `scores` is the folder that `coe score` is advised for, `kept` says that nothing changed."""
    say(f"{'category':20} {'expert':16} {'runner-up':16} margin")
    for row in report["assignment"]:
        margin = "pinned" if row["pinned"] else f"{row['margin']:6.3f}"
        say(f"{row['category']:20} {row['expert']:16} {row['runner_up'] or '-':16} {margin}")
    for line in (*_left_out(report["left_out"], scores), *_learnt(report["learnt"])):
        say(line)
    say(f"\nplanned quality {report['quality']:.4f}; " + ", ".join(f"{k} {v:.4g}" for k, v in report["used"].items()))
    say(f"\n{'expert':16} {'price':>8}  quality lost without it")
    for name, price in report["prices"].items():
        say(f"{name:16} {price:8.4f}  {_lost(report['value_of_expert'], name)}")
    say(f"\n{'this plan against':20} {'quality':>8} {'cost':>10}  (US dollars per thousand requests)")
    for row in report["against"]:
        say(f"{row['expert'] or 'this plan':20} {row['quality']:8.4f} {row['cost']:10.4g}")
    if report["sweep"] or report["sweep_impossible"]:
        say(f"\n{'limit':>10} {'quality':>8}  hosted")
    for row in report["sweep"]:
        mark = "*" if row["efficient"] else " "
        say(f"{row['limit']:10.4g} {row['quality']:8.4f}{mark} {', '.join(row['hosted'])}")
    if impossible := report["sweep_impossible"]:
        limits, smallest = ", ".join(f"{limit:g}" for limit in impossible["limits"]), impossible["smallest"]
        enough = "" if smallest is None else f"; the smallest that would do is {smallest:.4g}"
        say(f"{impossible['row']} {limits} cannot be kept{enough}")
    for line in told(report["gate"]) if "gate" in report else ():
        say(line)
    say("\nthe assignment in use is unchanged" if kept else "\nthe plan is in use; running gateways take it over soon")


def _lost(values: Mapping[str, float | None], name: str) -> str:
    if name not in values:
        return "not found in time"
    value = values[name]
    return "no plan without it" if value is None else f"{value:.4f}"


def _left_out(found: Mapping[str, Any], scores: Path) -> list[str]:
    """The parts that the plan leaves out, a line each, with the command that scores them."""
    lines = []
    if experts := found["experts"]:
        words = " ".join(f"--expert {name}" for name in experts)
        lines.append(
            f"left out: {', '.join(experts)}, without usable scores; requests by name, pins and exploration reach "
            f"them. To score: coe score PROBES --out {scores} {words}"
        )
    for category, expert in found["categories"].items():
        lines.append(f"left out: {category}, pinned to {expert}, which has no scores; {expert} answers it")
    for category, count in found["undeclared"].items():
        lines.append(f"left out: {count} prompts of {category}, which experts.yaml does not declare")
    if unprobed := found["unprobed"]:
        lines.append(f"estimated: {', '.join(unprobed)}, without probes; add probes of them and run coe score again")
    return [f"\n{lines[0]}", *lines[1:]] if lines else []


def _learnt(found: Mapping[str, Sequence[str]]) -> list[str]:
    """The categories whose feedback is kept in the plan, and those whose feedback it drops."""
    lines = []
    if kept := found["kept"]:
        lines.append(f"kept from feedback: {', '.join(kept)} (moved by coe retrain; --drop-learnt plans without it)")
    if back := found["moved_by_scores"]:
        lines.append(f"moved by the scores, in spite of feedback: {', '.join(back)}")
    if dropped := found["dropped"]:
        lines.append(f"dropped: the feedback on {', '.join(dropped)}, which coe retrain had moved")
    return lines
