"""What feedback teaches the gate: from requests for which a coin decided whether the passages found were given.

Only the coin makes answers with and without passages comparable: what the gate opened for by itself differs from what
it did not in more than the passages. The coin is fair, so twice the reward, its mean taken off, with the sign of the
coin, is on average what passages changed (Horvitz and Thompson 1952). What of that the gate did not expect becomes a
shift of its gain by expert, and by category and expert, pulled to nothing where little was said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.learning.estimation.experience import Experience
from coe.learning.estimation.experience_loader import request_hash
from coe.learning.estimation.off_policy import FOLDS, LoggedBandit, fold_indices
from coe.learning.estimation.refit import trust_of
from coe.learning.estimation.trust import agreements
from coe.learning.retraining.promotion import Judgement, judge, logged_evidence
from coe.records.record import RoutingRecord
from coe.retrieval.gate import Array, Gate

MIN_TRIALS = 200
"""Rated trials below which there is no round."""
EXPERT_PRIOR_DEVIATION, PAIR_PRIOR_DEVIATION = 0.1, 0.1
"""How far the truth is expected to lie from what was fitted: of an expert everywhere, and in one category more."""
PSEUDO_COUNT = 10.0
"""Trials for which the mean reward of all experts stands in that of each."""
BINS = 5
ARMS = ("withheld", "used")
"""How a coin falls: what a policy chooses among here."""


@dataclass(frozen=True, slots=True, eq=False)
class GateTrials:
    """Rated requests for which a coin decided: n of them. `given` (n,) is how it fell, `gain` (n,) the quality that the
    gate in use expected of the passages."""

    told: Experience
    given: NDArray[np.bool_]
    gain: Array

    def __len__(self) -> int:
        return len(self.given)

    def part(self, rows: NDArray[np.bool_]) -> GateTrials:
        return GateTrials(self.told.part(rows), self.given[rows], self.gain[rows])


class TrialCollector:
    """Finds the trials of one gate in pages of records, and remembers how the coin fell and what was expected."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._found: dict[int, tuple[bool, float]] = {}

    def among(self, pages: Iterator[Sequence[RoutingRecord]]) -> Iterator[tuple[RoutingRecord, ...]]:
        """The trials alone, without those that another expert answered than the gate judged."""
        for page in pages:
            trials = []
            for record in page:
                if record.trial == self._version and record.gain is not None and record.reason != "fallback":
                    self._found[request_hash(record.request_id)] = record.retrieval == ARMS[1], record.gain
                    trials.append(record)
            yield tuple(trials)

    def trials(self, experience: Experience) -> GateTrials:
        """Those of the experience, gathered from what `among` gave, that trusted people rated."""
        told = experience.part(experience.rated)
        told = told.part(trust_of(told, agreements(told)) == 1.0)
        fell = [self._found[name] for name in told.identity.tolist()]
        return GateTrials(told, np.array([way for way, _ in fell], dtype=bool), np.array([gain for _, gain in fell]))


def fit_shift(trials: GateTrials) -> Array:
    """The shift of the gain, shape (m, k): ridge regression of what passages changed beyond what was expected."""
    told = trials.told
    m, k = len(told.categories), len(told.experts)
    surprise = _estimated_effect(trials) - trials.gain
    rows = np.arange(len(trials))
    cells = np.zeros((len(trials), k, 1 + m))
    cells[rows, told.chosen, 0] = EXPERT_PRIOR_DEVIATION
    cells[rows, told.chosen, 1:] = PAIR_PRIOR_DEVIATION * told.posterior
    seen = cells.reshape(len(trials), -1)
    gram = seen.T @ seen + float(np.mean(surprise**2)) * np.eye(seen.shape[1])
    found = np.linalg.solve(gram, seen.T @ surprise).reshape(k, 1 + m)
    return np.asarray((EXPERT_PRIOR_DEVIATION * found[:, :1] + PAIR_PRIOR_DEVIATION * found[:, 1:]).T)


def judge_gate(trials: GateTrials, *, bar: float, round_: int, guarded: Sequence[str] = ()) -> Judgement:
    """Whether the gate with its shift, fitted without the request that is judged, earns more than the gate in use, the
    price `bar` of the passages taken off."""
    told, fold = trials.told, fold_indices(len(trials))
    gains = trials.gain.copy()
    for held in range(FOLDS):
        shift, away = fit_shift(trials.part(fold != held)), fold == held
        part = told.part(away)
        gains[away] += (part.posterior @ shift)[np.arange(len(part)), part.chosen]
    likeliest = [told.categories[index] for index in told.posterior.argmax(axis=1)]
    old, new = (_arm_policy(gain > bar) for gain in (trials.gain, gains))
    return judge([logged_evidence(_logged_arms(trials, bar), old, new, likeliest, guarded=guarded)], round_=round_)


def gate_round_report(trials: GateTrials, shift: Array, judgement: Judgement) -> dict[str, Any]:
    """The report, JSON-able: what was judged, and by fifths of the expected gain what passages changed."""
    changed, told = _estimated_effect(trials), trials.told
    bins = [part for part in np.array_split(np.argsort(trials.gain, kind="stable"), BINS) if len(part)]
    return {
        "promoted": judgement.promote,
        "reason": judgement.reason,
        "sentence": judgement.sentence,
        "round": judgement.round_,
        "trials": len(trials),
        "given": int(trials.given.sum()),
        "evidence": [asdict(one) for one in judgement.evidence],
        "gain": [
            {"count": len(rows), "expected": float(trials.gain[rows].mean()), "seen": float(changed[rows].mean())}
            for rows in bins
        ],
        "shift": {
            name: {category: round(float(shift[row, column]), 4) for row, category in enumerate(told.categories)}
            for column, name in enumerate(told.experts)
        },
    }


def with_shift(gate: Gate, trials: GateTrials) -> Gate:
    """The gate with what all trials taught. It is of the same categories and experts in any order; an expert that it
    does not know stays unknown."""
    here = gate.align(trials.told.categories, trials.told.experts)
    return replace(here, shift=(here.shift + fit_shift(trials)) * here.measured)


def _estimated_effect(trials: GateTrials) -> Array:
    """On average what passages changed, (n,): each by itself is mostly noise."""
    told, reward = trials.told, trials.told.reward.astype(np.float64)
    sums, counts = (np.bincount(told.chosen, weights=w, minlength=len(told.experts)) for w in (reward, None))
    mean = (sums + PSEUDO_COUNT * reward.mean()) / (counts + PSEUDO_COUNT)
    return np.asarray(2 * np.where(trials.given, 1, -1) * (reward - mean[told.chosen]))


def _arm_policy(open_: NDArray[np.bool_]) -> Array:
    return np.stack([~open_, open_], axis=1).astype(np.float64)


def _logged_arms(trials: GateTrials, bar: float) -> LoggedBandit:
    """The coin as a choice between two, of even chances; passages cost their price."""
    count = len(trials)
    two = replace(
        trials.told,
        experts=ARMS,
        chosen=trials.given.astype(np.int16),
        allowed=np.ones((count, 2), dtype=bool),
        propensity=np.full(count, 0.5, dtype=np.float32),
    )
    log = LoggedBandit.of(two)
    price = np.array([0.0, bar])
    return replace(log, reward=log.reward - bar * trials.given, modelled=log.modelled - price)
