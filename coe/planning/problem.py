"""The planning problem: qualities, weights of categories, uses of experts, and the budget.

A column of the problem is an expert or an arm of a recipe, whose members must be hosted. `relative_cost` and
`declared_assignment` read experts.yaml.

The prices of a plan: the duals of the rows that limit a mean over requests, times the experts' uses.

With its hosted experts fixed, a plan is a linear program, whose duals are the prices of the budget rows. `decide()`
subtracts an expert's expected price from its expected quality, so that single requests keep the budget as the plan
does. A request with posterior p uses p @ use[:, k] of expert k, where `use` has shape (n_categories, n_experts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import ConfigError, DataError
from coe.planning.assignment import Assignment
from coe.planning.residual import Residual
from coe.planning.score_table import Array, ScoreTable
from coe.planning.uses import BY_CATEGORY, Uses
from coe.registry import Registry

USE_OF_ROW = {
    "memory_gb": "memory_gb",
    "mean_active_b": "active_b",
    "mean_cost": "cost",
    "mean_latency_ms": "latency_ms",
}
"""The use that each budget row limits. The row `max_share` limits how often an expert is called."""
BUDGET_ROWS = (*USE_OF_ROW, "max_share")
MEAN_ROWS = ("mean_active_b", "mean_cost", "mean_latency_ms")


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Find an expert, or an arm of a recipe, for every category.

    - `quality`, shape (n_categories, n_experts): -inf where the expert may not serve the category.
    - `weights`, shape (n_categories,): the shares of the categories, which sum to 1.
    - `budget`: the limits by row (BUDGET_ROWS). `memory_gb` limits the memory of all hosted experts, the mean rows
      means per request, and `max_share` (0 to 1) the mean calls of each expert per request.
    - `members` maps the columns that are arms to the experts that must be hosted for them. An arm has no memory of its
      own.

    Raises ConfigError for a limit that is not above 0, and DataError for arrays of other shapes, for a category that no
    expert may serve, and if a budget row limits a use that is not known of every expert.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    quality: Array
    weights: Array
    uses: Uses = field(default_factory=Uses)
    budget: Mapping[str, float] = field(default_factory=dict)
    members: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "quality", np.where(np.isnan(self.quality), -np.inf, self.quality))  # null in a file
        shape = len(self.categories), len(self.experts)
        expected = {"quality": shape, "memory_gb": shape[1:]} | dict.fromkeys(BY_CATEGORY, shape)
        for name, one in expected.items():
            array = self.quality if name == "quality" else getattr(self.uses, name)
            if array is not None and array.shape != one:
                raise DataError(f"{name}: shape {array.shape}, not {one}")
        if unserved := [c for c, row in zip(self.categories, self.quality, strict=True) if not np.isfinite(row).any()]:
            raise DataError(f"no expert may serve {', '.join(unserved)}; give one of them the needed capability")
        for row, limit in self.budget.items():
            if not limit > 0:
                raise ConfigError(f"budget: {row} is {limit:g}, and must be above 0")
            use = self.use(row) if row in USE_OF_ROW else np.zeros(shape)
            is_known = np.asarray((np.atleast_2d(use) >= 0).all(axis=0)).tolist()
            if unknown := [name for name, known in zip(self.experts, is_known, strict=True) if not known]:
                raise DataError(
                    f"budget: {row} needs {USE_OF_ROW[row]} of every expert, which is unknown or negative for "
                    f"{', '.join(unknown)}; declare it, leave these experts out, or drop the row"
                )

    @classmethod
    def of(
        cls,
        table: ScoreTable,
        *,
        quality: Array,
        uses: Uses | None = None,
        budget: Mapping[str, float] = MappingProxyType({}),
        weights: Array | None = None,
        members: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    ) -> Problem:
        """Return the problem over a table's categories and experts. `weights` (any scale) default to its counts."""
        mass = table.count.max(axis=1) if weights is None else np.asarray(weights, dtype=np.float64)
        if not (np.isfinite(mass).all() and (mass >= 0).all() and mass.sum() > 0):
            raise DataError("weights: must be finite, not negative, and not all 0")
        share = mass / mass.sum()
        return cls(table.categories, table.experts, quality, share, uses or Uses(), budget, members)

    def without(self, expert: str) -> Problem:
        """Return the problem without `expert` and the arms that it is a member of.

        Raises DataError if a category needs it.
        """
        gone = {expert, *(arm for arm, members in self.members.items() if expert in members)}
        return replace(self, quality=np.where(np.isin(self.experts, list(gone))[None, :], -np.inf, self.quality))

    def use(self, row: str) -> Array:
        """Return the use that a budget row limits.

        The shape is (n_experts,) for `memory_gb`, which is 0 for arms, and (n_categories, n_experts) for mean rows.
        """
        found: Array | None = getattr(self.uses, USE_OF_ROW[row])
        if found is None:
            found = np.full(len(self.experts) if row == "memory_gb" else self.quality.shape, np.nan)
        return np.where(self.is_arm, 0.0, found) if row == "memory_gb" else found

    @property
    def is_arm(self) -> NDArray[np.bool_]:
        """Return which columns are arms, shape (n_experts,)."""
        return np.array([name in self.members for name in self.experts], dtype=np.bool_)

    def requirements(self) -> NDArray[np.bool_]:
        """Return which experts must be hosted for each column, shape (n_experts, n_experts).

        An expert requires itself; an arm requires its members.
        """
        required = np.diag(~self.is_arm)
        for arm, members in self.members.items():
            required[self.experts.index(arm), [self.experts.index(name) for name in members]] = True
        return required

    def hosting(self, columns: NDArray[np.int64] | NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the experts that must be hosted for `columns`, and the arms whose members all are; (n_experts,)."""
        required = self.requirements()
        experts = required[columns].any(axis=0)
        return np.asarray(experts | (self.is_arm & ~(required & ~experts).any(axis=1)))

    def calls(self) -> list[tuple[int, int, Array]]:
        """Return the calls of experts as (expert, column, calls per request by category), for `max_share`."""
        ones = np.ones(len(self.categories))
        found = [(column, column, ones) for column in np.flatnonzero(~self.is_arm).tolist()]
        for arm, members in self.members.items():
            calls = self.uses.calls.get(arm, np.ones((len(self.categories), len(members))))
            column = self.experts.index(arm)
            found += [(self.experts.index(name), column, calls[:, one]) for one, name in enumerate(members)]
        return found


def relative_cost(registry: Registry, arms: Sequence[str] | None = None) -> Array:
    """Return the cost of a request to each arm relative to the most expensive expert, which `cost_weight` multiplies.

    Costs are the declared prices or, if everything is free, active parameters; an expert of unknown size counts as the
    largest. `arms` are the columns of the assignment, by default the experts. Shape (n_arms,): 0 to 1 for an expert,
    the sum over all calls for an arm of a recipe, those of its judge included.
    """
    costs = [spec.prices.input + spec.prices.output for spec in registry.experts]
    if not any(costs):
        sizes = [spec.active_parameters_b for spec in registry.experts]
        largest = max((size for size in sizes if size is not None), default=0.0)
        costs = [largest if size is None else size for size in sizes]
    relative = dict(zip(registry.expert_names, (np.array(costs) / (max(costs) or 1.0)).tolist(), strict=True))
    for arm in registry.recipe_arms:
        judged = (len(arm.steps) - 1) * relative[arm.judge] if arm.judge else 0.0
        relative[arm.name] = sum(relative[member.name] for member in arm.members) + judged
    return np.array([relative[name] for name in arms or registry.expert_names], dtype=np.float64)


def declared_assignment(registry: Registry, categories: tuple[str, ...]) -> Assignment:
    """Return the assignment of experts.yaml over the router's categories."""
    return Assignment.declared(categories, registry.expert_names, registry.assignment, general=registry.general_expert)


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
