"""The planning problem: qualities, weights of categories, uses of experts, and the budget.

`declared_uses`, `relative_cost` and `declared_assignment` read them from experts.yaml. A published plan stores the
`Dependencies` that it was made for, so that later changes of the declaration can be reported with their consequences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.core import GENERAL
from coe.errors import ConfigError, DataError
from coe.mapping.assignment import Assignment
from coe.mapping.score_table import ScoreTable
from coe.registry import ExpertSpec, Registry

Array = NDArray[np.float64]
USE_OF_ROW = {
    "memory_gb": "memory_gb",
    "mean_active_b": "active_b",
    "mean_cost": "cost",
    "mean_latency_ms": "latency_ms",
}
"""The use that each budget row limits. The row `max_share` limits how often an expert is chosen."""
MEAN_ROWS = ("mean_active_b", "mean_cost", "mean_latency_ms")
MEAN_INPUT_TOKENS, MEAN_OUTPUT_TOKENS = 500, 300
"""Tokens of the request that `mean_cost` is calculated for."""
ANSWER_FIELDS = ("model", "runtime", "base_url", "base_urls", "adapter", "system_prompt", "parameters", "options")
"""Fields of an expert that affect its answers, and so its measured quality."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits, each optional.

    `memory_gb` limits the memory of all hosted experts. The mean rows limit means per request: active parameters in
    billions, cost in the currency of `Uses.cost`, and latency in milliseconds. `max_share` (0 to 1) limits the share of
    requests of each expert.
    """

    memory_gb: float | None = None
    mean_active_b: float | None = None
    mean_cost: float | None = None
    mean_latency_ms: float | None = None
    max_share: float | None = None

    def __post_init__(self) -> None:
        wrong = [
            f"budget: {row} is {limit}, and must be above 0" for row, limit in self.rows().items() if not limit > 0
        ]
        if wrong:
            raise ConfigError(*wrong)

    def rows(self) -> dict[str, float]:
        """Return the declared limits by row."""
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: float(limit) for name, limit in limits.items() if limit is not None}


@dataclass(frozen=True, slots=True, eq=False)
class Uses:
    """Uses of each expert, arrays of shape (n_experts,) with NaN where unknown; None if unknown of all experts."""

    memory_gb: Array | None = None
    active_b: Array | None = None
    cost: Array | None = None
    latency_ms: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Find an expert for every category.

    `quality` has shape (n_categories, n_experts), -inf where the expert may not serve the category. `weights`, shape
    (n_categories,), are the shares of the categories and sum to 1. Raises DataError if a budget row limits a use that
    is not known of every expert.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    quality: Array
    weights: Array
    uses: Uses = field(default_factory=Uses)
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if self.quality.shape != (len(self.categories), len(self.experts)):
            raise DataError(f"quality: shape {self.quality.shape}, not {len(self.categories)} x {len(self.experts)}")
        if unserved := [c for c, row in zip(self.categories, self.quality, strict=True) if not np.isfinite(row).any()]:
            raise DataError(f"no expert may serve {', '.join(unserved)}; give one of them the needed capability")
        for row in self.budget.rows():
            if row in USE_OF_ROW:
                self._check_known(row)

    @classmethod
    def of(
        cls,
        table: ScoreTable,
        *,
        quality: Array,
        uses: Uses | None = None,
        budget: Budget | None = None,
        weights: Array | None = None,
    ) -> Problem:
        """Return the problem over a table's categories and experts. `weights` (any scale) default to its counts."""
        mass = table.count.max(axis=1) if weights is None else np.asarray(weights, dtype=np.float64)
        if not (np.isfinite(mass).all() and (mass >= 0).all() and mass.sum() > 0):
            raise DataError("weights: must be finite, not negative, and not all 0")
        return cls(table.categories, table.experts, quality, mass / mass.sum(), uses or Uses(), budget or Budget())

    def within(self, **limits: float | None) -> Problem:
        """Return the problem with some limits of the budget changed."""
        return replace(self, budget=replace(self.budget, **limits))

    def without(self, expert: str) -> Problem:
        """Return the problem in which `expert` may serve nothing. Raises DataError if a category needs it."""
        quality = self.quality.copy()
        quality[:, self.experts.index(expert)] = -np.inf
        return replace(self, quality=quality)

    def use(self, row: str) -> Array:
        """Return the use of each expert that the budget row limits, shape (n_experts,)."""
        found: Array | None = getattr(self.uses, USE_OF_ROW[row])
        return np.full(len(self.experts), np.nan) if found is None else found

    def _check_known(self, row: str) -> None:
        use = self.use(row)
        if unknown := [name for name, value in zip(self.experts, use, strict=True) if not value >= 0]:
            raise DataError(
                f"budget: {row} needs {USE_OF_ROW[row]} of every expert, which is unknown or negative for "
                f"{', '.join(unknown)}; declare it, leave these experts out, or drop the row"
            )


