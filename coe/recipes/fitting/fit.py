"""Fits the answer weights and stopping rules of a recipe on recorded answers.

Weights maximise the penalised likelihood of a conditional logit. Stopping rules come from backward induction. From the
last step to the first, the realised gain of continuing, net of its cost, is regressed on the state of the answers. The
method follows least-squares Monte Carlo for optimal stopping (Longstaff and Schwartz 2001). Every estimate of quality
uses weights that were fitted on other prompts.

`Answers`: the recorded answers that recipes are fitted on.

Proposes cascades and votes from recorded answers: which members, in which order, at which price.

A price is the quality that one unit of cost must add. For each price, a beam search inserts the member that raises mean
quality net of cost most, at any position, up to the largest number of calls. Then single members of its sequence are
moved or dropped. The search ignores categories; fitted policies do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coe.recipes.agreement import (
    NO_ANSWER,
    STATE_FEATURES,
    AnswerWeights,
    Array,
    GradeRule,
    best_answer,
    design,
    graded_features,
    relative_length,
    softmax,
    stop_features,
    support,
)
from coe.recipes.policy import RecipePolicy, Step
from coe.registry.recipes import PROPOSED_PREFIX

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


MEMBER_PENALTY = 0.5
"""Ridge penalty of a member's weight."""
CATEGORY_PENALTY = 15.0
"""Ridge penalty of its deviation by category; chosen by log loss on folds."""
GAIN_PENALTY = 0.1
"""Ridge penalty of the stopping rule's coefficients."""
GAIN_CATEGORY_PENALTY = 30.0
"""Ridge penalty of its coefficients of the category."""
MAX_ITERATIONS = 60


def fit_weights(classes: NDArray[np.int64], scores: Array, labels: NDArray[np.int64], categories: int) -> AnswerWeights:
    """Fit the weights of some members, whose `classes` and `scores` have shape (n_prompts, n_members).

    `labels` (n_prompts,) are the categories of the prompts, below `categories`; with 0 categories, weights do not
    depend on them. If several answer classes of a prompt score, they share its probability mass.
    """
    from scipy.optimize import minimize

    labels = labels if categories else np.zeros_like(labels)
    kinds = agreement_kinds(classes)
    cells = labels * (kinds.max(initial=0) + 1) + kinds  # all that matters of a prompt
    _, chosen, of_prompt, count = np.unique(cells, return_index=True, return_inverse=True, return_counts=True)
    earned = np.where(support(classes)[1], scores, 0.0)
    total = earned.sum(axis=1, keepdims=True)
    right = np.column_stack((earned / np.maximum(total, 1.0), 1.0 - np.minimum(total, 1.0)))  # the last is "none"
    target = np.stack([np.bincount(of_prompt, column, len(chosen)) for column in right.T], axis=1)
    same, first = support(classes[chosen])
    inputs = design(np.eye(max(categories, 1))[labels[chosen]], 1 + categories)
    shape = (classes.shape[1] + 1, 1 + categories)
    penalty = np.full(shape, CATEGORY_PENALTY)
    penalty[:, 0] = MEMBER_PENALTY

    def loss(flat: Array) -> tuple[float, Array]:
        values = flat.reshape(shape)
        probabilities = softmax(AnswerWeights(values[:-1], values[-1]).logits(same, first, inputs))
        likelihood = (target * np.log(np.maximum(probabilities, 1e-300))).sum()
        error = probabilities * count[:, None] - target  # 0 for a member that does not start an answer class
        error[:, :-1] = np.einsum("nij,ni->nj", same, error[:, :-1])
        slope = error.T @ inputs + penalty * values
        return 0.5 * float((penalty * values**2).sum()) - float(likelihood), slope.ravel()

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


