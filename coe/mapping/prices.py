"""Prices of experts in units of quality: the duals of the budget rows, with the hosted experts fixed.

With the hosted set fixed, the plan is a linear program, whose duals are the prices of the budget rows. `decide()`
subtracts an expert's price from its expected quality, so that single requests keep the budget as the plan does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coe.mapping.problem import MEAN_ROWS, Array, Problem

MAX_CUTS = 400
"""Limit of the cutting planes; one row takes about ten."""
DUALITY_GAP = 1e-6
"""Gap in quality at which the duals count as optimal."""
LIMIT_SLACK = 0.01
"""Relative amount by which the traffic sample may exceed a limit."""
MAX_PRICE_RAISES = 80
"""Limit of price raises. The step grows with each raise, so these reach any price."""
MAX_ROW_PRICE = 1000.0
"""Largest price, in quality, of using a whole row: far above any possible gain in quality."""


def prices(
    problem: Problem, *, hosted: NDArray[np.bool_], traffic: NDArray[np.floating] | None
) -> tuple[Array, dict[str, float]]:
    """Return the price of each expert and the dual of each row; `max_share` has one per expert, `max_share:EXPERT`.

    `traffic`, shape (n_requests, n_categories), is a sample of the router's posteriors. Prices fitted to it keep the
    budget on mixed posteriors too, whereas prices for pure categories would move whole categories at once. Without
    traffic, every request belongs to one category.
    """
    names, uses, limits = mean_rows(problem)
    if not names:
        return np.zeros(len(problem.experts)), {}
    gain, mass = _requests(problem, hosted, traffic)
    duals = _raise_prices(gain, mass, uses, limits, lagrangian_duals(gain, mass, uses, limits))
    price = np.where(hosted, duals @ np.where(np.isfinite(uses), uses, 0.0), 0.0)
    return price, dict(zip(names, duals.tolist(), strict=True))


def mean_rows(problem: Problem) -> tuple[list[str], Array, Array]:
    """Return the rows that limit a mean over requests: names, uses (n_rows, n_experts), and limits (n_rows,)."""
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
    """Return the quality of each expert for each request (-inf: not allowed) and the weight of each request."""
    quality = np.where(hosted[None, :], problem.quality, -np.inf)
    if traffic is None:
        return quality, problem.weights
    may = np.isfinite(quality)
    gain = traffic.astype(np.float64) @ np.where(may, quality, 0.0)
    return np.where(may[traffic.argmax(axis=1)], gain, -np.inf), np.full(len(traffic), 1.0 / len(traffic))


def _raise_prices(gain: Array, mass: Array, uses: Array, limits: Array, duals: Array) -> Array:
    """Raise prices row by row, as little as possible, until the choices of single requests keep the limits.

    At the exact duals, many equal requests (a whole category of certain requests) may be indifferent between two
    experts. All of them then make the same choice, which must not be the one that exceeds the limit.
    """
    step, raised = 1e-4, duals
    for _ in range(MAX_PRICE_RAISES):
        choice = (gain - raised @ uses).argmax(axis=1)
        over = uses[:, choice] @ mass > (1 + LIMIT_SLACK) * limits
        if not over.any():
            return raised
        raised = raised + np.where(over, step * (raised + 0.01 / limits), 0.0)
        step *= 1.2
    return duals  # no price splits equal requests that exceed the limit; higher prices only move them back and forth


def lagrangian_duals(gain: Array, mass: Array, uses: Array, limits: Array) -> Array:
    """Return the duals of assigning requests to experts so that mean quality is highest within the limits.

    `gain` (n_requests, n_experts) is the quality, `mass` (n_requests,) the weight of each request, and the mean of each
    row of `uses` (n_rows, n_experts) must not exceed its limit. The duals minimise the Lagrangian dual function, which
    is convex and piecewise linear in few variables. Kelley's cutting planes bound it by its tangents; each follows from
    the requests' choices at the prices tried.
    """
    from scipy.optimize import linprog

    count = len(limits)
    box = [(0.0, MAX_ROW_PRICE / limit) for limit in limits]
    tangents, heights = np.empty((0, count)), np.empty(0)
    best, lowest, tried = np.zeros(count), np.inf, np.zeros(count)
    for _ in range(MAX_CUTS):
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
        if lowest - master.fun <= DUALITY_GAP:
            break
        tried = master.x[:-1]
    return best
