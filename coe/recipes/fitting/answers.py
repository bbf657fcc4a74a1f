"""`Answers`: the recorded answers that recipes are fitted on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coe.recipes.agreement import Array

FOLDS = 3
"""Folds of the prompts, so that estimates of quality use rules that were fitted on other prompts."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Recorded answers of all experts to the same prompts.

    `classes` (n_prompts, n_experts): equal numbers in a row are equal answers, NO_ANSWER where there is none. `scores`
    (n_prompts, n_experts) in [0, 1], `costs` (n_prompts, n_experts) of each answer in one unit, `tokens` (n_prompts,
    n_experts) of output, `labels` (n_prompts,) the index of the category, below `n_categories`.
    """

    experts: tuple[str, ...]
    classes: NDArray[np.int64]
    scores: Array
    costs: Array
    tokens: Array
    labels: NDArray[np.int64]
    n_categories: int

    @cached_property
    def posterior(self) -> Array:
        """Return the true category of each prompt as a posterior, shape (n_prompts, n_categories)."""
        return np.eye(self.n_categories)[self.labels]

    @cached_property
    def typical(self) -> Array:
        """Return the mean of log(1 + output tokens) of each expert, shape (n_experts,)."""
        return np.asarray(np.log1p(self.tokens).mean(axis=0))

    @cached_property
    def typical_cost(self) -> float:
        """Return the median over experts of the mean cost of an answer; 1 if nothing costs anything."""
        return float(np.median(self.costs.mean(axis=0))) or 1.0

    @cached_property
    def folds(self) -> NDArray[np.int64]:
        """Return a fixed random fold of each prompt."""
        return np.random.default_rng(0).permutation(len(self.labels)) % FOLDS