class Regressions:
    """Ridge regressions on the same features and the category, on all prompts or on those outside one fold.

    `features` has shape (n_prompts, STATE_FEATURES), `labels` (n_prompts,) are the categories and `folds` (n_prompts,)
    the folds. A category has one coefficient, behind those of the features. The matrices are inverted once for all
    targets, as the search of recipes regresses thousands of them.
    """

    def __init__(
        self, features: Array, labels: NDArray[np.int64], folds: NDArray[np.int64], *, categories: int
    ) -> None:
        self.features, self.labels, self._folds, self._categories = features, labels, folds, categories
        inputs = np.column_stack((features, np.eye(categories)[labels]))
        penalty = np.full(inputs.shape[1], GAIN_CATEGORY_PENALTY)
        penalty[:STATE_FEATURES] = GAIN_PENALTY
        squares = [inputs[folds == fold].T @ inputs[folds == fold] for fold in range(FOLDS)]
        total = np.diag(penalty) + sum(squares)
        self._inverses = [np.linalg.inv(total - square) for square in (*squares, 0.0)]

    def fit(self, target: Array, *, without: int) -> Array:
        """Return the coefficients for `target` (n_prompts,) on all prompts outside the fold `without`; FOLDS is no
        fold."""
        kept = np.where(self._folds == without, 0.0, target)
        by_category = np.bincount(self.labels, kept, self._categories)
        return np.asarray(self._inverses[without] @ np.concatenate((self.features.T @ kept, by_category)))

    def values(self, coefficients: Array) -> Array:
        """Return the value of each prompt (n_prompts,) by the coefficients."""
        return np.asarray(self.features @ coefficients[:STATE_FEATURES] + coefficients[STATE_FEATURES:][self.labels])


