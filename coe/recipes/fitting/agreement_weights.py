"""Fits answer weights that ignore categories, for all folds at once: the search of recipes fits thousands of them.

Without categories, all that matters of a prompt is which members agree, and most prompts share it with others. So the
likelihood is summed over the kinds of agreement, and Newton's method needs a few small steps. The weights are those of
`coe.recipes.fitting.fit.fit_weights`, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe.recipes.agreement import Array, softmax, support
from coe.recipes.fitting.answers import FOLDS, Answers
from coe.recipes.fitting.fit import MEMBER_PENALTY, agreement_kinds, targets

MAX_STEPS = 50
MAX_HALVINGS = 30
TOLERANCE = 1e-7
"""Change of the weights below which a fit has converged."""


@dataclass(frozen=True, slots=True, eq=False)
class _Kinds:
    """The kinds of agreement of some prompts.

    `same` (n_kinds, n_members, n_members) and `first` (n_kinds, n_members) are those of `support`; `of_prompt`
    (n_prompts,) is the kind of each prompt.
    """

    same: Array
    first: NDArray[np.bool_]
    of_prompt: NDArray[np.int64]

    @classmethod
    def of(cls, classes: NDArray[np.int64]) -> _Kinds:
        """Return the kinds of the answer `classes` (n_prompts, n_members)."""
        _, chosen, of_prompt = np.unique(agreement_kinds(classes), return_index=True, return_inverse=True)
        return cls(*support(classes[chosen]), of_prompt)

    def probabilities(self, weights: Array) -> Array:
        """Return the probability that each answer is right, and that none is, shape (n_folds, n_kinds, n_members + 1).

        `weights` has shape (n_folds, n_members + 1).
        """
        supported = np.einsum("kij,fj->fki", self.same, weights[:, :-1])
        none = np.broadcast_to(weights[:, None, -1:], (*supported.shape[:2], 1))
        return softmax(np.concatenate((np.where(self.first, supported, -np.inf), none), axis=2))


def fold_weights(answers: Answers, experts: Sequence[int]) -> Array:
    """Return for each fold the weights of some experts' answers and of "none", fitted on the other folds.

    The shape is (FOLDS, n_experts + 1).
    """
    classes, scores = answers.classes[:, list(experts)], answers.scores[:, list(experts)]
    kinds = _Kinds.of(classes)
    right = targets(support(classes)[1], scores)
    cells, n_cells = kinds.of_prompt * FOLDS + answers.folds, len(kinds.first) * FOLDS
    by_cell = np.stack([np.bincount(cells, column, n_cells) for column in right.T], axis=-1)
    of_fold = by_cell.reshape(len(kinds.first), FOLDS, -1).transpose(1, 0, 2)
    return _fitted(kinds, of_fold.sum(axis=0) - of_fold)


def fold_probabilities(answers: Answers, columns: Sequence[int], weights: Array) -> Array:
    """Return answer probabilities (n_prompts, n_columns + 1) of some columns, each prompt by the weights of its
    fold."""
    kinds = _Kinds.of(answers.classes[:, list(columns)])
    found: Array = kinds.probabilities(weights)[answers.folds, kinds.of_prompt]
    return found


def _fitted(kinds: _Kinds, right: Array) -> Array:
    """Return the weights (n_folds, n_members + 1) by Newton's method; a step that lowers the likelihood is halved.

    `right` (n_folds, n_kinds, n_members + 1) is how often each answer of a kind, or none, was right.
    """
    weights = np.zeros((len(right), right.shape[2]))
    probabilities = kinds.probabilities(weights)
    loss = _loss(right, probabilities, weights)
    for _ in range(MAX_STEPS):
        step = _newton_step(kinds, right, probabilities, weights)
        for _ in range(MAX_HALVINGS):
            probabilities = kinds.probabilities(weights + step)
            found = _loss(right, probabilities, weights + step)
            is_worse = found > loss + 1e-12 * np.abs(loss)
            if not is_worse.any():
                break
            step[is_worse] /= 2
        weights, loss = weights + step, found
        if np.abs(step).max() < TOLERANCE:
            break
    return weights


def _loss(right: Array, probabilities: Array, weights: Array) -> Array:
    """Return the penalised negative log likelihood of each fold."""
    likelihood = (right * np.log(np.maximum(probabilities, 1e-300))).sum(axis=(1, 2))
    return np.asarray(0.5 * MEMBER_PENALTY * (weights**2).sum(axis=1) - likelihood)


def _newton_step(kinds: _Kinds, right: Array, probabilities: Array, weights: Array) -> Array:
    counts = right.sum(axis=2)
    error = probabilities * counts[:, :, None] - right
    by_member = np.einsum("kij,fki->fj", kinds.same, error[:, :, :-1])  # an answer class has its error at its first
    slope = np.column_stack((by_member, error[:, :, -1].sum(axis=1))) + MEMBER_PENALTY * weights
    of_class = np.einsum("kij,fki->fkj", kinds.same, probabilities[:, :, :-1])
    believed = np.concatenate((of_class, probabilities[:, :, -1:]), axis=2)
    curvature = -np.einsum("fki,fkj->fij", believed * counts[:, :, None], believed)
    curvature[:, :-1, :-1] += np.einsum("fki,kij->fij", of_class * counts[:, :, None], kinds.same)
    last = np.arange(weights.shape[1])
    curvature[:, -1, -1] += (probabilities[:, :, -1] * counts).sum(axis=1)
    curvature[:, last, last] += MEMBER_PENALTY
    return -np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
