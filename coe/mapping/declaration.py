"""What experts.yaml declares for planning: uses, relative costs and pins of experts, and what a plan depends on.

A published plan stores its `Dependencies`, so that later changes of the declaration can be reported with their
consequences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import orjson

from coe.core import GENERAL
from coe.mapping.assignment import Assignment
from coe.mapping.problem import Array, Uses
from coe.registry import ExpertSpec, Registry

MEAN_INPUT_TOKENS, MEAN_OUTPUT_TOKENS = 500, 300
"""Tokens of the request that `mean_cost` is calculated for."""

ANSWER_FIELDS = (
    "model",
    "runtime",
    "base_url",
    "base_urls",
    "adapter",
    "system_prompt",
    "parameters",
    "options",
)
"""Fields of an expert that affect its answers, and so its measured quality."""


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


def relative_cost(registry: Registry) -> Array:
    """Return the cost of a request to each expert relative to the most expensive one, which `cost_weight` multiplies.

    Costs are the declared prices or, if everything is free, active parameters; an expert of unknown size counts as the
    largest. Shape (n_experts,), 0 to 1.
    """
    costs = [spec.prices.input + spec.prices.output for spec in registry.experts]
    if not any(costs):
        sizes = [spec.active_parameters_b for spec in registry.experts]
        largest = max((size for size in sizes if size is not None), default=0.0)
        costs = [largest if size is None else size for size in sizes]
    return np.array(costs, dtype=np.float64) / (max(costs) or 1.0)


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
