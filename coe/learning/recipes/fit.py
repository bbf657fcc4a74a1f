"""Fits the answer weights and stopping rules of a recipe on recorded answers.

Weights maximise the penalised likelihood of a conditional logit. Stopping rules come from backward induction. From the
last step to the first, the realised gain of going on, net of its cost, is regressed on the state of the answers. The
method follows least-squares Monte Carlo for optimal stopping (Longstaff and Schwartz 2001). Every estimate of quality
uses weights that were fitted on other prompts. `arms` fits recipes with this module, and `search` proposes new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coe.experts.recipes.agreement import (
    NO_ANSWER,
    STATE_FEATURES,
    AnswerWeights,
    Array,
    best_answer,
    design,
    relative_length,
    softmax,
    stop_features,
    support,
)
from coe.experts.recipes.policy import RecipePolicy, Step, member_columns, replay

MEMBER_PENALTY = 0.5
"""Ridge penalty of a member's weight."""
CATEGORY_PENALTY = 15.0
"""Ridge penalty of its deviation by category; chosen by log loss on folds."""
GAIN_PENALTY = 0.1
"""Ridge penalty of the stopping rule's coefficients."""
GAIN_CATEGORY_PENALTY = 30.0
"""Ridge penalty of its coefficients of the category."""
FOLDS = 3
MAX_ITERATIONS = 60


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
    def folds(self) -> NDArray[np.int64]:
        """Return a fixed random fold of each prompt."""
        return np.random.default_rng(0).permutation(len(self.labels)) % FOLDS

    def rows(self, chosen: NDArray[np.int64]) -> Answers:
        """Return the answers to some prompts."""
        return replace(
            self,
            classes=self.classes[chosen],
            scores=self.scores[chosen],
            costs=self.costs[chosen],
            tokens=self.tokens[chosen],
            labels=self.labels[chosen],
        )


def fit_weights(classes: NDArray[np.int64], scores: Array, posterior: Array | None) -> AnswerWeights:
    """Fit the weights of some members, whose `classes` and `scores` have shape (n_prompts, n_members).

    Without `posterior` (n_prompts, n_categories), weights do not depend on the category. If several answer classes of a
    prompt score, they share its probability mass.
    """
    from scipy.optimize import minimize

    members = classes.shape[1]
    width = 1 if posterior is None else 1 + posterior.shape[1]
    inputs = design(np.empty((len(classes), 0)) if posterior is None else posterior, width)
    same, first = support(classes)
    target = _targets(first, scores)
    penalty = np.full((members + 1, width), CATEGORY_PENALTY)
    penalty[:, 0] = MEMBER_PENALTY

    def loss(flat: Array) -> tuple[float, Array]:
        values = flat.reshape(members + 1, width)
        logits = AnswerWeights(values[:-1], values[-1]).logits(same, first, inputs)
        probabilities = softmax(logits)
        error = probabilities - target
        by_member = np.einsum("ni,nij->nj", np.where(first, error[:, :-1], 0.0), same)
        slope = np.vstack((by_member.T @ inputs, error[:, -1] @ inputs)) + penalty * values
        likelihood = float((target * np.log(np.maximum(probabilities, 1e-300))).sum())
        return 0.5 * float((penalty * values**2).sum()) - likelihood, slope.ravel()

    found = minimize(
        loss, np.zeros((members + 1) * width), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS}
    )
    values = found.x.reshape(members + 1, width)
    return AnswerWeights(values[:-1], values[-1])


def _targets(first: NDArray[np.bool_], scores: Array) -> Array:
    """Return the share of each answer class, and of "none", in being right, shape (n_prompts, n_members + 1)."""
    earned = np.where(first, scores, 0.0)
    total = earned.sum(axis=1, keepdims=True)
    return np.column_stack((earned / np.maximum(total, 1.0), 1.0 - np.minimum(total, 1.0)))


