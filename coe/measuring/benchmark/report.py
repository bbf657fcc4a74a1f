"""The report of `coe benchmark`: means of methods over splits, their standard errors, paired differences and frontiers.

At each price, a method selects for each prompt the model with the highest expected quality net of price times active
parameters. Each price gives one point of the frontier: the higher the price, the smaller the selected models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.measuring.quality import Quality
from coe.planning.paired_scores import clustered_mean, paired_difference
from coe.recipes.fitting.benchmark import SplitComparison

PRICES = (0.0, *(float(price) for price in np.geomspace(1e-4, 1.0, 33)))
"""Prices of the frontier, in quality per billion active parameters."""


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


@dataclass(frozen=True, slots=True)
class SplitResult:
    """The result of one seed.

    `prompts` (n_held_out,) are the indices of the held-out prompts, and `score` has each method's scores on them, of
    the same shape. `size` is each method's mean active parameters in billions. `traces` are the frontiers of three
    methods. `route_ms` are routing times; none with one category, where nothing is classified. `residual`
    tells whether one is used. `encoded` are the shares of prompts that the encoder reads, with the residual
    and without.
    """

    prompts: NDArray[np.int64]
    score: dict[str, NDArray[np.float64]]
    size: dict[str, float]
    traces: dict[str, list[FrontierPoint]]
    route_ms: list[float]
    residual: bool
    encoded: tuple[float, float]
    recipes: SplitComparison | None = None


METHODS = ("random", "best_single", "knn", "ridge", "coe_hard", "coe_categories", "coe", "class_map_on_test", "oracle")
"""`coe` is what is served. `coe_categories` is the same without the residual, `coe_hard` by the likeliest category."""


def benchmark_report(data: Quality, splits: Sequence[SplitResult], seeds: Sequence[int]) -> dict[str, Any]:
    """The JSON-able report of the splits by `seeds`, without the comparison of recipes."""
    methods = {name: _summary(splits, name) for name in METHODS}
    mean = {name: float(found["mean"] or 0.0) for name, found in methods.items()}
    gap = mean["oracle"] - mean["best_single"]
    traces = {name: average([s.traces[name] for s in splits]) for name in splits[0].traces}
    times = np.concatenate([s.route_ms for s in splits])
    return {
        "benchmark": data.benchmark,
        "categories": len(set(data.categories)),
        "prompts": len(data.prompts),
        "left_out": data.left_out,
        "models": len(data.models),
        "splits": len(splits),
        "seeds": list(seeds),
        "methods": methods,
        "gap_closed": (mean["coe"] - mean["best_single"]) / gap if gap > 0 else None,
        "residual": {
            "used": sum(split.residual for split in splits),
            "encoded": float(np.mean([split.encoded[0] for split in splits])),
            "encoded_without": float(np.mean([split.encoded[1] for split in splits])),
        },
        "frontier": [asdict(point) for point in traces.get("coe", ())],
        "hull_area": {name: hull_area(points, data.active_b) for name, points in traces.items()},
        "route_ms": {"p50": float(np.percentile(times, 50)), "p99": float(np.percentile(times, 99))}
        if len(times)
        else None,
    }


RIVALS = ("best_single", "coe")
"""Methods that every method is compared with, on the same prompts."""


def _summary(splits: Sequence[SplitResult], name: str) -> dict[str, Any]:
    """Mean, standard error and size of a method, and its paired differences from RIVALS."""
    prompts, scores = [one.prompts for one in splits], [one.score[name] for one in splits]
    size, mean = float(np.mean([one.size[name] for one in splits])), clustered_mean(scores, prompts)
    return {
        "mean": mean.value,
        "standard_error": mean.error if np.isfinite(mean.error) else None,
        "std": float(np.std([one.mean() for one in scores])),
        "mean_active_b": size if np.isfinite(size) else None,
        "against": {
            rival: paired_difference(scores, [one.score[rival] for one in splits], prompts).to_json()
            for rival in RIVALS
            if rival != name
        },
    }
