"""Estimates off-policy what another assignment would have earned, from the rewards of the experts that were chosen.

A policy has shape (n, k): the probability of each expert for each logged request. Estimates need requests whose
propensity is known. They come with t-intervals that stay honest on small samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from coe.learning.experience import Experience
from coe.planning.assignment import Assignment
from coe.planning.score_table import tabulate_softly
from coe.trials.contrasts import Contrast
from coe.trials.judgement import LOGGED, MIN_GUARDED_REQUESTS, Evidence

Array = NDArray[np.float64]
FOLDS = 5
MIN_EFFECTIVE_REQUESTS = 30.0
"""Effective sample size below which an estimate has a warning."""
MAX_UNSUPPORTED_SHARE = 0.05
"""Share of traffic without support above which an estimate has a warning."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean reward (or difference of two), its standard error, and the 95 % interval.

    The interval is a t-interval of `degrees` of freedom. `effective` is the number of equally weighted requests of the
    same precision (Kish); `unsupported` is the share of the policy's choices that the log could hardly have made;
    `warning` is empty where both are sound.
    """

    value: float
    error: float
    degrees: float
    low: float
    high: float
    effective: float
    unsupported: float
    warning: str


@dataclass(frozen=True, slots=True, eq=False)
class BanditLog:
    """Logged bandit feedback, prepared for estimates: every array has n rows.

    `reward` belongs to the expert `chosen`; `propensities` (n, k) are 0 for one that could not have been chosen;
    `modelled` (n, k) is each expert's expected reward by a table that was fitted without the request's fold.
    """

    chosen: NDArray[np.int64]
    reward: Array
    propensities: Array
    modelled: Array

    @classmethod
    def of(cls, usable: Experience) -> BanditLog:
        """Prepare requests that are usable off-policy. The model is the shrunk table over posteriors, cross-fitted."""
        return cls(
            usable.chosen.astype(np.int64),
            usable.reward.astype(np.float64),
            usable.propensities.astype(np.float64),
            _cross_fitted(usable),
        )

    def __len__(self) -> int:
        return len(self.chosen)

    def part(self, rows: NDArray[np.bool_]) -> BanditLog:
        """The requests that a mask selects."""
        return BanditLog(*(getattr(self, field.name)[rows] for field in fields(self)))

    def of_chosen(self, table: Array) -> Array:
        """The entries of a table (n, k) that belong to the chosen experts, shape (n,)."""
        return np.asarray(table[np.arange(len(self)), self.chosen])


def fold_indices(count: int) -> NDArray[np.int64]:
    """The fold of each request, in rotation, so that every fold spans the whole time."""
    return np.arange(count) % FOLDS


def _cross_fitted(usable: Experience) -> Array:
    fold, modelled = fold_indices(len(usable)), np.empty((len(usable), len(usable.experts)))
    for held in range(FOLDS):
        is_held, rest = fold == held, usable.part(fold != held)
        scores = np.full((len(rest), len(rest.experts)), np.nan)
        scores[np.arange(len(rest)), rest.chosen] = rest.reward
        table = tabulate_softly(rest.categories, rest.experts, rest.posterior, scores)
        modelled[is_held] = usable.posterior[is_held] @ table.shrunk()
    return modelled


def policy_value(log: BanditLog, policy: Array) -> Estimate:
    """Doubly robust estimate (Dudik, Langford and Li 2011) of the mean reward of `policy`, probabilities of shape
    (n, k).

    Values and intervals are clipped to [0, 1]; choices that the log could not have made may have any reward in it.
    """
    found = _doubly_robust(log, policy, changed=1.0 - float(log.of_chosen(policy).mean()), choices=policy)
    within = min(max(found.value, 0.0), 1.0)
    low, high = found.low - found.unsupported * within, found.high + found.unsupported * (1.0 - within)
    return replace(found, value=within, low=max(low, 0.0), high=min(high, 1.0))


def policy_difference(log: BanditLog, candidate: Array, current: Array) -> Estimate:
    """Doubly robust estimate of how much more `candidate` earns than `current`; requests on which they agree add no
    noise.

    A choice that the log could not have made earns no credit: it counts as no better than the current one is modelled,
    so that a gain always rests on observed rewards.
    """
    present = (current * log.modelled).sum(axis=1, keepdims=True)
    modelled = np.where(log.propensities > 0, log.modelled, np.minimum(log.modelled, present))
    change = candidate - current
    changed = float(np.abs(change).sum(axis=1).mean() / 2)
    return _doubly_robust(replace(log, modelled=modelled), change, changed=changed, choices=candidate)


def _doubly_robust(log: BanditLog, policy: Array, *, changed: float, choices: Array) -> Estimate:
    """Estimate the mean reward of a policy, or of a difference of two, with a t-interval that does not rely on a small
    sample's own variance.

    A few heavy weights determine the variance, so a log without them has too small a variance. Therefore the variance
    is at least that of 0-or-1 rewards. One request of the heaviest weight that the log could hold is added, in
    proportion to the share of traffic that is `changed`. The degrees of freedom are those of the weights' kurtosis,
    2 n / (kurtosis - 1), the precision of a variance. Coverage against plain normal intervals:
    docs/experiments/learning.md. `choices` is the policy whose unsupported share counts.
    """
    from scipy.stats import t

    count, propensity = len(log), log.of_chosen(log.propensities)
    weight = log.of_chosen(policy) / propensity
    expected, modelled = (policy * log.modelled).sum(axis=1), log.of_chosen(log.modelled)
    residual = weight * (log.reward - modelled)
    possible = weight**2 * modelled * (1.0 - modelled)  # no reward in [0, 1] with this mean varies more
    noise = max(float((residual**2).mean()), float(possible.mean()))
    heaviest = 1.0 / float(propensity.min())
    variance = (float(expected.var(ddof=1)) + noise) / count + changed * (heaviest / count) ** 2 / 4
    value, error = float((expected + residual).mean()), float(np.sqrt(variance))
    centred = np.append(weight, heaviest)
    centred = centred - centred.mean()
    spread = float((centred**2).mean())
    kurtosis = float((centred**4).mean()) / spread**2 if spread else 1.0
    degrees = float(np.clip(2 * (count + 1) / max(kurtosis - 1.0, 1e-9), 1.0, 1e9))
    half = float(t.ppf(0.975, degrees)) * error
    square, unsupported = float((weight**2).sum()), float((choices * (log.propensities == 0)).sum(axis=1).mean())
    effective = float(np.abs(weight).sum()) ** 2 / square if square else 0.0
    thin = []
    if changed > 0 and effective < MIN_EFFECTIVE_REQUESTS:
        thin.append(f"it rests on about {effective:.0f} requests")
    if unsupported > MAX_UNSUPPORTED_SHARE:
        thin.append(f"{unsupported:.0%} of its choices could not have been made in the log")
    warning = f"thin support: {'; '.join(thin)}; explore more or wait" if thin else ""
    return Estimate(value, error, degrees, value - half, value + half, effective, unsupported, warning)


def logged_evidence(
    log: BanditLog, current: Array, candidate: Array, categories: Sequence[str], *, guarded: Sequence[str] = ()
) -> Evidence:
    """Evidence from logged traffic, doubly robust: policies of shape (n, k), and each request's likeliest category.

    A candidate seems better than it is on the requests that chose its moves, so it can show a loss but no gain.
    """
    names = np.asarray(categories)
    rows = {name: names == name for name in guarded}
    parts = {
        name: (log.part(r), current[r], candidate[r]) for name, r in rows.items() if r.sum() >= MIN_GUARDED_REQUESTS
    }
    return Evidence(
        LOGGED,
        estimated_contrast(log, current, candidate),
        {name: estimated_contrast(*part) for name, part in parts.items()},
    )


def estimated_contrast(log: BanditLog, current: Array, candidate: Array) -> Contrast:
    """The doubly robust difference of two policies (n, k), tested by its t-interval."""
    from scipy.stats import t

    found = policy_difference(log, candidate, current)
    if found.error == 0.0:
        return Contrast(0.0, 0.0, 1.0, 1.0, len(log))
    above = float(t.sf(found.value / found.error, found.degrees))
    return Contrast(found.value, found.error, above, 1.0 - above, len(log))


def utility(experience: Experience, assignment: Assignment) -> Array:
    """Expected quality less price of each expert for each request, shape (n, k); -inf where it may not answer.

    The batched form of `mapping.expected`. The assignment has the experience's categories and experts; it may also
    have columns that the experience lacks.
    """
    columns = [assignment.experts.index(name) for name in experience.experts]
    quality = assignment.quality[:, columns]
    eligible = np.isfinite(quality)
    value = np.where(eligible, quality, 0.0) - assignment.price[:, columns]
    values = experience.posterior.astype(np.float64) @ value
    may_answer = eligible[experience.posterior.argmax(axis=1)] & experience.allowed
    return np.where(may_answer | ~may_answer.any(axis=1, keepdims=True) & experience.allowed, values, -np.inf)


def greedy_policy(experience: Experience, assignment: Assignment) -> Array:
    """The policy that always takes the expert of highest utility, shape (n, k); experts that tie share the request."""
    values = utility(experience, assignment)
    best = values == values.max(axis=1, keepdims=True)
    return np.asarray(best / best.sum(axis=1, keepdims=True))
