"""What a plan depends on in experts.yaml, by category and expert, and what each declared expert uses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import orjson

from coe.mapping.problem import Array, Uses
from coe.registry import ExpertSpec, Registry

TOKENS_IN, TOKENS_OUT = 500, 300
"""Tokens read and tokens written by the request that `mean_cost` is calculated for."""

ANSWERING = (
    "model",
    "runtime",
    "base_url",
    "base_urls",
    "adapter",
    "system_prompt",
    "parameters",
    "options",
)
"""Fields of an expert that decide its answers, and so its measured quality."""


@dataclass(frozen=True, slots=True)
class Dependencies:
    """The part of a declaration that a plan was made for.

    `categories` maps each to a digest of its description. `experts` maps each to digests of its ANSWERING fields, so
    that nothing secret is kept. `pins` maps a category to the expert that `assignment` named for it.
    """

    categories: Mapping[str, str]
    experts: Mapping[str, Mapping[str, str]]
    pins: Mapping[str, str]

    @classmethod
    def of(cls, registry: Registry) -> Dependencies:
        """Those of a declaration."""
        return cls(
            categories={category.name: _digest(category.description) for category in registry.categories},
            experts={expert.name: _answering(expert) for expert in registry.experts},
            pins=dict(registry.assignment),
        )

    @classmethod
    def from_json(cls, fields_: Mapping[str, Any]) -> Dependencies:
        """Read what `to_json` returned. Raises KeyError or TypeError for anything else."""
        return cls(**{field.name: dict(fields_[field.name]) for field in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries."""
        return asdict(self)


def changed_fields(before: Mapping[str, str], expert: ExpertSpec) -> tuple[str, ...]:
    """The ANSWERING fields of an expert that differ from those of its `before`."""
    now = _answering(expert)
    return tuple(name for name in ANSWERING if before.get(name, now[name]) != now[name])


def declared_uses(registry: Registry, experts: Sequence[str] | None = None) -> Uses:
    """What each of the `experts` uses by the declaration, in their order; left out, all that are declared."""
    specs = registry.experts if experts is None else [registry.expert(name) for name in experts]

    def known(values: list[float | None]) -> Array:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    cost = [(TOKENS_IN * e.prices.input + TOKENS_OUT * e.prices.output) / 1000 for e in specs]
    return Uses(
        memory_gb=known([0.0 if e.runtime == "external" else e.memory_gb for e in specs]),
        active_b=known([e.active_parameters_b for e in specs]),
        cost=np.array(cost),
        latency_ms=known([e.latency_ms for e in specs]),
    )


def _answering(expert: ExpertSpec) -> dict[str, str]:
    plain = expert.model_dump(mode="json", include=set(ANSWERING))
    return {name: _digest(plain[name]) for name in ANSWERING}


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