@dataclass(frozen=True, slots=True)
class Dependencies:
    """The part of a declaration that a plan depends on.

    `categories` maps each category to a digest of its description. `experts` maps each expert to digests of its
    ANSWER_FIELDS, so that no secret is stored. `pins` maps categories to the experts that `assignment` declares.
    """

    categories: Mapping[str, str]
    experts: Mapping[str, Mapping[str, str]]
    pins: Mapping[str, str]

    @classmethod
    def of(cls, registry: Registry) -> Dependencies:
        """Return the dependencies of a plan that is made for `registry`."""
        return cls(
            categories={category.name: _digest(category.description) for category in registry.categories},
            experts={expert.name: _answer_digests(expert) for expert in registry.experts},
            pins=dict(registry.assignment),
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Dependencies:
        """Parse the result of `to_json`. Raises KeyError or TypeError."""
        return cls(**{field.name: dict(data[field.name]) for field in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def changed_fields(planned: Mapping[str, str], expert: ExpertSpec) -> tuple[str, ...]:
    """Return the ANSWER_FIELDS of an expert that differ from its digests in a plan."""
    digests = _answer_digests(expert)
    return tuple(name for name in ANSWER_FIELDS if planned.get(name, digests[name]) != digests[name])


def declared_uses(registry: Registry, experts: Sequence[str] | None = None) -> Uses:
    """Return the declared uses of `experts` in their order (default: all declared experts)."""
    specs = registry.experts if experts is None else [registry.expert(name) for name in experts]

    def array(values: list[float | None]) -> Array:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    cost = [(MEAN_INPUT_TOKENS * e.prices.input + MEAN_OUTPUT_TOKENS * e.prices.output) / 1000 for e in specs]
    return Uses(
        memory_gb=array([0.0 if e.runtime == "external" else e.memory_gb for e in specs]),
        active_b=array([e.active_parameters_b for e in specs]),
        cost=np.array(cost),
        latency_ms=array([e.latency_ms for e in specs]),
    )


def relative_cost(registry: Registry, arms: Sequence[str] | None = None) -> Array:
    """Return the cost of a request to each arm relative to the most expensive expert, which `cost_weight` multiplies.

    Costs are the declared prices or, if everything is free, active parameters; an expert of unknown size counts as the
    largest. `arms` are the columns of the assignment, by default the experts. Shape (n_arms,): 0 to 1 for an expert,
    the sum over all members for an arm of a recipe.
    """
    costs = [spec.prices.input + spec.prices.output for spec in registry.experts]
    if not any(costs):
        sizes = [spec.active_parameters_b for spec in registry.experts]
        largest = max((size for size in sizes if size is not None), default=0.0)
        costs = [largest if size is None else size for size in sizes]
    relative = dict(zip(registry.expert_names, (np.array(costs) / (max(costs) or 1.0)).tolist(), strict=True))
    relative |= {arm.name: sum(relative[member.name] for member in arm.members) for arm in registry.recipe_arms}
    return np.array([relative[name] for name in arms or registry.expert_names], dtype=np.float64)


def declared_assignment(registry: Registry, categories: tuple[str, ...]) -> Assignment:
    """Return the assignment of experts.yaml over the router's categories."""
    return Assignment.declared(
        categories, registry.expert_names, registry.assignment, general=registry.assignment[GENERAL]
    )


def _answer_digests(expert: ExpertSpec) -> dict[str, str]:
    values = expert.model_dump(mode="json", include=set(ANSWER_FIELDS))
    return {name: _digest(values[name]) for name in ANSWER_FIELDS}


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
