"""Off-policy estimates: what another policy would have earned, from rewards of the experts that were chosen.

Policies as assignments make them: which expert each logged request would have gone to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from coe.learning.estimation.experience import Experience
from coe.mapping import Assignment
from coe.mapping.score_table import tabulate_softly
from coe.routing.exploration import propensities

Array = NDArray[np.float64]
FOLDS = 5
MIN_EFFECTIVE_REQUESTS = 30.0
"""Effective sample size below which an estimate comes with a warning."""
MAX_UNSUPPORTED_SHARE = 0.05
"""Share of traffic without support above which it does."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean reward (or difference of two), its standard error, and the 95 % interval.

    The interval is a t-interval of `degrees` of freedom. `effective` is the sample size that equally weighted requests
    of the same precision would have (Kish); `unsupported` the share of the policy's choices that the log could hardly
    have made; `warning` is empty where both are sound.
    """

    method: str
    value: float
    error: float
    degrees: float
    low: float
    high: float
    effective: float
    unsupported: float
    warning: str


@dataclass(frozen=True, slots=True, eq=False)
class LoggedBandit:
    """The telling part of the experience, prepared: every array has n rows.

    `propensity` and `reward` belong to the expert `chosen`; `modelled` (n, k) is each expert's expected reward by a
    table that was fitted without the request's fold; `supported` (n, k) says which experts could have been chosen.
    """

    chosen: NDArray[np.int64]
    propensity: Array
    reward: Array
    modelled: Array
    supported: NDArray[np.bool_]

    @classmethod
    def of(cls, told: Experience, *, supported: NDArray[np.bool_] | None = None) -> LoggedBandit:
        """Prepare the telling part of an experience. The model is the shrunk table over posteriors, cross-fitted.

        Without `supported` every allowed expert is taken to have had a chance, which only exploration with an unlimited
        loss gives.
        """
        return cls(
            told.chosen.astype(np.int64),
            told.propensity.astype(np.float64),
            told.reward.astype(np.float64),
            _cross_fitted(told),
            told.allowed if supported is None else supported,
        )

    def __len__(self) -> int:
        return len(self.chosen)

    def part(self, rows: NDArray[np.bool_]) -> LoggedBandit:
        """The requests that a mask names."""
        return LoggedBandit(*(getattr(self, field.name)[rows] for field in fields(self)))

    def taken(self, table: Array) -> Array:
        """The entries of a table (n, k) that belong to the experts chosen, shape (n,)."""
        return np.asarray(table[np.arange(len(self)), self.chosen])


def fold_indices(count: int) -> NDArray[np.int64]:
    """Which of FOLDS each request belongs to: in turn, so that every fold spans the whole time."""
    return np.arange(count) % FOLDS


def _cross_fitted(told: Experience) -> Array:
    fold, modelled = fold_indices(len(told)), np.empty((len(told), len(told.experts)))
    for held in range(FOLDS):
        away, rest = fold == held, told.part(fold != held)
        scores = np.full((len(rest), len(rest.experts)), np.nan)
        scores[np.arange(len(rest)), rest.chosen] = rest.reward
        table = tabulate_softly(rest.categories, rest.experts, rest.posterior, scores)
        modelled[away] = told.posterior[away] @ table.shrunk()
    return modelled


def estimates(logged: LoggedBandit, policy: Array) -> Mapping[str, Estimate]:
    """Estimates `ips`, `snips` and `dr` of the mean reward of `policy`, probabilities of shape (n, k).

    Inverse propensity scores (Horvitz and Thompson 1952), self-normalised (Swaminathan and Joachims 2015), and doubly
    robust (Dudik, Langford and Li 2011). Values and intervals are cut to [0, 1]; what the log could not have shown may
    be anything in it.
    """
    weighed = _WeightedPolicy.of(logged, policy)
    return {"ips": _inverse_propensity(weighed), "snips": _self_normalized(weighed), "dr": _doubly_robust(weighed)}


def policy_difference(logged: LoggedBandit, candidate: Array, current: Array) -> Estimate:
    """Doubly robust estimate of how much more `candidate` earns than `current`; where they agree nothing is noise.

    A choice that the log could not have made earns no credit: it counts as no better than the current one is modelled,
    so that a gain always rests on rewards that were seen.
    """
    present = (current * logged.modelled).sum(axis=1, keepdims=True)
    modelled = np.where(logged.supported, logged.modelled, np.minimum(logged.modelled, present))
    return _doubly_robust(_WeightedPolicy.of(replace(logged, modelled=modelled), candidate, less=current))


@dataclass(frozen=True, slots=True, eq=False)
class _WeightedPolicy:
    """A policy, or a difference of two, against the log: `weight` (n,) of each request, `far`, the share of traffic
    treated otherwise than in the log (or by the other), and `unsupported`, the share treated as the log could not."""

    logged: LoggedBandit
    policy: Array
    weight: Array
    far: float
    unsupported: float
    is_difference: bool

    @classmethod
    def of(cls, logged: LoggedBandit, policy: Array, *, less: Array | None = None) -> _WeightedPolicy:
        unsupported = float((policy * ~logged.supported).sum(axis=1).mean())
        far = 1.0 - float(logged.taken(policy).mean())
        if less is not None:
            policy = policy - less
            far = float(np.abs(policy).sum(axis=1).mean() / 2)
        return cls(logged, policy, logged.taken(policy) / logged.propensity, far, unsupported, less is not None)


def _inverse_propensity(weighed: _WeightedPolicy) -> Estimate:
    earned = weighed.weight * weighed.logged.reward
    return _t_interval("ips", float(earned.mean()), float(earned.var(ddof=1)) / len(earned), weighed)


def _self_normalized(weighed: _WeightedPolicy) -> Estimate:
    reward = weighed.logged.reward
    share = weighed.weight / max(float(weighed.weight.sum()), 1e-12)
    value = float(share @ reward)
    lone = np.minimum(share, 0.5)  # leaving one out (HC3) undoes its pull on the mean; a request all alone has no other
    measured = float(((share * (reward - value) / (1.0 - lone)) ** 2).sum())
    return _t_interval("snips", value, max(measured, float((share**2).sum()) * value * (1.0 - value)), weighed)


def _doubly_robust(weighed: _WeightedPolicy) -> Estimate:
    logged, weight = weighed.logged, weighed.weight
    expected, modelled = (weighed.policy * logged.modelled).sum(axis=1), logged.taken(logged.modelled)
    surprise = weight * (logged.reward - modelled)
    possible = weight**2 * modelled * (1.0 - modelled)  # no reward in [0, 1] with this mean varies more
    noise = max(float((surprise**2).mean()), float(possible.mean()))
    variance = (float(expected.var(ddof=1)) + noise) / len(logged)
    return _t_interval("dr", float((expected + surprise).mean()), variance, weighed)


def _t_interval(method: str, value: float, variance: float, weighed: _WeightedPolicy) -> Estimate:
    """A t-interval that does not believe a small sample's own variance.

    A few heavy weights decide the variance, and a log that happens to hold none of them looks certain. So the variance
    is at least that of 0-or-1 rewards (above), one request of the heaviest weight that the log could hold is added, as
    far as the policy does anything the log does not, and the degrees of freedom are those of the weights' kurtosis:
    2 n / (kurtosis - 1), the precision of a variance. Coverage against plain normal intervals:
    docs/experiments/off-policy-learning.md.
    """
    from scipy.stats import t

    logged, weight = weighed.logged, weighed.weight
    heaviest = 1.0 / float(logged.propensity.min())
    error = float(np.sqrt(variance + weighed.far * (heaviest / len(logged)) ** 2 / 4))
    degrees = _degrees_of_freedom(np.append(weight, heaviest))
    half = float(t.ppf(0.975, degrees)) * error
    low, high = value - half, value + half
    if not weighed.is_difference:
        within = min(max(value, 0.0), 1.0)
        low, high = low - weighed.unsupported * within, high + weighed.unsupported * (1.0 - within)
        value, low, high = within, max(low, 0.0), min(high, 1.0)
    square = float((weight**2).sum())
    effective = float(np.abs(weight).sum()) ** 2 / square if square else 0.0
    warning = _warning(effective, weighed)
    return Estimate(method, value, error, degrees, low, high, effective, weighed.unsupported, warning)


def _degrees_of_freedom(weight: Array) -> float:
    centred = weight - weight.mean()
    square = float((centred**2).mean())
    kurtosis = float((centred**4).mean()) / square**2 if square else 1.0
    return float(np.clip(2 * len(weight) / max(kurtosis - 1.0, 1e-9), 1.0, 1e9))


def _warning(effective: float, weighed: _WeightedPolicy) -> str:
    found = []
    if weighed.far > 0 and effective < MIN_EFFECTIVE_REQUESTS:
        found.append(f"it rests on about {effective:.0f} requests")
    if weighed.unsupported > MAX_UNSUPPORTED_SHARE:
        found.append(f"{weighed.unsupported:.0%} of its choices could not have been made in the log")
    return f"thin support: {'; '.join(found)}; explore more or wait" if found else ""


Fit = Callable[[Experience], Assignment]


def utility(experience: Experience, assignment: Assignment) -> Array:
    """Expected quality less price of each expert for each request, shape (n, k); -inf where it may not answer.

    The same as `mapping.expected` gives one by one. The assignment has the experience's categories and experts.
    """
    may = np.isfinite(assignment.quality)
    values = experience.posterior.astype(np.float64) @ np.where(may, assignment.quality, 0.0) - assignment.price
    open_ = may[experience.posterior.argmax(axis=1)] & experience.allowed
    return np.where(open_ | ~open_.any(axis=1, keepdims=True) & experience.allowed, values, -np.inf)


def greedy_policy(experience: Experience, assignment: Assignment) -> Array:
    """The policy that always takes the expert of highest worth, shape (n, k); those that tie share the request."""
    values = utility(experience, assignment)
    best = values == values.max(axis=1, keepdims=True)
    return np.asarray(best / best.sum(axis=1, keepdims=True))


def exploration_policy(experience: Experience, assignment: Assignment, *, rate: float, loss: float) -> Array:
    """The policy (n, k) that `exploration.choose` followed; an unmeasured expert counts as just within `loss`."""
    values = utility(experience, assignment)
    if assignment.unmeasured is not None:
        untried = assignment.unmeasured[experience.posterior.argmax(axis=1)] & experience.allowed
        values = np.where(untried, values.max(axis=1, keepdims=True) - loss, values)
    return propensities(values, rate=rate, loss=loss)


def cross_fitted_policy(experience: Experience, fit: Fit) -> Array:
    """What the assignments of `fit` would choose for each request without having seen its fold, shape (n, k).

    An assignment judged on the very requests it was fitted to looks better than it is, the more the noisier it is.
    """
    fold, policy = fold_indices(len(experience)), np.empty((len(experience), len(experience.experts)))
    for held in range(FOLDS):
        away = fold == held
        policy[away] = greedy_policy(experience.part(away), fit(experience.part(~away)))
    return policy
