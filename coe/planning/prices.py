"""The prices of a plan: the duals of the rows that limit a mean over requests, times the experts' uses.

With its hosted experts fixed, a plan is a linear program, whose duals are the prices of the budget rows. `decide()`
subtracts an expert's expected price from its expected quality, so that single requests keep the budget as the plan
does. A request with posterior p uses p @ use[:, k] of expert k, where `use` has shape (n_categories, n_experts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.planning.grid import Array
from coe.planning.problem import MEAN_ROWS, Problem
from coe.planning.residual import Residual

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
SHARE_DUAL_PREFIX = "max_share:"
"""Prefix of the dual of an expert's share."""


@dataclass(frozen=True, slots=True, eq=False)
class MeanRows:
    """The budget rows that limit a mean over requests; `max_share` has one per expert, `max_share:EXPERT`.

    `limits` has shape (n_rows,). `uses` is sparse, of shape (n_rows, n_categories * n_experts): the use of one request
    by category and expert.
    """

    names: tuple[str, ...]
    limits: Array
    uses: Any
    shape: tuple[int, int]

    def price(self, duals: Array) -> Array:
        """Return the price by category and expert, shape (n_categories, n_experts), at a dual of each row."""
        return np.asarray(duals @ self.uses).reshape(self.shape)

    def mean_uses(self, traffic: Array, mass: Array, choice: NDArray[np.int64]) -> Array:
        """Return the use of each row if request i, of weight `mass[i]`, goes to expert `choice[i]`; shape (n_rows,)."""
        from scipy.sparse import csr_array

        count = len(choice)
        chosen = csr_array((mass, choice, np.arange(count + 1)), shape=(count, self.shape[1]))
        return np.asarray(self.uses @ (chosen.T @ traffic).T.ravel())


def mean_rows(problem: Problem) -> MeanRows:
    """Return the rows of a problem's budget that limit a mean over requests."""
    from scipy.sparse import csr_array, vstack

    limits = problem.budget
    names = [row for row in MEAN_ROWS if row in limits]
    parts = [csr_array(problem.use(row).reshape(1, -1)) for row in names]
    values = [limits[row] for row in names]
    if "max_share" in limits:
        experts = np.array(problem.experts)[~problem.is_arm].tolist()
        names += [f"{SHARE_DUAL_PREFIX}{expert}" for expert in experts]
        parts.append(share_rows(problem))
        values += [limits["max_share"]] * len(experts)
    uses = csr_array(vstack(parts)) if parts else csr_array((0, problem.quality.size))
    return MeanRows(tuple(names), np.array(values), uses, (len(problem.categories), len(problem.experts)))


def share_rows(problem: Problem) -> Any:
    """Return the calls of each expert that is not an arm, sparse, of shape (n_rows, n_categories * n_experts)."""
    from scipy.sparse import coo_array, csr_array

    row = np.cumsum(~problem.is_arm) - 1
    categories, width = np.arange(len(problem.categories)), len(problem.experts)
    entries = [(calls, np.full(len(calls), row[one]), categories * width + k) for one, k, calls in problem.calls()]
    calls, rows, cells = (np.concatenate(part) for part in zip(*entries, strict=True))
    return csr_array(coo_array((calls, (rows, cells)), shape=(int(row[-1]) + 1, problem.quality.size)))


def prices(
    problem: Problem,
    *,
    hosted: NDArray[np.bool_],
    traffic: NDArray[np.floating] | None,
    residual: Residual | None = None,
) -> tuple[Array, dict[str, float]]:
    """Return the prices, shape (n_categories, n_experts), and the dual of each row; see `MeanRows`.

    `traffic`, shape (n_requests, n_categories), is a sample of the router's posteriors. Prices fitted to it keep the
    budget on mixed posteriors too, whereas prices for pure categories would move whole categories at once. Without
    traffic, every request belongs to one category. With a `residual`, the traffic is its measured prompts, weighted as
    the problem's categories, since the residual of other requests is not known.
    """
    rows, quality = mean_rows(problem), np.where(hosted[None, :], problem.quality, -np.inf)
    if not rows.names:
        return np.zeros(rows.shape), {}
    if residual is not None:
        traffic = residual.posteriors
    if traffic is None:
        gain, mass, posteriors = quality, problem.weights, np.eye(len(problem.categories))
    else:
        may, posteriors = np.isfinite(quality), traffic.astype(np.float64)
        posteriors /= np.maximum(posteriors.sum(axis=1, keepdims=True), 1e-9)  # categories may be left out
        gain = np.where(may[posteriors.argmax(axis=1)], posteriors @ np.where(may, quality, 0.0), -np.inf)
        mass = np.full(len(traffic), 1.0 / len(traffic))
    if residual is not None:
        gain, mass = gain + residual.left_out, residual.mass(problem.weights)
    duals = _raise_prices(gain, mass, posteriors, rows, lagrangian_duals(gain, mass, posteriors, rows))
    return np.where(hosted[None, :], rows.price(duals), 0.0), dict(zip(rows.names, duals.tolist(), strict=True))


def _raise_prices(gain: Array, mass: Array, traffic: Array, rows: MeanRows, duals: Array) -> Array:
    """Raise prices row by row, as little as possible, until the choices of single requests keep the limits.

    At the exact duals, many equal requests (a whole category of certain requests) may be indifferent between two
    experts. All of them then make the same choice, which must not be the one that exceeds the limit.
    """
    step, raised = 1e-4, duals
    for _ in range(MAX_PRICE_RAISES):
        choice = (gain - traffic @ rows.price(raised)).argmax(axis=1)
        over = rows.mean_uses(traffic, mass, choice) > (1 + LIMIT_SLACK) * rows.limits
        if not over.any():
            return raised
        raised = raised + np.where(over, step * (raised + 0.01 / rows.limits), 0.0)
        step *= 1.2
    return duals  # no price splits equal requests that exceed the limit; higher prices only move them back and forth


def lagrangian_duals(gain: Array, mass: Array, traffic: Array, rows: MeanRows) -> Array:
    """Return the duals of assigning requests to experts so that mean quality is highest within the limits.

    `gain` (n_requests, n_experts) is the quality, `mass` (n_requests,) the weight of each request, `traffic`
    (n_requests, n_categories) the posterior, and no mean use of `rows` may exceed its limit. The duals minimise the
    Lagrangian dual function, which is convex and piecewise linear in few variables. Kelley's cutting planes bound it by
    its tangents; each follows from the requests' choices at the prices tried.
    """
    from scipy.optimize import linprog

    count = len(rows.limits)
    box = [(0.0, MAX_ROW_PRICE / limit) for limit in rows.limits]
    tangents, heights = np.empty((0, count)), np.empty(0)
    best, lowest, tried = np.zeros(count), np.inf, np.zeros(count)
    for _ in range(MAX_CUTS):
        value = gain - traffic @ rows.price(tried)
        choice = value.argmax(axis=1)
        slope = rows.limits - rows.mean_uses(traffic, mass, choice)
        height = float(mass @ value[np.arange(len(choice)), choice] + tried @ rows.limits)
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