def held_out_probabilities(answers: Answers, columns: Sequence[int], *, by_category: bool) -> Array:
    """Return answer probabilities of the members in `columns`, each prompt by weights fitted on the other folds."""
    picked = list(columns)
    found = np.empty((len(answers.labels), len(picked) + 1))
    for fold in range(FOLDS):
        train, test = answers.folds != fold, answers.folds == fold
        posterior = answers.posterior if by_category else None
        weights = fit_weights(
            answers.classes[train][:, picked],
            answers.scores[train][:, picked],
            None if posterior is None else posterior[train],
        )
        found[test] = weights.probabilities(answers.classes[test][:, picked], answers.posterior[test])
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The outcome of a policy on each prompt: the score, the cost and the calls, arrays of shape (n_prompts,), and the
    coefficients of each step's stopping rule."""

    scores: Array
    costs: Array
    calls: Array
    gains: tuple[Array, ...]

    def net(self, price: float) -> float:
        """Return the mean score minus the price of the cost."""
        return float((self.scores - price * self.costs).mean())


@dataclass(frozen=True, slots=True, eq=False)
class AnsweredSet:
    """The state of a policy once some members have answered.

    `scores` (n_prompts,) of the answer that would be returned, `features` (n_prompts, n_features) for the stopping
    rule; `unreadable` (n_prompts,) marks prompts without a readable answer; `chosen` (n_prompts,) is the column of that
    answer.
    """

    scores: Array
    features: Array
    unreadable: NDArray[np.bool_]
    chosen: NDArray[np.int64]

    def latest(self, scores: Array) -> AnsweredSet:
        """Return the state if `scores` (n_prompts,) are those of the latest answer, which goes out unreadable."""
        return replace(self, scores=np.where(self.unreadable, scores, self.scores))


def answered_set(answers: Answers, columns: Sequence[int], probabilities: Array, *, latest: int) -> AnsweredSet:
    """Return what follows from the answers of `columns`, given the probabilities that they are right.

    `latest` is the position of the first member of the latest step.
    """
    columns = list(columns)
    chosen = np.asarray(columns)[best_answer(probabilities, otherwise=latest)]
    length = relative_length(answers.tokens[:, columns], answers.typical[columns])
    features = stop_features(probabilities, answers.posterior, length)
    unreadable = ~(probabilities[:, :-1].max(axis=1) > 0)
    return AnsweredSet(answers.scores[np.arange(len(chosen)), chosen], features, unreadable, chosen)


def stop_backwards(
    answered: Sequence[AnsweredSet],
    costs: Sequence[Array],
    calls: Sequence[int],
    *,
    price: float,
    folds: NDArray[np.int64] | None = None,
) -> Outcome:
    """Fit when to stop between steps, by backward induction at `price` per unit of cost.

    `answered` is the state after each step, `costs` (n_prompts,) and `calls` are those of each step. The outcome is
    that of the rules on these prompts; with `folds` (n_prompts,), of rules that were fitted on the other folds.
    """
    everyone = np.ones(len(costs[0]), dtype=bool)
    gains = _fit_gains(answered, costs, everyone, price)
    parts = [(everyone, gains)]
    if folds is not None:
        parts = [(folds == f, _fit_gains(answered, costs, folds != f, price)) for f in range(int(folds.max()) + 1)]
    score, cost, made = (np.empty(len(everyone)) for _ in range(3))
    for rows, rules in parts:
        score[rows], cost[rows], made[rows] = _apply(answered, costs, calls, rules, rows)
    return Outcome(score, cost, made, gains)


def _fit_gains(
    answered: Sequence[AnsweredSet], costs: Sequence[Array], rows: NDArray[np.bool_], price: float
) -> tuple[Array, ...]:
    """Return the coefficients of the net gain of going on after each step but the last, fitted on some prompts.

    The value of stopping is itself a regression, whose differences are far less noisy than those of single scores.
    """
    gains: list[Array] = []
    features = [state.features[rows] for state in answered]
    worth = [f @ _ridge(f, state.scores[rows]) for f, state in zip(features, answered, strict=True)]
    value = worth[-1]
    for number in range(len(answered) - 2, -1, -1):
        ahead = value - price * costs[number + 1][rows]
        gain = _ridge(features[number], ahead - worth[number])
        value = np.where(features[number] @ gain > 0, ahead, worth[number])
        gains.insert(0, gain)
    return tuple(gains)


def _apply(
    answered: Sequence[AnsweredSet],
    costs: Sequence[Array],
    calls: Sequence[int],
    gains: Sequence[Array],
    rows: NDArray[np.bool_],
) -> tuple[Array, Array, Array]:
    """Return score, cost and calls of the rules on some prompts."""
    score = answered[-1].scores[rows]
    cost, made = np.zeros(len(score)), np.zeros(len(score))
    for number in range(len(answered) - 2, -1, -1):
        goes_on = answered[number].features[rows] @ gains[number] > 0
        cost = np.where(goes_on, cost + costs[number + 1][rows], 0.0)
        made = np.where(goes_on, made + calls[number + 1], 0.0)
        score = np.where(goes_on, score, answered[number].scores[rows])
    return score, cost + costs[0][rows], made + calls[0]


