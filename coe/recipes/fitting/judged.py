"""The grades of a judge for recorded answers, and the probability that a graded answer is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coe.measuring.recorded_answers import Grades
from coe.planning.uses import ASSUMED_INPUT_TOKENS, MEASURES
from coe.recipes.agreement import Array
from coe.recipes.judge import GRADE_TOKENS
from coe.registry import ExpertSpec

SLOPE_PENALTY = 0.1
"""Ridge penalty of the logistic's slope."""


@dataclass(frozen=True, slots=True, eq=False)
class Judgements:
    """The grades of one judge for an `Answers`, (n_prompts, n_experts), NaN without one.

    `cost` is the mean cost of a judgement, in the unit of the answers' costs; `uses` are those of the plan.
    """

    judge: str
    grades: Array
    cost: float
    uses: Mapping[str, float]

    @classmethod
    def of(
        cls, judge: ExpertSpec, grades: Grades, cells: tuple[NDArray[np.int64], ...], *, by_dollars: bool
    ) -> Judgements:
        """Return the grades in `cells`, and the uses by the judge's declaration. The cost of a judgement is in US
        dollars per thousand requests, or in active parameters times a thousand tokens."""
        given, written, latency = (grades.uses[name] for name in MEASURES)
        given = given if np.isfinite(given) else ASSUMED_INPUT_TOKENS
        written = written if np.isfinite(written) else GRADE_TOKENS
        dollars = (given * judge.prices.input + written * judge.prices.output) / 1000
        size, declared = np.array([judge.active_parameters_b, judge.latency_ms], dtype=np.float64)  # NaN for None
        cost = dollars if by_dollars else written / 1000 * (size if np.isfinite(size) else 1.0)
        uses = {"active_b": size, "cost": dollars, "latency_ms": latency if np.isfinite(latency) else declared}
        return cls(judge.name, grades.grades[cells], cost, uses)

    def rows(self, chosen: NDArray[np.int64]) -> Judgements:
        """Return the judgements of some prompts."""
        return replace(self, grades=self.grades[chosen])


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
