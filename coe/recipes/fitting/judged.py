"""Fits the rules of a cascade with a judge: the probability that a graded answer is right, and when to accept it.

The logistic from grade to probability is fitted on all graded answers of the members before the last step. The rest is
`fit`: the judge's probability takes the place of the highest answer probability in the state of the answers, and each
judgement adds to the cost of its step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coe.measuring.quality import Quality
from coe.measuring.recorded_answers import Grades
from coe.planning import MEASURES
from coe.planning.uses import ASSUMED_INPUT_TOKENS
from coe.recipes.agreement import NO_ANSWER, Array
from coe.recipes.fitting.answers import Answers
from coe.recipes.fitting.fit import AnsweredSet, Outcome, RecipeFit, Regressions, stop_backwards
from coe.recipes.judge import GRADE_TOKENS, GradeRule, graded_features
from coe.recipes.policy import RecipePolicy
from coe.registry import ExpertSpec, RecipeSpec

SLOPE_PENALTY = 0.1
"""Ridge penalty of the logistic's slope."""
MAX_ITERATIONS = 50


@dataclass(frozen=True, slots=True, eq=False)
class Judgements:
    """The grades of one judge for an `Answers`, (n_prompts, n_experts), NaN without one.

    `cost` is the mean cost of a judgement, in the unit of the answers' costs.
    """

    judge: str
    grades: Array
    cost: float

    def rows(self, chosen: NDArray[np.int64]) -> Judgements:
        """Return the judgements of some prompts."""
        return replace(self, grades=self.grades[chosen])


@dataclass(frozen=True, slots=True, eq=False)
class JudgeUse:
    """The grades of a judge, and what one judgement takes in the plan's units."""

    judgements: Judgements
    active_b: float
    dollars: float
    latency_ms: float

    @classmethod
    def of(
        cls, judge: ExpertSpec, grades: Grades, cells: tuple[NDArray[np.int64], ...], *, by_dollars: bool
    ) -> JudgeUse:
        """Return the grades in `cells`, and the uses by the judge's declaration. The cost of a judgement is in US
        dollars per thousand requests, or in active parameters times a thousand tokens."""
        given, written, latency = (grades.uses[name] for name in MEASURES)
        given = given if np.isfinite(given) else ASSUMED_INPUT_TOKENS
        written = written if np.isfinite(written) else GRADE_TOKENS
        dollars = (given * judge.prices.input + written * judge.prices.output) / 1000
        size = np.nan if judge.active_parameters_b is None else judge.active_parameters_b
        cost = dollars if by_dollars else written / 1000 * (size if np.isfinite(size) else 1.0)
        if not np.isfinite(latency):
            latency = np.nan if judge.latency_ms is None else judge.latency_ms
        return cls(Judgements(judge.name, grades.grades[cells], cost), size, dollars, latency)


def ungraded(recipe: RecipeSpec, grades: Grades | None, data: Quality, prompts: Sequence[int]) -> str:
    """Return why the rules of a cascade with a judge cannot be fitted; empty if its answers to `prompts` are graded."""
    cells = data.grid(prompts, recipe.graded_members)
    command = f"`coe score PROBES --out FOLDER --recipe {recipe.name}` collects them"
    if grades is None:
        return f"no grades of its judge {recipe.judge!r}; {command}"
    known = grades.recorded[cells].all(axis=1)
    if not known.all():
        return (
            f"grades of its judge {recipe.judge!r} are recorded for {known.sum()} of {len(prompts)} probes; {command}"
        )
    if not np.isfinite(grades.grades[cells]).any():
        return f"its judge {recipe.judge!r} gave no grade; a stronger one may"
    return ""


def fit_logistic(grades: Array, scores: Array) -> tuple[float, float]:
    """Return intercept and slope of the probability of being right, from grades (n,) and scores (n,) in [0, 1].

    Newton's method on the penalised likelihood. Raises ValueError without a grade.
    """
    if not len(grades):
        raise ValueError("no grades")
    inputs = np.column_stack((np.ones(len(grades)), grades - 5.0))
    penalty = np.diag([1e-3, SLOPE_PENALTY])
    values = np.zeros(2)
    for _ in range(MAX_ITERATIONS):
        believed = 1 / (1 + np.exp(-np.clip(inputs @ values, -30, 30)))
        slope = inputs.T @ (scores - believed) - penalty @ values
        curvature = (inputs * (believed * (1 - believed))[:, None]).T @ inputs + penalty
        step = np.linalg.solve(curvature, slope)
        values = values + np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-9:
            break
    return float(values[0] - 5.0 * values[1]), float(values[1])


class JudgedFit(RecipeFit):
    """The fitted weights of a cascade whose best answer after each step but the last is graded."""

    def __init__(
        self, answers: Answers, judgements: Judgements, *, recipe: str, steps: Sequence[Sequence[int]]
    ) -> None:
        super().__init__(answers, recipe=recipe, steps=steps)
        self._judgements = judgements
        early = [column for step in steps[:-1] for column in step]
        grades, scores = judgements.grades[:, early].ravel(), answers.scores[:, early].ravel()
        known = np.isfinite(grades)
        self._logistic = fit_logistic(grades[known], scores[known])

    def policy(self, price: float) -> tuple[RecipePolicy, Outcome]:
        """Return the policy at a price per unit of cost, and its outcome on prompts held out from its weights.

        Where there is no grade, the rule of agreement decides.
        """
        by_agreement, _ = super().policy(price)
        costs = [self._answers.costs[:, list(step)].sum(axis=1) for step in self._steps]
        costs = [*(cost + self._judgements.cost for cost in costs[:-1]), costs[-1]]
        states = [self._graded(state) for state in self._answered[:-1]]
        calls = [*(len(step) + 1 for step in self._steps[:-1]), len(self._steps[-1])]
        outcome = stop_backwards([*states, self._last_state()], costs, calls, price=price, folds=self._answers.folds)
        rules = [*(GradeRule(*self._logistic, gain) for gain in outcome.gains), None]
        steps = tuple(replace(step, graded=rule) for step, rule in zip(by_agreement.steps, rules, strict=True))
        return replace(by_agreement, steps=steps, judge=self._judgements.judge), outcome

    def _graded(self, state: AnsweredSet) -> AnsweredSet:
        """Return the state with the grades of its best answers."""
        grades = self._judgements.grades[np.arange(len(state.chosen)), state.chosen]
        believed = GradeRule(*self._logistic, np.empty(0)).probability(grades)
        top = state.features[:, 1]
        features = graded_features(state.features, np.where(np.isfinite(grades), believed, top))
        answers = self._answers
        regressions = Regressions(features, answers.labels, answers.folds, categories=answers.n_categories)
        return replace(state, regressions=regressions)

    def _last_state(self) -> AnsweredSet:
        """Return the state after the last step, whose first answer is returned if none of it is readable."""
        state, last = self._answered[-1], list(self._steps[-1])
        is_unreadable = (self._answers.classes[:, last] == NO_ANSWER).all(axis=1)
        return replace(state, scores=np.where(is_unreadable, self._answers.scores[:, last[0]], state.scores))