def _ridge(features: Array, target: Array) -> Array:
    penalty = np.full(features.shape[1], GAIN_CATEGORY_PENALTY)
    penalty[:STATE_FEATURES] = GAIN_PENALTY
    return np.asarray(np.linalg.solve(features.T @ features + np.diag(penalty), features.T @ target))


def replayed(
    policy: RecipePolicy, answers: Answers, posterior: Array | None = None, grades: Array | None = None
) -> tuple[Array, NDArray[np.bool_]]:
    """Run a policy on recorded answers, with the true categories unless a `posterior` is given.

    `grades` (n_prompts, n_experts) are those of its judge, NaN without one. Returns the score of each prompt, shape
    (n_prompts,), and which experts were called, (n_prompts, n_experts).
    """
    columns = member_columns(policy, answers.experts)
    found = replay(
        policy,
        answers.classes[:, columns],
        answers.tokens[:, columns],
        answers.posterior if posterior is None else posterior,
        None if grades is None else grades[:, columns],
    )
    called = np.zeros(answers.scores.shape, dtype=bool)
    called[:, columns] = found.calls
    return answers.scores[np.arange(len(called)), np.array(columns)[found.member]], called


def against_last_step(
    policy: RecipePolicy, answers: Answers, grades: Array | None = None
) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Compare the answers of a policy with those after its last step, on recorded answers.

    `grades` (n_prompts, n_experts) are those of its judge. Returns what each prompt loses by stopping early, -1 to 1,
    whether the answers differ, and whether an audit could compare them; all (n_prompts,). An audit cannot compare an
    unreadable answer that was accepted early.
    """
    columns = member_columns(policy, answers.experts)
    classes, tokens = answers.classes[:, columns], answers.tokens[:, columns]
    prompt = np.arange(len(classes))
    found = replay(policy, classes, tokens, answers.posterior, None if grades is None else grades[:, columns])
    early, is_last = found.member, found.calls.all(axis=1)
    last = replay(policy.never_stopping(), classes, tokens, answers.posterior).member
    scores, own, other = answers.scores[:, columns], classes[prompt, early], classes[prompt, last]
    is_readable = own != NO_ANSWER
    is_same = is_last | (early == last) | ((own == other) & is_readable)
    return scores[prompt, last] - scores[prompt, early], ~is_same, is_last | is_readable


class RecipeFit:
    """The fitted weights of one recipe, from which a policy follows for each price.

    `steps` are columns of members that are called at the same time.
    """

    def __init__(self, answers: Answers, *, recipe: str, steps: Sequence[Sequence[int]]) -> None:
        self._answers, self._recipe, self._steps = answers, recipe, steps
        self._prefixes = [[column for step in steps[: number + 1] for column in step] for number in range(len(steps))]
        self._answered = [
            answered_set(
                answers,
                prefix,
                held_out_probabilities(answers, prefix, by_category=True),
                latest=len(prefix) - len(step),
            )
            for prefix, step in zip(self._prefixes, steps, strict=True)
        ]
        self._weights = [
            fit_weights(answers.classes[:, prefix], answers.scores[:, prefix], answers.posterior)
            for prefix in self._prefixes
        ]

    def policy(self, price: float) -> tuple[RecipePolicy, Outcome]:
        """Return the policy at a price per unit of cost, and its outcome on prompts held out from its weights."""
        costs = [self._answers.costs[:, list(step)].sum(axis=1) for step in self._steps]
        outcome = stop_backwards(
            self._answered, costs, [len(step) for step in self._steps], price=price, folds=self._answers.folds
        )
        names = [tuple(self._answers.experts[column] for column in step) for step in self._steps]
        steps = [
            Step(members, weights, self._answers.typical[prefix], gain)
            for members, weights, prefix, gain in zip(
                names, self._weights, self._prefixes, (*outcome.gains, None), strict=True
            )
        ]
        return RecipePolicy(self._recipe, price, tuple(steps)), outcome