@dataclass(frozen=True, slots=True, eq=False)
class AnsweredSet:
    """The state of a policy once some members have answered.

    `scores` (n_prompts,) of the answer that would be returned, `chosen` (n_prompts,) its column; `unreadable`
    (n_prompts,) marks prompts without a readable answer. `regressions` are on the inputs of the stopping rule.
    """

    scores: Array
    chosen: NDArray[np.int64]
    unreadable: NDArray[np.bool_]
    regressions: Regressions

    @classmethod
    def of(cls, answers: Answers, columns: Sequence[int], probabilities: Array, *, latest: int = 0) -> AnsweredSet:
        """Return the state after the answers of `columns`, given the probabilities that they are right.

        `latest` is the position of the first member of the latest step.
        """
        columns = list(columns)
        chosen = np.asarray(columns)[best_answer(probabilities, otherwise=latest)]
        length = relative_length(answers.tokens[:, columns], answers.typical[columns])
        features = stop_features(probabilities, np.empty((len(length), 0)), length)
        return cls(
            answers.scores[np.arange(len(chosen)), chosen],
            chosen,
            ~(probabilities[:, :-1].max(axis=1) > 0),
            Regressions(features, answers.labels, answers.folds, categories=answers.n_categories),
        )

    def latest(self, scores: Array) -> AnsweredSet:
        """Return the state if `scores` (n_prompts,) are those of the latest answer, which goes out unreadable."""
        return replace(self, scores=np.where(self.unreadable, scores, self.scores))


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The score and the cost of a policy on each prompt (n_prompts,), and the coefficients of its stopping rules."""

    scores: Array
    costs: Array
    gains: tuple[Array, ...]


def fit_stops(
    states: Sequence[AnsweredSet], costs: Sequence[Array], *, price: float, folds: NDArray[np.int64] | None = None
) -> Outcome:
    """Fit when to stop between steps, by backward induction at `price` per unit of cost.

    `states` are those after each step, `costs` (n_prompts,) of each step. The outcome is that of the rules on these
    prompts; with `folds` (n_prompts,), of rules that were fitted on the other folds.
    """
    gains = _fit_gains(states, costs, price, without=FOLDS)
    if folds is None:
        return Outcome(*_apply(states, costs, gains), gains)
    parts = [_apply(states, costs, _fit_gains(states, costs, price, without=fold)) for fold in range(FOLDS)]
    scores, spent = (np.choose(folds, found) for found in zip(*parts, strict=True))
    return Outcome(scores, spent, gains)


def _fit_gains(
    states: Sequence[AnsweredSet], costs: Sequence[Array], price: float, *, without: int
) -> tuple[Array, ...]:
    """Return the coefficients of the net gain of continuing after each step but the last, fitted outside one fold.

    The value of stopping is itself a regression, whose differences are far less noisy than those of single scores.
    """
    gains: list[Array] = []
    worth = [state.regressions.values(state.regressions.fit(state.scores, without=without)) for state in states]
    value = worth[-1]
    for number in range(len(states) - 2, -1, -1):
        regressions, ahead = states[number].regressions, value - price * costs[number + 1]
        gain = regressions.fit(ahead - worth[number], without=without)
        value = np.where(regressions.values(gain) > 0, ahead, worth[number])
        gains.insert(0, gain)
    return tuple(gains)


def _apply(states: Sequence[AnsweredSet], costs: Sequence[Array], gains: Sequence[Array]) -> tuple[Array, Array]:
    """Return score and cost of the rules on each prompt."""
    score, cost = states[-1].scores, np.zeros(len(states[-1].scores))
    for number in range(len(states) - 2, -1, -1):
        must_continue = states[number].regressions.values(gains[number]) > 0
        cost = np.where(must_continue, cost + costs[number + 1], 0.0)
        score = np.where(must_continue, score, states[number].scores)
    return score, cost + costs[0]


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """A fitted policy, and its scores and costs (n_prompts,) by rules that were fitted on other prompts."""

    policy: RecipePolicy
    scores: Array
    costs: Array


SLOPE_PENALTY = 0.1
"""Ridge penalty of the slope of the logistic from grades to the probability of being right."""


@dataclass(frozen=True, slots=True, eq=False)
class Judgements:
    """The grades of one judge for an `Answers`, (n_prompts, n_experts), NaN without one.

    `cost` is the mean cost of a judgement, in the unit of the answers' costs; `uses` are those of the plan.
    """

    judge: str
    grades: Array
    cost: float
    uses: Mapping[str, float]


def fit_logistic(grades: Array, scores: Array) -> tuple[float, float]:
    """Return intercept and slope of the probability of being right, from grades, NaN without one, and the scores in
    [0, 1] of the graded answers."""
    from scipy.optimize import minimize

    known = np.isfinite(grades)
    centred, right = grades[known] - 5.0, scores[known]

    def loss(values: Array) -> float:
        logits = values[0] + values[1] * centred
        penalty = 0.5 * (1e-3 * values[0] ** 2 + SLOPE_PENALTY * values[1] ** 2)
        return float((np.logaddexp(0.0, logits) - right * logits).sum() + penalty)

    intercept, slope = minimize(loss, np.zeros(2)).x.tolist()
    return intercept - 5.0 * slope, slope


class RecipeFit:
    """The fitted weights of one recipe, from which an arm follows for each price.

    `steps` are columns of members that are called at the same time. With the `judgements` of a judge, the best answer
    after each step but the last is graded: the probability by its grade takes the place of the highest answer
    probability, and each judgement adds to the cost of its step.
    """

    def __init__(self, answers: Answers, steps: Sequence[Sequence[int]], judgements: Judgements | None = None) -> None:
        self._answers, self._steps, self._judgements = answers, [list(step) for step in steps], judgements
        self._prefixes = [[column for step in self._steps[:end] for column in step] for end in range(1, len(steps) + 1)]
        self._weights = [self._fit(prefix, np.full(len(answers.labels), True)) for prefix in self._prefixes]
        self._states = [
            AnsweredSet.of(answers, prefix, self._held_out(prefix), latest=len(prefix) - len(step))
            for prefix, step in zip(self._prefixes, self._steps, strict=True)
        ]

    def _fit(self, columns: list[int], rows: NDArray[np.bool_]) -> AnswerWeights:
        answers = self._answers
        return fit_weights(
            answers.classes[rows][:, columns],
            answers.scores[rows][:, columns],
            answers.labels[rows],
            answers.n_categories,
        )

    def _held_out(self, columns: list[int]) -> Array:
        """Return answer probabilities of some members, each prompt by weights that were fitted on other folds."""
        answers = self._answers
        found = np.empty((len(answers.labels), len(columns) + 1))
        for fold in range(FOLDS):
            rows = answers.folds == fold
            weights = self._fit(columns, ~rows)
            found[rows] = weights.probabilities(answers.classes[rows][:, columns], answers.posterior[rows])
        return found

    def losses(self, arm: Arm) -> Array:
        """Return what an arm loses on each prompt by stopping before the last step, -1 to 1: (n_prompts,)."""
        return replayed(arm.policy.never_stopping(), self._answers).scores - arm.scores

    def arm(self, price: float) -> Arm:
        """Return the arm at a price per unit of cost."""
        answers = self._answers
        costs = [answers.costs[:, step].sum(axis=1) for step in self._steps]
        outcome = fit_stops(self._states, costs, price=price, folds=answers.folds)
        steps = [
            Step(tuple(answers.experts[column] for column in step), weights, answers.typical[prefix], gain)
            for step, weights, prefix, gain in zip(
                self._steps, self._weights, self._prefixes, (*outcome.gains, None), strict=True
            )
        ]
        if self._judgements is None:
            return Arm(RecipePolicy(tuple(steps)), outcome.scores, outcome.costs)
        early = self._prefixes[-2]
        logistic = fit_logistic(self._judgements.grades[:, early], answers.scores[:, early])
        states = [*(self._graded(state, logistic) for state in self._states[:-1]), self._last_state()]
        costs = [*(cost + self._judgements.cost for cost in costs[:-1]), costs[-1]]
        outcome = fit_stops(states, costs, price=price, folds=answers.folds)
        rules = [*(GradeRule(*logistic, gain) for gain in outcome.gains), None]
        graded = tuple(replace(step, graded=rule) for step, rule in zip(steps, rules, strict=True))
        return Arm(RecipePolicy(graded, self._judgements.judge), outcome.scores, outcome.costs)

    def _graded(self, state: AnsweredSet, logistic: tuple[float, float]) -> AnsweredSet:
        """Return the state with the grades of its best answers; where there is none, the rule of agreement decides."""
        assert self._judgements is not None
        grades = self._judgements.grades[np.arange(len(state.chosen)), state.chosen]
        believed, features = GradeRule(*logistic, np.empty(0)).probability(grades), state.regressions.features
        features = graded_features(features, np.where(np.isfinite(grades), believed, features[:, 1]))
        answers = self._answers
        regressions = Regressions(features, answers.labels, answers.folds, categories=answers.n_categories)
        return replace(state, regressions=regressions)

    def _last_state(self) -> AnsweredSet:
        """Return the state after the last step of a judged cascade, whose first answer is returned if none of it is
        readable."""
        last = self._steps[-1]
        is_unreadable = (self._answers.classes[:, last] == NO_ANSWER).all(axis=1)
        state = self._states[-1]
        return replace(state, scores=np.where(is_unreadable, self._answers.scores[:, last[0]], state.scores))


@dataclass(frozen=True, slots=True, eq=False)
class ReplayedAnswers:
    """The outcome of a policy on recorded answers: `scores` (n_prompts,) of the returned answers, `costs` (n_prompts,)
    of all calls, and `called` (n_prompts, n_experts), True for the experts that were called."""

    scores: Array
    costs: Array
    called: NDArray[np.bool_]


def replayed(
    policy: RecipePolicy, answers: Answers, posterior: Array | None = None, grades: Array | None = None
) -> ReplayedAnswers:
    """Run a policy on recorded answers, with the true categories unless a `posterior` is given.

    `grades` (n_prompts, n_experts) are those of its judge, NaN without one. Where no answer is readable, the first one
    of the latest step is returned, as in serving. With a judge, the first of the last step is returned if none of it is
    readable, since the judge has rejected the earlier answers.
    """
    columns = [answers.experts.index(name) for name in policy.members]
    classes, tokens = answers.classes[:, columns], answers.tokens[:, columns]
    posterior = answers.posterior if posterior is None else posterior
    live, seen = np.arange(len(classes)), 0
    chosen, called = np.zeros(len(classes), dtype=np.int64), np.zeros(answers.scores.shape, dtype=bool)
    for number, step in enumerate(policy.steps):
        first, seen = seen, seen + len(step.members)
        called[live[:, np.newaxis], columns[first:seen]] = True
        so_far = classes[live, :seen], tokens[live, :seen], posterior[live]
        probabilities, must_continue = policy.evaluate(number, *so_far)
        chosen[live] = best_answer(probabilities, otherwise=first)
        if policy.judge and step.gain is None:
            is_unreadable = (classes[live, first:seen] == NO_ANSWER).all(axis=1)
            chosen[live] = np.where(is_unreadable, first, chosen[live])
        if grades is not None:
            graded = grades[live, np.array(columns)[chosen[live]]]
            _, must_continue = policy.evaluate(number, *so_far, graded)
        live = live[must_continue]
    scores = answers.scores[np.arange(len(chosen)), np.array(columns)[chosen]]
    return ReplayedAnswers(scores, (answers.costs * called).sum(axis=1), called)


LEVEL = 0.05
"""Largest probability that an accepted arm breaks its bound."""
MAX_BET = 0.75
"""Largest share of the capital of the test that one prompt can lose."""


def bounded_arm(fit: RecipeFit, prices: Sequence[float], max_loss: float) -> Arm | None:
    """Return the arm at the last of ascending `prices` up to which each is shown to lose less than `max_loss`; None
    without one. Since the first failure ends the sequence, an arm that breaks the bound is accepted in at most LEVEL of
    cases (Angelopoulos et al. 2021, Learn then Test)."""
    accepted = None
    for price in prices:
        arm = fit.arm(price)
        if loss_p_value(fit.losses(arm), max_loss) > LEVEL:
            break
        accepted = replace(arm, policy=replace(arm.policy, max_loss=max_loss))
    return accepted


def loss_p_value(losses: Array, max_loss: float) -> float:
    """Return a p-value of "the mean loss is at least `max_loss`"; losses (n_prompts,) lie in [-1, 1].

    A betting test, valid for any number of prompts (Waudby-Smith and Ramdas 2024): each prompt multiplies the capital
    by 1 + bet * (max_loss - loss), with a bet that depends on earlier prompts only and approximately maximises the
    expected logarithm. Under the hypothesis the mean capital is at most 1 at any time.
    """
    gain = max_loss - np.random.default_rng(0).permutation(losses)
    count = np.arange(2, len(gain) + 1)
    mean = np.concatenate(([0.0], (np.cumsum(gain)[:-1] + 0.5 * max_loss) / count))[: len(gain)]
    spread = np.concatenate(([0.25], (np.cumsum((gain - mean) ** 2)[:-1] + 0.25) / count))[: len(gain)]
    bets = np.clip(mean / (spread + mean**2), 0.0, MAX_BET / (1.0 - max_loss))
    return float(np.exp(-max(0.0, np.log1p(bets * gain).sum())))


SEARCHED_PRICES = (0.2, 0.1, 0.05, 0.035, 0.025, 0.016, 0.01, 0.004, 0.001)
"""Prices at which recipes are proposed: the quality that a call of median cost must add."""
MAX_CANDIDATES = 16
"""Experts that the search considers: the best ones by quality net of cost at the price, and the cheapest ones."""
BEAM_WIDTH = 3
"""Sequences that the search extends at the same time."""
MemberOrder = tuple[int, ...]
"""Columns of the answers in the order of their members' calls."""


