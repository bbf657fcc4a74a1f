"""Fits the answer weights and stopping rules of a recipe on recorded answers.

Weights maximise the penalised likelihood of a conditional logit. Stopping rules come from backward induction. From the
last step to the first, the realised gain of continuing, net of its cost, is regressed on the state of the answers. The
method follows least-squares Monte Carlo for optimal stopping (Longstaff and Schwartz 2001). Every estimate of quality
uses weights that were fitted on other prompts. `arms` fits recipes with this module, and `search` proposes new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coe.recipes.agreement import (
    NO_ANSWER,
    STATE_FEATURES,
    AnswerWeights,
    Array,
    best_answer,
    relative_length,
    stop_features,
    support,
)
from coe.recipes.fitting.answers import FOLDS, Answers, answers_in
from coe.recipes.policy import RecipePolicy, Step, member_columns, replay

MEMBER_PENALTY = 0.5
"""Ridge penalty of a member's weight."""
CATEGORY_PENALTY = 15.0
"""Ridge penalty of its deviation by category; chosen by log loss on folds."""
GAIN_PENALTY = 0.1
"""Ridge penalty of the stopping rule's coefficients."""
GAIN_CATEGORY_PENALTY = 30.0
"""Ridge penalty of its coefficients of the category."""
NO_CLASS = -1e30
"""Logit of a member that does not start an answer class; its probability is 0."""
MAX_ITERATIONS = 60


def fit_weights(classes: NDArray[np.int64], scores: Array, labels: NDArray[np.int64], categories: int) -> AnswerWeights:
    """Fit the weights of some members, whose `classes` and `scores` have shape (n_prompts, n_members).

    `labels` (n_prompts,) are the categories of the prompts, below `categories`; with 0 categories, weights do not
    depend on them. If several answer classes of a prompt score, they share its probability mass.
    """
    from scipy.optimize import minimize

    shape = (classes.shape[1] + 1, 1 + categories)
    labels = labels if categories else np.zeros_like(labels)
    kinds = agreement_kinds(classes)
    cells = labels * (kinds.max(initial=0) + 1) + kinds  # all that matters of a prompt, in the order of the labels
    _, chosen, of_prompt, count = np.unique(cells, return_index=True, return_inverse=True, return_counts=True)
    right = targets(support(classes)[1], scores)
    target = np.stack([np.bincount(of_prompt, column, len(chosen)) for column in right.T])
    same, first = support(classes[chosen])
    same, first = np.ascontiguousarray(same.transpose(1, 2, 0)), first.T
    present, starts = np.unique(labels[chosen], return_index=True)
    number = np.repeat(np.arange(len(starts)), np.diff([*starts.tolist(), len(chosen)]))  # of each cell's category
    penalty = np.full(shape, CATEGORY_PENALTY)
    penalty[:, 0] = MEMBER_PENALTY
    deviations = 1 + (present if categories else present[:0])

    def loss(flat: Array) -> tuple[float, Array]:
        values = flat.reshape(shape)
        by_category = values[:, :1] + values[:, deviations] if categories else values
        logits = by_category[:, number]
        logits[:-1] = np.where(first, np.einsum("ijn,jn->in", same, logits[:-1]), NO_CLASS)
        logits -= logits.max(axis=0)
        grown = np.exp(logits)
        total = grown.sum(axis=0)
        error = grown * (count / total) - target
        error[:-1] = np.einsum("in,ijn->jn", np.where(first, error[:-1], 0.0), same)
        sums = np.add.reduceat(error, starts, axis=1)
        slope = penalty * values
        slope[:, 0] += sums.sum(axis=1)
        slope[:, deviations] += sums if categories else 0.0
        likelihood = float(np.vdot(target, logits) - count @ np.log(total))
        return 0.5 * float((penalty * values**2).sum()) - likelihood, slope.ravel()

    found = minimize(loss, np.zeros(penalty.size), jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS})
    values = found.x.reshape(shape)
    return AnswerWeights(values[:-1], values[-1])


