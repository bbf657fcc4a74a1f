"""Computes the frontier of quality against model size, and the area under its hull, for `coe benchmark`.

At each price, a method selects for each prompt the model with the highest expected quality net of price times active
parameters. Each price gives one point of the frontier: the higher the price, the smaller the selected models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRICES = (0.0, *(float(price) for price in np.geomspace(1e-4, 1.0, 33)))
"""Quality per billion active parameters."""


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """The result at one price: mean quality, and mean active parameters in billions."""

    price: float
    mean: float
    mean_active_b: float


def trace(
    value: NDArray[np.floating], scores: NDArray[np.floating], active_b: NDArray[np.float64]
) -> list[FrontierPoint]:
    """Compute the frontier of a method with predicted qualities `value` and measured `scores`, both (n_prompts,
    n_models)."""
    points = []
    for price in PRICES:
        chosen = (value - price * active_b).argmax(axis=1)
        earned = float(scores[np.arange(len(chosen)), chosen].mean())
        points.append(FrontierPoint(price, earned, float(active_b[chosen].mean())))
    return points


def average(traces: Sequence[Sequence[FrontierPoint]]) -> list[FrontierPoint]:
    """The mean of several splits' frontiers, point by point."""
    return [
        FrontierPoint(
            points[0].price,
            float(np.mean([point.mean for point in points])),
            float(np.mean([point.mean_active_b for point in points])),
        )
        for points in zip(*traces, strict=True)
    ]


def hull(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """The upper hull, from the cheapest point to the best: what mixing neighbouring prices reaches."""
    kept: list[FrontierPoint] = []
    for point in sorted(points, key=lambda p: (p.mean_active_b, -p.mean)):
        if kept and point.mean <= kept[-1].mean:
            continue
        while len(kept) > 1 and _rise(kept[-2], kept[-1]) <= _rise(kept[-1], point):
            kept.pop()
        kept.append(point)
    return kept


def hull_area(points: Sequence[FrontierPoint], active_b: NDArray[np.float64]) -> float:
    """Mean height of the hull between the smallest and the largest model's size, flat beyond its ends."""
    smallest, largest = float(active_b.min()), float(active_b.max())
    corners = hull(points)
    sizes, heights = [p.mean_active_b for p in corners], [p.mean for p in corners]
    if largest <= smallest:
        return heights[-1]
    inner = [size for size in sizes if smallest < size < largest]
    grid = np.array([smallest, *inner, largest])
    return float(np.trapezoid(np.interp(grid, sizes, heights), grid) / (largest - smallest))


def _rise(left: FrontierPoint, right: FrontierPoint) -> float:
    return (right.mean - left.mean) / max(right.mean_active_b - left.mean_active_b, 1e-12)
