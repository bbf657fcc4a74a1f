"""The report of `coe benchmark`: means of methods over splits, standard errors, paired differences and a frontier.

At each price, a method selects for each prompt the model with the highest expected quality net of price times active
parameters. Each price gives one point of the frontier: the higher the price, the smaller the selected models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.measuring.quality import Quality
from coe.planning.paired_scores import clustered_mean, paired_difference
from coe.recipes.fitting.benchmark import SplitComparison

PRICES = (0.0, *(float(price) for price in np.geomspace(1e-4, 1.0, 33)))
"""Prices of the frontier, in quality per billion active parameters."""
Points = NDArray[np.float64]
"""A frontier, shape (n_prices, 2): mean quality, and mean active parameters in billions, at each price."""


def trace(value: NDArray[np.floating], scores: NDArray[np.floating], active_b: NDArray[np.float64]) -> Points:
    """Compute the frontier of a method with predicted qualities `value` and measured `scores`, both (n_prompts,
    n_models)."""
    chosen = [(value - price * active_b).argmax(axis=1) for price in PRICES]
    return np.array([(scores[np.arange(len(one)), one].mean(), active_b[one].mean()) for one in chosen])


@dataclass(frozen=True, slots=True)
class SplitResult:
    """The result of one seed.

    `prompts` (n_held_out,) are the indices of the held-out prompts, and `score` has each method's scores on them, of
    the same shape. `size` is each method's mean active parameters in billions. `frontier` is that of CoE, None where a
    model's size is not known. `residual` tells whether one is used. `encoded` are the shares of prompts that the
    encoder reads, with the residual and without.
    """

    prompts: NDArray[np.int64]
    score: dict[str, NDArray[np.float64]]
    size: dict[str, float]
    frontier: Points | None
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
    frontiers = [split.frontier for split in splits if split.frontier is not None]
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
        "frontier": [
            {"price": price, "mean": mean, "mean_active_b": size}
            for price, (mean, size) in zip(PRICES, np.mean(frontiers, axis=0).tolist(), strict=True)
        ]
        if frontiers
        else [],
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
        "mean_active_b": size if np.isfinite(size) else None,
        "against": {
            rival: paired_difference(scores, [one.score[rival] for one in splits], prompts).to_json()
            for rival in RIVALS
            if rival != name
        },
    }