def agreement_kinds(classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a number for each prompt that is equal where the same members agree and the same have no answer.

    64 bits hold the numbers of 19 members; `policy.max_calls` allows 16.
    """
    number = np.arange(classes.shape[1])
    agree = (classes[:, :, None] == classes[:, None, :]) & (classes[:, :, None] != NO_ANSWER)
    leader = np.where(classes == NO_ANSWER, number + 1, agree.argmax(axis=2))  # of number + 2 possible values
    return np.asarray(leader @ np.concatenate(([1], np.cumprod(number[:-1] + 2))))


def targets(first: NDArray[np.bool_], scores: Array) -> Array:
    """Return the share of each answer class, and of "none", in being right, shape (n_prompts, n_members + 1)."""
    earned = np.where(first, scores, 0.0)
    total = earned.sum(axis=1, keepdims=True)
    return np.column_stack((earned / np.maximum(total, 1.0), 1.0 - np.minimum(total, 1.0)))


def held_out_weights(answers: Answers, columns: Sequence[int]) -> list[AnswerWeights]:
    """Return for each fold the weights of the members in `columns`, fitted on the other folds."""
    picked = list(columns)
    return [
        fit_weights(
            answers.classes[others][:, picked],
            answers.scores[others][:, picked],
            answers.labels[others],
            answers.n_categories,
        )
        for others in (answers.folds != fold for fold in range(FOLDS))
    ]


def held_out_probabilities(answers: Answers, columns: Sequence[int], weights: Sequence[AnswerWeights]) -> Array:
    """Return answer probabilities of the members in `columns`, each prompt by the weights of its fold."""
    found = np.empty((len(answers.labels), len(columns) + 1))
    for fold, fitted in enumerate(weights):
        rows = answers.folds == fold
        found[rows] = fitted.probabilities(answers.classes[rows][:, list(columns)], answers.posterior[rows])
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The outcome of a policy on each prompt: the score, the cost and the calls, arrays of shape (n_prompts,), and the
    coefficients of each step's stopping rule."""

    scores: Array
    costs: Array
    calls: Array
    gains: tuple[Array, ...]


class Regressions:
    """Ridge regressions on the same features and the category, on all prompts or on those outside one fold.

    `features` has shape (n_prompts, STATE_FEATURES), `labels` (n_prompts,) are the categories and `folds` (n_prompts,)
    the folds. A category has one coefficient, behind those of the features. The matrices are inverted once for all
    targets, as the search of recipes regresses thousands of them.
    """

    def __init__(
        self, features: Array, labels: NDArray[np.int64], folds: NDArray[np.int64], *, categories: int
    ) -> None:
        self.features, self.labels, self._categories = features, labels, categories
        penalty = np.full(STATE_FEATURES + categories, GAIN_CATEGORY_PENALTY)
        penalty[:STATE_FEATURES] = GAIN_PENALTY
        squares = [self._squares(np.flatnonzero(folds == fold)) for fold in range(FOLDS)]
        total = np.diag(penalty) + sum(squares)
        self._inverses = [np.linalg.inv(total - square) for square in (*squares, np.zeros_like(total))]
        self._weights = [*((folds != fold).astype(np.float64) for fold in range(FOLDS)), np.ones(len(folds))]

    def _squares(self, rows: NDArray[np.int64]) -> Array:
        """Return the sum of the outer products of the inputs of some prompts."""
        features, labels = self.features[rows], self.labels[rows]
        found = np.zeros((STATE_FEATURES + self._categories,) * 2)
        found[:STATE_FEATURES, :STATE_FEATURES] = features.T @ features
        for number, column in enumerate(features.T):
            found[number, STATE_FEATURES:] = np.bincount(labels, column, self._categories)
        found[STATE_FEATURES:, :STATE_FEATURES] = found[:STATE_FEATURES, STATE_FEATURES:].T
        counts = np.bincount(labels, minlength=self._categories)
        found[STATE_FEATURES:, STATE_FEATURES:] = np.diag(counts)
        return found

    def fit(self, target: Array, *, without: int) -> Array:
        """Return the coefficients for `target` (n_prompts,) on all prompts outside the fold `without`; FOLDS is no
        fold."""
        weighted = target * self._weights[without]
        by_category = np.bincount(self.labels, weighted, self._categories)
        return np.asarray(self._inverses[without] @ np.concatenate((self.features.T @ weighted, by_category)))

    def values(self, coefficients: Array) -> Array:
        """Return the value of each prompt (n_prompts,) by the coefficients."""
        return np.asarray(self.features @ coefficients[:STATE_FEATURES] + coefficients[STATE_FEATURES:][self.labels])


@dataclass(frozen=True, slots=True, eq=False)
class AnsweredSet:
    """The state of a policy once some members have answered.

    `scores` (n_prompts,) of the answer that would be returned, `regressions` on the inputs of the stopping rule;
    `unreadable` (n_prompts,) marks prompts without a readable answer; `chosen` (n_prompts,) is the column of that
    answer. `goes_on` (n_prompts,) marks prompts whose next step is called in any case: no answer is readable, and one
    of the latest step was cut off.
    """

    scores: Array
    regressions: Regressions
    unreadable: NDArray[np.bool_]
    chosen: NDArray[np.int64]
    goes_on: NDArray[np.bool_]

    @property
    def features(self) -> Array:
        """Return the inputs of the stopping rule without the category, shape (n_prompts, STATE_FEATURES)."""
        return self.regressions.features

    def latest(self, scores: Array) -> AnsweredSet:
        """Return the state if `scores` (n_prompts,) are those of the latest answer, which goes out unreadable."""
        return replace(self, scores=np.where(self.unreadable, scores, self.scores))


def answered_set(answers: Answers, columns: Sequence[int], probabilities: Array, *, latest: int) -> AnsweredSet:
    """Return the state after the answers of `columns`, given the probabilities that they are right.

    `latest` is the position of the first member of the latest step.
    """
    columns = list(columns)
    chosen = np.asarray(columns)[best_answer(probabilities, otherwise=latest)]
    length = relative_length(answers.tokens[:, columns], answers.typical[columns])
    features = stop_features(probabilities, np.empty((len(length), 0)), length)
    unreadable = ~(probabilities[:, :-1].max(axis=1) > 0)
    cut_off = np.zeros_like(answers.classes, dtype=bool) if answers.cut_off is None else answers.cut_off
    return AnsweredSet(
        answers.scores[np.arange(len(chosen)), chosen],
        Regressions(features, answers.labels, answers.folds, categories=answers.n_categories),
        unreadable,
        chosen,
        unreadable & cut_off[:, columns[latest:]].any(axis=1),
    )


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
    gains = _fit_gains(answered, costs, price, without=FOLDS)
    if folds is None:
        return Outcome(*_apply(answered, costs, calls, gains), gains)
    parts = [_apply(answered, costs, calls, _fit_gains(answered, costs, price, without=fold)) for fold in range(FOLDS)]
    score, cost, made = (np.choose(folds, found) for found in zip(*parts, strict=True))
    return Outcome(score, cost, made, gains)


def _fit_gains(
    answered: Sequence[AnsweredSet], costs: Sequence[Array], price: float, *, without: int
) -> tuple[Array, ...]:
    """Return the coefficients of the net gain of continuing after each step but the last, fitted outside one fold.

    The value of stopping is itself a regression, whose differences are far less noisy than those of single scores.
    """
    gains: list[Array] = []
    worth = [one.regressions.values(one.regressions.fit(one.scores, without=without)) for one in answered]
    value = worth[-1]
    for number in range(len(answered) - 2, -1, -1):
        ahead = value - price * costs[number + 1]
        gain = answered[number].regressions.fit(ahead - worth[number], without=without)
        value = np.where(_goes_on(answered[number], gain), ahead, worth[number])
        gains.insert(0, gain)
    return tuple(gains)


def _goes_on(state: AnsweredSet, gain: Array) -> NDArray[np.bool_]:
    return np.asarray((state.regressions.values(gain) > 0) | state.goes_on)


def _apply(
    answered: Sequence[AnsweredSet], costs: Sequence[Array], calls: Sequence[int], gains: Sequence[Array]
) -> tuple[Array, Array, Array]:
    """Return score, cost and calls of the rules on each prompt."""
    score = answered[-1].scores
    cost, made = np.zeros(len(score)), np.zeros(len(score))
    for number in range(len(answered) - 2, -1, -1):
        goes_on = _goes_on(answered[number], gains[number])
        cost = np.where(goes_on, cost + costs[number + 1], 0.0)
        made = np.where(goes_on, made + calls[number + 1], 0.0)
        score = np.where(goes_on, score, answered[number].scores)
    return score, cost + costs[0], made + calls[0]


@dataclass(frozen=True, slots=True, eq=False)
class ReplayedAnswers:
    """The outcome of a policy on recorded answers.

    `scores` (n_prompts,) of the returned answers; `called` (n_prompts, n_experts) is True for the experts that were
    called, and `written` of the same shape the share of an answer's tokens that was written: 1, less where a cap ended
    it, 0 if it was not called.
    """

    scores: Array
    called: NDArray[np.bool_]
    written: Array

    def costs(self, answers: Answers) -> Array:
        """Return the cost of each prompt, shape (n_prompts,)."""
        return np.asarray((answers.costs_with(self.written) * self.called).sum(axis=1))


def replayed(
    policy: RecipePolicy,
    answers: Answers,
    posterior: Array | None = None,
    grades: Array | None = None,
    *,
    streams: bool = False,
) -> ReplayedAnswers:
    """Run a policy on recorded answers, with the true categories unless a `posterior` is given.

    `grades` (n_prompts, n_experts) are those of its judge, NaN without one. With `streams`, clients stream the answers.
    """
    columns = member_columns(policy, answers.experts)
    found = replay(
        policy,
        answers.classes[:, columns],
        answers.tokens[:, columns],
        answers.posterior if posterior is None else posterior,
        None if grades is None else grades[:, columns],
        streams=streams,
    )
    called, written = np.zeros(answers.scores.shape, dtype=bool), np.zeros(answers.scores.shape)
    called[:, columns] = found.calls
    share = np.where(found.cut_off, policy.caps / np.maximum(answers.tokens[:, columns], 1e-9), 1.0)
    written[:, columns] = np.where(found.calls, share, 0.0)
    scores = answers.scores[np.arange(len(called)), np.array(columns)[found.member]]
    return ReplayedAnswers(scores, called, written)


def loss_of_stopping(policy: RecipePolicy, answers: Answers, grades: Array | None = None) -> Array:
    """Return the loss of each prompt, -1 to 1, by stopping before the last step, on recorded answers: (n_prompts,).

    `grades` (n_prompts, n_experts) are those of the policy's judge.
    """
    columns = member_columns(policy, answers.experts)
    classes, tokens, scores = answers.classes[:, columns], answers.tokens[:, columns], answers.scores[:, columns]
    early = replay(policy, classes, tokens, answers.posterior, None if grades is None else grades[:, columns]).member
    last = replay(policy.never_stopping(), classes, tokens, answers.posterior).member
    prompt = np.arange(len(classes))
    return np.asarray(scores[prompt, last] - scores[prompt, early])


class RecipeFit:
    """The fitted weights of one recipe, from which a policy follows for each price.

    `steps` are columns of members that are called at the same time, `caps` (n_experts,) the caps on their answers in
    tokens, inf without one; no caps by default.
    """

    def __init__(
        self, answers: Answers, *, recipe: str, steps: Sequence[Sequence[int]], caps: Array | None = None
    ) -> None:
        self._caps = np.full(len(answers.experts), np.inf) if caps is None else caps
        self._answers = answers = answers_in(answers, steps, self._caps)
        self._recipe, self._steps = recipe, steps
        self._prefixes = [[column for step in steps[: number + 1] for column in step] for number in range(len(steps))]
        self._answered = [
            answered_set(
                answers,
                prefix,
                held_out_probabilities(answers, prefix, held_out_weights(answers, prefix)),
                latest=len(prefix) - len(step),
            )
            for prefix, step in zip(self._prefixes, steps, strict=True)
        ]
        self._weights = [
            fit_weights(answers.classes[:, prefix], answers.scores[:, prefix], answers.labels, answers.n_categories)
            for prefix in self._prefixes
        ]

    def policy(self, price: float) -> tuple[RecipePolicy, Outcome]:
        """Return the policy at a price per unit of cost, and its outcome on prompts held out from its weights."""
        costs = [self._answers.costs[:, list(step)].sum(axis=1) for step in self._steps]
        outcome = stop_backwards(
            self._answered, costs, [len(step) for step in self._steps], price=price, folds=self._answers.folds
        )
        gains = (*outcome.gains, None)
        steps = [self._step(number, gain) for number, gain in enumerate(gains)]
        return RecipePolicy(self._recipe, price, tuple(steps)), outcome

    def _step(self, number: int, gain: Array | None) -> Step:
        members = tuple(self._answers.experts[column] for column in self._steps[number])
        caps = tuple(float(self._caps[column]) for column in self._steps[number])
        return Step(
            members,
            self._weights[number],
            self._answers.typical[self._prefixes[number]],
            gain,
            max_tokens=caps if np.isfinite(caps).any() else (),
        )
