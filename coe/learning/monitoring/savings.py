"""Compares the plan in use with always calling one expert, on the requests of the routing log.

Quality is the plan's estimate from scores, dollars follow the tokens that the log measured at current prices. Both
are computed for the categories of the same logged requests. `coe status` reports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.learning.estimation.logged_uses import BILLED, LoggedUses
from coe.mapping import MeasuredUses, PublishedPlan
from coe.mapping.assignment import Assignment
from coe.mapping.uses import scaled_like_members
from coe.registry import Registry

Array = NDArray[np.float64]
ROUTING_BIAS = (
    "tokens of an expert are those of the requests that were routed to it; other requests may use more or less"
)
LABELS = "quality is estimated from scored probes, by the router's category of each request, not from users' ratings"


@dataclass(frozen=True, slots=True, eq=False)
class PlanQuality:
    """Estimated quality by category and column of a plan, and its standard errors, shape (n_categories, n_columns).

    `paired_error` is that of the difference to the planned column of the category, of plain means on the prompts that
    both answered; NaN where unknown.
    """

    estimate: Array
    error: Array
    paired_error: Array

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlanQuality:
        """Parse the content of plan.json. Raises KeyError, TypeError or ValueError."""
        estimate, error = (np.array(data[name], dtype=np.float64) for name in ("estimate", "error"))
        paired = data.get("paired_error")
        return cls(estimate, error, np.full(error.shape, np.nan) if paired is None else np.array(paired, np.float64))


def billed(logged: LoggedUses) -> dict[str, Any]:
    """Return the recorded cost of the logged requests, and how many of them have a known cost."""
    names = sorted({name for _, name in logged.requests})
    if not names:
        return {"requests": 0, "with_cost": 0, "dollars": 0.0}
    table = logged.table(BILLED, names)
    dollars = float((np.nan_to_num(table.mean) * table.count).sum())
    return {"requests": sum(logged.requests.values()), "with_cost": int(table.count.sum()), "dollars": dollars}


def savings(
    logged: LoggedUses, plan: PublishedPlan, quality: PlanQuality, *, registry: Registry, effective: Assignment
) -> dict[str, Any]:
    """Return the comparison on the logged requests of planned categories; JSON-able, dollars of all these requests.

    `effective` is the assignment in use. `always` has a row for each expert that the plan measured:
    `difference` is the plan's quality less the expert's, with its standard `error`; `saved` are the expert's dollars
    less the plan's.
    """
    assert plan.record is not None
    planned, present = plan.record.problem, dict(zip(effective.categories, effective.choice, strict=True))
    rows = [row for row, name in enumerate(planned.categories) if present.get(name) in planned.experts]
    categories = [planned.categories[row] for row in rows]
    requests = np.array([sum(logged.requests[name, arm] for arm in _arms(logged)) for name in categories], np.float64)
    known = {*registry.expert_names, *plan.arms(registry)}
    columns = [column for column, name in enumerate(planned.experts) if name in known]
    names = [planned.experts[column] for column in columns]
    dollars = _dollars(logged, plan, registry, categories, names)
    cells = np.ix_(rows, columns)
    part = PlanQuality(quality.estimate[cells], quality.error[cells], quality.paired_error[cells])
    chosen = np.array([names.index(present[name]) for name in categories], dtype=np.int64)
    as_planned = np.array([plan.assignment.choice[plan.assignment.categories.index(name)] for name in categories])
    is_planned = as_planned == np.array([present[name] for name in categories])
    report = _compared(part, dollars, requests, chosen, is_planned)
    singles = [(column, name) for column, name in enumerate(names) if name in registry.expert_names]
    return {
        "requests": int(requests.sum()),
        "unplanned": int(sum(logged.requests.values()) - requests.sum()),
        "plan": report["plan"],
        "always": [{"expert": name, **report["always"][column]} for column, name in singles],
        "unmeasured": [name for name in registry.expert_names if name not in names],
    }


def _arms(logged: LoggedUses) -> set[str]:
    return {arm for _, arm in logged.requests}


def _dollars(
    logged: LoggedUses, plan: PublishedPlan, registry: Registry, categories: Sequence[str], names: Sequence[str]
) -> Array:
    """Return the dollars of one request by category and column; NaN where unknown.

    Those of an arm are the planned ones, scaled like the dollars of its members: the log's own requests of an arm are
    of the prompts that were routed to it, at former prices.
    """
    assert plan.record is not None
    problem = plan.record.problem
    measured = plan.record.measured_uses or MeasuredUses.nothing().over(problem.categories, problem.experts)
    tables = {name: one.over(measured.categories, measured.experts) for name, one in logged.tables(names).items()}
    updated = measured.updated(tables)
    present = replace(plan, record=replace(plan.record, measured_uses=updated))
    cost, then = present.uses(registry, categories, names).cost, problem.uses.cost
    if cost is None or then is None:
        return np.full((len(categories), len(names)), np.nan)
    rows = [problem.categories.index(name) for name in categories]
    arms = [name for name in names if name not in registry.expert_names]
    members = [[names.index(one) for one in problem.members[arm]] for arm in arms]
    calls = [problem.uses.calls.get(arm, np.ones((len(problem.categories), 1)))[rows] for arm in arms]
    before = then[np.ix_(rows, [problem.experts.index(name) for name in names])]
    first = len(names) - len(arms)
    scaled = scaled_like_members(cost[:, first:], members, calls, before=before, after=cost)
    return np.hstack((cost[:, :first], scaled)) / 1000


def _compared(
    quality: PlanQuality, dollars: Array, requests: Array, chosen: NDArray[np.int64], is_planned: NDArray[np.bool_]
) -> dict[str, Any]:
    """Return the quality and dollars of the chosen columns, and the difference to each column, weighted by requests.

    Errors are paired where the chosen column is the planned one; elsewhere the cells count as independent, which is an
    upper bound for experts that were scored on the same prompts.
    """
    total, index = max(float(requests.sum()), 1.0), np.arange(len(chosen))
    share = requests / total
    own, own_dollars = quality.estimate[index, chosen], dollars[index, chosen]
    plan = {"quality": float(share @ own), "dollars": _known(float(requests @ own_dollars))}
    rows = []
    for column in range(quality.estimate.shape[1]):
        other = quality.estimate[:, column]
        apart = np.sqrt(quality.error[index, chosen] ** 2 + quality.error[:, column] ** 2)
        paired = quality.paired_error[:, column]
        error = np.where(is_planned & np.isfinite(paired), paired, apart)
        error = np.where(chosen == column, 0.0, error)
        spent = float(requests @ dollars[:, column])
        rows.append(
            {
                "quality": float(share @ other),
                "difference": float(share @ (own - other)),
                "error": float(np.sqrt((share**2) @ (error**2))),
                "dollars": _known(spent),
                "saved": _known(spent - float(requests @ own_dollars)),
            }
        )
    return {"plan": plan, "always": rows}


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
