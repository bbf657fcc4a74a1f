"""`TrafficLengths`: how much longer users' requests are than the probes, so that recipes are fitted to requests.

A stopping rule sees how long answers are, and a cap ends the long ones. If it is fitted on probes whose answers are
longer or shorter than users', it stops at the wrong answers in service. So the recorded tokens and times are scaled by
category and expert to the means that the plan expects of requests (`coe.mapping.MeasuredUses.updated`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from coe.experts.recipes.agreement import Array
from coe.learning.evaluation.grades import Grades
from coe.learning.evaluation.quality import Quality, column_means
from coe.learning.evaluation.recorded_answers import RecordedAnswers
from coe.mapping import MEASURES, MeasuredUses

CACHED = "cached_tokens"


@dataclass(frozen=True, slots=True, eq=False)
class TrafficLengths:
    """Mean uses of requests over those of the probes `rows`, by measure of MEASURES.

    `ratios` and `means` (of requests) have shape (n_categories, n_experts). A ratio is 1 where either mean is unknown.
    `labels` (n_rows,) are the categories of the probes by index. `cached` (n_categories, n_experts) is the share of
    cached tokens in the input.
    """

    rows: Sequence[int]
    labels: NDArray[np.int64]
    experts: tuple[str, ...]
    ratios: Mapping[str, Array]
    means: Mapping[str, Array]
    cached: Array

    @classmethod
    def of(
        cls,
        expected: MeasuredUses,
        data: Quality,
        recorded: RecordedAnswers | None,
        *,
        rows: Sequence[int],
        experts: Sequence[str],
        categories: Sequence[str],
    ) -> TrafficLengths:
        """Compare the `expected` uses of requests with what the recorded answers to the probes used."""
        cells, labels = data.grid(rows, experts), data.labels(rows, categories)
        known = {name: values[cells] for name, values in data.uses.items()}
        if recorded is not None:
            known["output_tokens"] = recorded.tokens[cells]
        requests = expected.over(categories, experts)
        means = {name: getattr(requests, name) for name in MEASURES}
        ratios = {name: _ratios(means[name], known.get(name), labels) for name in MEASURES}
        cached = np.nan_to_num(requests.cached_tokens / np.maximum(requests.input_tokens, 1.0))
        return cls(rows, labels, tuple(experts), ratios, means, cached)

    def of_requests(self, data: Quality, recorded: RecordedAnswers | None) -> tuple[Quality, RecordedAnswers | None]:
        """Return the probes with the tokens and times that their answers would have as requests.

        An expert whose probes were not counted has the mean of its requests.
        """
        cells = data.grid(self.rows, self.experts)
        uses = {}
        for name in MEASURES:
            values = data.uses.get(name, np.full(data.scores.shape, np.nan)).copy()
            scaled = values[cells] * self.ratios[name][self.labels]
            uncounted = ~np.isfinite(scaled).any(axis=0)
            values[cells] = np.where(uncounted, self.means[name][self.labels], scaled)
            uses[name] = values
        uses[CACHED] = np.zeros(data.scores.shape)
        uses[CACHED][cells] = uses["input_tokens"][cells] * self.cached[self.labels]
        if recorded is None:
            return replace(data, uses=uses), None
        tokens = recorded.tokens.copy()
        tokens[cells] *= self.ratios["output_tokens"][self.labels]
        return replace(data, uses=uses), replace(recorded, tokens=tokens)

    def of_calls(
        self, uses: Mapping[str, Array], steps: Sequence[Sequence[str]], labels: NDArray[np.int64]
    ) -> dict[str, Array]:
        """Return measured calls, (n_prompts, n_calls) by measure, as calls of requests.

        `steps` are the members of each step, in the order of the calls; `labels` (n_prompts,) are the categories of the
        prompts. Later steps read the conversation, as long as in the first step, and the drafts of the step before.
        The drafts grow by the same factor as its answers, and are in no prefix cache.
        """
        cells = np.ix_(labels, np.array([self.experts.index(one) for step in steps for one in step]))
        found = {name: values * self.ratios[name][cells] for name, values in uses.items()}
        given, longer = uses["input_tokens"], self.ratios["output_tokens"][cells]
        conversation = np.fmin(given, given[:, : len(steps[0])].mean(axis=1, keepdims=True))
        conversation[:, : len(steps[0])] = given[:, : len(steps[0])]
        drafts, begin = given - conversation, 0
        for before, step in pairwise(steps):
            end = begin + len(before)
            drafts[:, end : end + len(step)] *= longer[:, begin:end].mean(axis=1, keepdims=True)
            begin = end
        read = conversation * self.ratios["input_tokens"][cells]
        return found | {"input_tokens": read + drafts, CACHED: read * self.cached[cells]}

    def of_grades(self, grades: Mapping[str, Grades]) -> dict[str, Grades]:
        """Return grades whose judges read conversations and answers that are as long as those of requests.

        The time of a judgement stays: most of it is for the verdict.
        """
        of_probes = {name: self.means[name] / self.ratios[name] for name in ("input_tokens", "output_tokens")}
        requests, probes = self._mean_read(self.means), self._mean_read(of_probes)
        longer = requests / probes if probes > 0 else 1.0
        return {
            judge: replace(one, uses={**one.uses, "input_tokens": longer * one.uses["input_tokens"]})
            for judge, one in grades.items()
        }

    def _mean_read(self, means: Mapping[str, Array]) -> float:
        """Return the mean tokens of a conversation and its answer over the probes and experts with known ones."""
        both = (means["input_tokens"] + means["output_tokens"])[self.labels]
        return float(column_means(both.ravel(), 0.0))


def _ratios(requests: Array, probes: Array | None, labels: NDArray[np.int64]) -> Array:
    """Return the means of `requests` (n_categories, n_experts) over those of `probes` (n_rows, n_experts), 1 where
    either is unknown."""
    found = np.ones_like(requests)
    if probes is None:
        return found
    for row in range(len(requests)):
        mean = column_means(probes[labels == row], 0.0)
        np.divide(requests[row], mean, out=found[row], where=np.isfinite(requests[row]) & (mean > 0))
    return found