def propose_arms(answers: Answers, *, max_calls: int) -> dict[str, Arm]:
    """Return the arms of the recipes that pay, auto-1, auto-2, ... from the cheapest on; empty if single experts are
    best at every price.

    No two have the same members, so that a recipe that fails is not replaced by one that calls them again.
    """
    search = RecipeSearch(answers, max_calls=max_calls)
    proposed: dict[frozenset[int], Arm] = {}
    for price in (searched / answers.typical_cost for searched in SEARCHED_PRICES):
        sequence = search.best_sequence(price)
        if len(sequence) > 1 and frozenset(sequence) not in proposed:
            proposed[frozenset(sequence)] = RecipeFit(answers, [[member] for member in sequence]).arm(price)
    return {f"{PROPOSED_PREFIX}{number}": arm for number, arm in enumerate(proposed.values(), start=1)}


class RecipeSearch:
    """Searches member sequences on one table of answers.

    What follows from the answers of a set of members does not depend on their order. So it is estimated once for all
    sequences and prices.
    """

    def __init__(self, answers: Answers, *, max_calls: int) -> None:
        self._answers, self._max_calls = answers, max_calls
        self._sets: dict[frozenset[int], AnsweredSet] = {}

    def best_sequence(self, price: float) -> MemberOrder:
        """Return the best sequence at a price per unit of cost; it has one member if no recipe pays."""
        candidates = self._candidates(price)
        beam: list[MemberOrder] = [()]
        best: MemberOrder = ()
        value = -np.inf
        for _ in range(min(self._max_calls, len(candidates))):
            values = self._values({grown for started in beam for grown in _insertions(started, candidates)}, price)
            beam = sorted(values, key=lambda sequence: -values[sequence])[:BEAM_WIDTH]
            if values[beam[0]] > value:
                best, value = beam[0], values[beam[0]]
        while values := self._values(_moves(best), price):
            better = max(values, key=lambda sequence: values[sequence])
            if values[better] <= value:
                break
            best, value = better, values[better]
        return best

    def _candidates(self, price: float) -> list[int]:
        """Return the experts of highest mean quality net of cost at several prices up to this one."""
        scores, costs = self._answers.scores.mean(axis=0), self._answers.costs.mean(axis=0)
        ranks = [np.argsort(-(scores - factor * price * costs)) for factor in (1.0, 0.0, 3.0)]
        found = dict.fromkeys(int(column) for column in np.column_stack(ranks).ravel())
        return list(found)[:MAX_CANDIDATES]

    def _values(self, sequences: Iterable[MemberOrder], price: float) -> dict[MemberOrder, float]:
        """Return the mean quality net of cost of each sequence."""
        answers, values = self._answers, {}
        for sequence in sequences:
            states = [
                self._answered(frozenset(sequence[: length + 1])).latest(answers.scores[:, column])
                for length, column in enumerate(sequence)
            ]
            outcome = fit_stops(states, [answers.costs[:, column] for column in sequence], price=price)
            values[sequence] = float((outcome.scores - price * outcome.costs).mean())
        return values

    def _answered(self, members: frozenset[int]) -> AnsweredSet:
        if members not in self._sets:
            answers, columns = self._answers, sorted(members)
            classes = answers.classes[:, columns]
            weights = fit_weights(classes, answers.scores[:, columns], answers.labels, 0)
            probabilities = weights.probabilities(classes, answers.posterior)
            self._sets[members] = AnsweredSet.of(answers, columns, probabilities)
        return self._sets[members]


def _insertions(sequence: MemberOrder, candidates: list[int]) -> set[MemberOrder]:
    """Return the sequences with one more member at any position."""
    return {
        (*sequence[:position], column, *sequence[position:])
        for column in candidates
        if column not in sequence
        for position in range(len(sequence) + 1)
    }


def _moves(sequence: MemberOrder) -> set[MemberOrder]:
    """Return the sequences with one member moved or dropped."""
    found: set[MemberOrder] = set()
    for position, column in enumerate(sequence):
        rest = sequence[:position] + sequence[position + 1 :]
        found |= {(*rest[:other], column, *rest[other:]) for other in range(len(sequence))}
        if rest:
            found.add(rest)
    return found - {sequence}
