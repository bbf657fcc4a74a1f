"""`Answers`: the recorded answers that recipes are fitted on, and the same answers under caps on their length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coe.recipes.agreement import NO_ANSWER, Array

FOLDS = 3
"""Folds of the prompts, so that estimates of quality use rules that were fitted on other prompts."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Recorded answers of all experts to the same prompts.

    `classes` (n_prompts, n_experts): equal numbers in a row are equal answers, NO_ANSWER where there is none. `scores`
    (n_prompts, n_experts) in [0, 1], `costs` (n_prompts, n_experts) of each answer in one unit, `tokens` (n_prompts,
    n_experts) of output, `labels` (n_prompts,) the index of the category, below `n_categories`. `output_costs`
    (n_prompts, n_experts) is the part of the costs that grows with the output tokens, by default all of it. `cut_off`
    (n_prompts, n_experts) marks answers that a cap has ended, by default none.
    """

    experts: tuple[str, ...]
    classes: NDArray[np.int64]
    scores: Array
    costs: Array
    tokens: Array
    labels: NDArray[np.int64]
    n_categories: int
    output_costs: Array | None = None
    cut_off: NDArray[np.bool_] | None = None

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

    def rows(self, chosen: NDArray[np.int64]) -> Answers:
        """Return the answers to some prompts."""
        return self._selected(chosen, np.arange(len(self.experts)), self.labels[chosen])

    def columns(self, chosen: Sequence[int]) -> Answers:
        """Return the answers of some experts."""
        return self._selected(np.arange(len(self.labels)), np.array(chosen), self.labels)

    def _selected(self, rows: NDArray[np.int64], columns: NDArray[np.int64], labels: NDArray[np.int64]) -> Answers:
        cells = np.ix_(rows, columns)
        return replace(
            self,
            experts=tuple(self.experts[column] for column in columns),
            classes=self.classes[cells],
            scores=self.scores[cells],
            costs=self.costs[cells],
            tokens=self.tokens[cells],
            labels=labels,
            output_costs=None if self.output_costs is None else self.output_costs[cells],
            cut_off=None if self.cut_off is None else self.cut_off[cells],
        )

    def costs_with(self, written: Array) -> Array:
        """Return the costs (n_prompts, n_experts) if only a share `written` (n_prompts, n_experts) of each answer's
        tokens was written."""
        return self.costs - (self.costs if self.output_costs is None else self.output_costs) * (1 - written)

    def capped(self, caps: Array, applies: NDArray[np.bool_]) -> Answers:
        """Return the answers if those with more tokens than `caps` (n_experts,) are cut off where a cap `applies`
        (n_prompts, n_experts). Such an answer counts as none and earns nothing."""
        cut_off = applies & (self.tokens > caps)
        written = np.where(cut_off, caps / np.maximum(self.tokens, 1e-9), 1.0)
        costs = self.costs_with(written)
        return replace(
            self,
            classes=np.where(cut_off, NO_ANSWER, self.classes),
            scores=np.where(cut_off, 0.0, self.scores),
            costs=costs,
            tokens=np.where(cut_off, caps, self.tokens),
            output_costs=costs if self.output_costs is None else self.output_costs * written,
            cut_off=cut_off,
        )


def answers_in(answers: Answers, steps: Sequence[Sequence[int]], caps: Array) -> Answers:
    """Return the answers as a recipe gets them, with `caps` (n_experts,) on its members in tokens, inf without one.

    The last step has no caps where no earlier answer is readable, so that no answer is ever returned cut off.
    """
    early = [column for step in steps[:-1] for column in step]
    before = answers.capped(caps, np.ones(answers.tokens.shape, dtype=bool))
    applies = np.ones(answers.tokens.shape, dtype=bool)
    applies[:, list(steps[-1])] = (before.classes[:, early] != NO_ANSWER).any(axis=1)[:, None]
    return answers.capped(caps, applies)
