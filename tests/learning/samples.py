"""Made-up experience with known truth, and records as a gateway would log them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.learning.experience import Experience
from coe.records.record import RoutingRecord
from coe.routing.decision import propensities

CATEGORIES = ("code", "general", "law")
EXPERTS = ("coder", "generalist", "lawyer")
TRUTH = np.array([[0.8, 0.5, 0.2], [0.4, 0.6, 0.4], [0.2, 0.5, 0.8]])
"""Probability that an expert's answer is good, by category."""


def experience(count: int, **columns: Any) -> Experience:
    """`count` requests in turn through the categories, all to the first expert, without feedback."""
    posterior = np.full((count, len(CATEGORIES)), 0.1, dtype=np.float32)
    posterior[np.arange(count), np.arange(count) % len(CATEGORIES)] = 0.8
    usual: dict[str, Any] = {
        "tenants": ("a",),
        "posterior": posterior,
        "propensity": np.ones(count, dtype=np.float32),
        "propensities": np.full((count, len(EXPERTS)), 1 / len(EXPERTS), dtype=np.float32),
        "time": np.arange(count, dtype=np.float64),
    }
    return replace(Experience.blank(CATEGORIES, EXPERTS, count), **(usual | columns))


def rated_experience(
    count: int,
    *,
    seed: int,
    quality: NDArray[np.float64] | None = None,
    rate: float = 0.3,
    loss: float = 1.0,
    truth: NDArray[np.float64] = TRUTH,
    tenants: Sequence[str] = ("a",),
) -> Experience:
    """Rated requests of random categories, chosen by `quality` (nothing known: evenly) with exploration."""
    random = np.random.default_rng(seed)
    category = random.integers(0, len(CATEGORIES), count)
    posterior = np.full((count, len(CATEGORIES)), 0.05)
    posterior[np.arange(count), category] = 0.9
    utility = posterior @ (np.zeros_like(TRUTH) if quality is None else quality)
    chances = propensities(utility, rate=rate, loss=loss)
    chosen = np.minimum((random.random((count, 1)) > np.cumsum(chances, axis=1)).sum(axis=1), len(EXPERTS) - 1)
    return experience(
        count,
        tenants=tuple(tenants),
        posterior=posterior.astype(np.float32),
        chosen=chosen.astype(np.int16),
        propensity=chances[np.arange(count), chosen].astype(np.float32),
        propensities=chances.astype(np.float32),
        reward=(random.random(count) < truth[category, chosen]).astype(np.float32),
        kind=np.zeros(count, dtype=np.int8),
        tenant=random.integers(0, len(tenants), count).astype(np.int32),
    )


def record(request_id: str, **fields: Any) -> RoutingRecord:
    """A routed request of tenant `a` that the coder answered."""
    usual: dict[str, Any] = {
        "request_id": request_id,
        "time": 1.0,
        "category": "code",
        "confidence": 0.8,
        "expert": "coder",
        "reason": "routed",
        "propensity": 0.9,
        "candidates": ("coder", "generalist"),
        "probabilities": {"code": 0.8, "general": 0.1, "law": 0.1},
        "stage": "encoder",
        "router": "r1",
        "config": "c1",
        "digest": "",
        "outcome": "ok",
        "attempts": 1,
        "stream": False,
        "routing_ms": 0.1,
        "first_token_ms": 1.0,
        "total_ms": 2.0,
        "tenant": "a",
    }
    return RoutingRecord(**(usual | fields))
