"""What a request to each expert costs in quality: the duals of the budget rows, the hosted experts being fixed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coe.mapping.problem import MEAN_ROWS, Array, Problem

CUTS = 400
"""Most rounds of the search for the duals; one row takes about ten."""
TOLERANCE = 1e-6
"""Duality gap, in quality, at which the search ends."""
SLACK = 0.01
"""Share of a limit by which the sample of traffic may exceed it."""
RAISES = 80
"""Most raises of prices that do not keep the limits; the steps grow to any size within that many."""
DEAREST = 1000.0
"""Largest price, in quality, of using up a whole row at once: far above any quality that could be gained."""


def prices(
    problem: Problem, *, hosted: NDArray[np.bool_], traffic: NDArray[np.floating] | None
) -> tuple[Array, dict[str, float]]:
    """(price of each expert, dual of each row). `max_share` has a dual for every expert, named `max_share:EXPERT`.

    `traffic`, shape (n_requests, n_categories), is a sample of posteriors as the router gives them. What decisions then
    charge keeps the budgets on mixed posteriors too, where prices found on pure categories would tip whole categories
    over at once. Without traffic every request belongs to one category.
    """
    names, uses, limits = rows(problem)
    if not names:
        return np.zeros(len(problem.experts)), {}
    gain, mass = _requests(problem, hosted, traffic)
    duals = _dearer(gain, mass, uses, limits, lagrangian(gain, mass, uses, limits))
    price = np.where(hosted, duals @ np.where(np.isfinite(uses), uses, 0.0), 0.0)
    return price, dict(zip(names, duals.tolist(), strict=True))


def rows(problem: Problem) -> tuple[list[str], Array, Array]:
    """The rows that limit a mean over requests: names, uses (n_rows, n_experts) and limits (n_rows,)."""
    limits = problem.budget.rows()
    names = [row for row in MEAN_ROWS if row in limits]
    uses = [problem.use(row) for row in names]
    values = [limits[row] for row in names]
    if "max_share" in limits:
        names += [f"max_share:{expert}" for expert in problem.experts]
        uses += list(np.eye(len(problem.experts)))
        values += [limits["max_share"]] * len(problem.experts)
    return names, np.array(uses).reshape(len(names), len(problem.experts)), np.array(values)


def _requests(problem: Problem, hosted: NDArray[np.bool_], traffic: NDArray[np.floating] | None) -> tuple[Array, Array]:
    """Quality of each expert for each request (-inf: may not serve it) and how often each request comes."""
    quality = np.where(hosted[None, :], problem.quality, -np.inf)
    if traffic is None:
        return quality, problem.weights
    may = np.isfinite(quality)
    gain = traffic.astype(np.float64) @ np.where(may, quality, 0.0)
    return np.where(may[traffic.argmax(axis=1)], gain, -np.inf), np.full(len(traffic), 1.0 / len(traffic))


def _dearer(gain: Array, mass: Array, uses: Array, limits: Array, duals: Array) -> Array:
    """Prices raised, row by row and by as little as it takes, until every request's own choice keeps the limits.

    At the exact duals a crowd of like requests (a whole category of which the router is sure) may be indifferent;
    all of them would fall on the same side, and that must not be the dear one.
    """
    step, raised = 1e-4, duals
    for _ in range(RAISES):
        choice = (gain - raised @ uses).argmax(axis=1)
        over = uses[:, choice] @ mass > (1 + SLACK) * limits
        if not over.any():
            return raised
        raised = raised + np.where(over, step * (raised + 0.01 / limits), 0.0)
        step *= 1.2
    return duals  # no price parts a crowd that is larger than the limit, and higher ones only drive it to and fro


def lagrangian(gain: Array, mass: Array, uses: Array, limits: Array) -> Array:
    """The duals of: share out requests of quality `gain` (n_requests, n_experts) and weight `mass` so that the mean
    quality is highest and the mean of each of `uses` (n_rows, n_experts) stays below its limit.

    They minimise a convex piecewise linear function of few variables; it is closed in by its tangents (Kelley's
    cutting planes), each found by letting every request choose at the prices tried.
    """
    from scipy.optimize import linprog

    count = len(limits)
    box = [(0.0, DEAREST / limit) for limit in limits]
    tangents, heights = np.empty((0, count)), np.empty(0)
    best, lowest, tried = np.zeros(count), np.inf, np.zeros(count)
    for _ in range(CUTS):
        value = gain - tried @ uses
        choice = value.argmax(axis=1)
        slope = limits - uses[:, choice] @ mass
        height = float(mass @ value[np.arange(len(choice)), choice] + tried @ limits)
        if height < lowest:
            best, lowest = tried, height
        tangents = np.vstack((tangents, slope))
        heights = np.append(heights, height - slope @ tried)
        master = linprog(
            np.append(np.zeros(count), 1.0),
            A_ub=np.column_stack((tangents, -np.ones(len(heights)))),
            b_ub=-heights,
            bounds=[*box, (None, None)],
            method="highs",
        )
        if lowest - master.fun <= TOLERANCE:
            break
        tried = master.x[:-1]
    return best
