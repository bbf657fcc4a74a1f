"""Weighs the answers of a recipe's members and estimates the probability that each answer is right.

Members that give the same normalized answer support one answer class. A conditional logit over the answer classes and
the outcome "no answer is right" turns the support into probabilities (McFadden 1974). Its weights are fitted by
`coe/recipes/fitting/fit.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator

Array = Annotated[
    NDArray[np.float64],
    PlainValidator(lambda values: np.array(values, dtype=np.float64)),
    PlainSerializer(lambda values: values.tolist()),
]
"""An array, which JSON has as nested lists."""
NO_ANSWER = -1
"""Class of a member that failed, refused, or gave an answer that could not be read."""
STATE_FEATURES = 10
"""Inputs of the stopping rule besides the category posterior."""


def answer_classes(answers: Sequence[str | None]) -> NDArray[np.int64]:
    """Return the answer class of each answer: the first member with an equal answer, NO_ANSWER for None."""
    seen: dict[str, int] = {}
    return np.array([NO_ANSWER if a is None else seen.setdefault(a, i) for i, a in enumerate(answers)], dtype=np.int64)


def support(classes: NDArray[np.int64]) -> tuple[Array, NDArray[np.bool_]]:
    """Compare the answers of each prompt.

    `classes` has shape (n_prompts, n_members). Returns `same` (n_prompts, n_members, n_members), 1 where two members
    gave the same answer, and `first` (n_prompts, n_members), True for the first member of each answer class.
    """
    same = (classes[:, :, None] == classes[:, None, :]) & (classes[:, :, None] != NO_ANSWER)
    earlier = np.tril(np.ones(same.shape[1:], dtype=bool), k=-1)
    first = (classes != NO_ANSWER) & ~(same & earlier).any(axis=2)
    return same.astype(np.float64), first


@dataclass(frozen=True, slots=True, eq=False)
class AnswerWeights:
    """Weights of a conditional logit over the answers of some members.

    `member` has shape (n_members, 1 + n_categories): the weight of a member's answer, and its deviation by category.
    `none` (1 + n_categories,) is the logit of "no answer is right". With shape (n_members, 1), weights do not depend on
    the category.
    """

    member: Array = field(repr=False)
    none: Array = field(repr=False)

    def probabilities(self, classes: NDArray[np.int64], posterior: Array) -> Array:
        """Return the probability that each answer is right, shape (n_prompts, n_members + 1).

        `classes` has shape (n_prompts, n_members), `posterior` (n_prompts, n_categories). An answer class has its
        probability at its first member, and 0 at the others. The last column is the probability that none is right.
        """
        same, first = support(classes)
        return softmax(self.logits(same, first, design(posterior, self.none.shape[0])))

    def logits(self, same: Array, first: NDArray[np.bool_], inputs: Array) -> Array:
        """Return the logits of the answers and of "none", -inf where a member does not start an answer class."""
        supported = np.einsum("nij,nj->ni", same, inputs @ self.member.T)
        return np.column_stack((np.where(first, supported, -np.inf), inputs @ self.none))


def design(posterior: Array, width: int) -> Array:
    """Return the inputs of the weights, shape (n_prompts, width): a constant, and the category posterior if used."""
    rows = np.empty((len(posterior), width))
    rows[:, 0] = 1.0
    rows[:, 1:] = posterior[:, : width - 1]
    return rows


def softmax(logits: Array) -> Array:
    """Return the probabilities of logits along the last axis."""
    grown = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=-1, keepdims=True))


def best_answer(probabilities: Array, *, otherwise: int) -> NDArray[np.int64]:
    """Return the member whose answer is most likely right, shape (n_prompts,); `otherwise` if none is readable."""
    answers = probabilities[:, :-1]
    return np.where(answers.max(axis=1) > 0, answers.argmax(axis=1), otherwise)


def stop_features(probabilities: Array, posterior: Array, length: Array) -> Array:
    """Return the inputs of the stopping rule, shape (n_prompts, STATE_FEATURES + n_categories).

    They are powers of the two highest answer probabilities, the probability that no answer is right, the relative
    `length` (n_prompts,) of the answers, and the category posterior. Long answers are less often right, and predict
    that the next answer is long, hence expensive; so does the category.
    """
    ranked = -np.sort(-probabilities[:, :-1], axis=1)
    top = ranked[:, 0]
    second = ranked[:, 1] if ranked.shape[1] > 1 else np.zeros(len(ranked))
    agreement = (np.ones(len(top)), top, top**2, top**3, second, probabilities[:, -1], top * second)
    return np.column_stack((*agreement, length, length**2, length * top, posterior))


def relative_length(tokens: Array, typical: Array) -> Array:
    """Return how much longer than usual the answers are, shape (n_prompts,): the mean difference of log tokens.

    `tokens` has shape (n_prompts, n_members); `typical` (n_members,) is the mean of log(1 + tokens) of each member.
    """
    return np.asarray((np.log1p(tokens) - typical).mean(axis=1))
