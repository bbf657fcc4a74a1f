"""`decide()`: select the expert for a classified request. Pure: no clock, no randomness, no state.

The rule is Jain et al. 2024 (arXiv 2412.01868) with the router's posterior in place of its most likely category: of the
experts that can take the request, the one of highest utility, which is expected quality minus price. Pinned, sticky and
uncertain requests and the health of experts modify it. Exploration selects another expert of nearly the same utility
for a share of requests, with exact propensities.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from coe.core import (
    Chat,
    Decision,
    ExpertRule,
    Health,
    Prediction,
    Reason,
)
from coe.errors import Cause
from coe.planning.assignment import Assignment, expected_price, expected_utility
from coe.registry import Policy, Registry
from coe.routing.eligibility import eligible_arms, pinned_arm

_HEALTHY = Health()


@dataclass(frozen=True, slots=True)
class Previous:
    """The expert of a conversation's last answer, empty if it is unknown or there is none.

    `continues`: the request does not have its own topic (`RoutedText.continues`), so the expert stays whatever the
    utilities. `in_loop`: it has the results of tools that the answer called, so the expert stays also if overloaded.
    """

    expert: str = ""
    continues: bool = False
    in_loop: bool = False


NO_PREVIOUS = Previous()


def decide(
    chat: Chat,
    prediction: Prediction,
    *,
    registry: Registry,
    assignment: Assignment,
    confidence_threshold: float = 0.0,
    previous: Previous = NO_PREVIOUS,
    extra_price: NDArray[np.float64] | None = None,
    health_by_expert: Mapping[str, Health] = MappingProxyType({}),
    uniform: float | None = None,
    recipe: str = "",
    rule: ExpertRule | None = None,
    named: str = "",
) -> Decision:
    """Select the expert and the fallback order.

    Candidates are eligible experts and recipe arms of measured quality; only those that speak the language, if any do.
    No expert that `rule` excludes is a candidate. A pinned expert or recipe is selected whatever its health; `recipe`
    (`RequestOptions.recipe`) pins one too, or excludes all. The `previous` expert of a conversation stays if the
    request continues its task or is uncertain, or if no other is better by more than `sticky_margin`. Otherwise an
    uncertain request (confidence below the threshold, declared or else trained) goes to the expert of `general`, any
    other to the expert of highest utility. An expert that is down is replaced (a fallback); an overloaded one is, if
    the other is worse by at most `max_quality_loss`. An eligible expert or arm that a rule of experts.yaml has `named`
    is selected before all of these unless it is down.

    `extra_price`, shape (n_experts,) in units of quality, is added to the plan's expected prices; it is negative where
    passages are expected to add quality. An expert that `health_by_expert` lacks is up and idle. `uniform`, drawn from
    [0, 1), makes routed requests explore as declared; the decision then has the exact propensity.

    Raises ModelNotFound, Forbidden or InvalidRequest if no expert can take the request.
    """
    category, confidence = assignment.categories[prediction.best], prediction.confidence
    if pinned := pinned_arm(chat, registry, recipe, rule):
        return Decision(pinned, category, confidence, "pinned", (pinned,), rule=prediction.rule)
    utilities, prices = _utilities_and_prices(assignment, prediction, extra_price)
    eligible = eligible_arms(chat, registry, utilities, recipe, language=prediction.language, rule=rule, named=named)
    if named in eligible:
        previous = Previous(named, continues=True, in_loop=True)  # stays whatever its utility and load
        utilities.setdefault(named, -math.inf)
    policy = registry.policy
    threshold = confidence_threshold if policy.confidence_threshold is None else policy.confidence_threshold
    candidates = _Candidates.of(eligible, utilities, health_by_expert)
    expert, reason, propensity, avoided = _choose_expert(
        candidates,
        policy,
        previous=previous,
        general=assignment.general_expert if confidence < threshold else None,
        uniform=uniform,
        unmeasured=() if uniform is None else assignment.unmeasured_experts(prediction.best),
    )
    stand_in = None if registry.residency is None else registry.arm(expert).stand_in
    order = candidates.fallback_order(expert, stand_in=stand_in)
    return Decision(
        expert,
        category,
        confidence,
        "rule" if reason == "sticky" and expert == named else reason,
        order,
        propensity,
        utility=tuple([utilities[name] for name in order]),
        price=tuple([prices.get(name, 0.0) for name in order]) if prices and any(prices.values()) else (),
        fallback_from=avoided,
        cause=(health_by_expert[avoided].cause or "circuit_open") if avoided else "",
        rule=prediction.rule,
    )


def _choose_expert(
    candidates: _Candidates,
    policy: Policy,
    *,
    previous: Previous,
    general: str | None,
    uniform: float | None,
    unmeasured: Collection[str],
) -> tuple[str, Reason, float, str]:
    """Return the selected expert, the reason, the propensity, and the expert that is avoided because it is down.

    A routed request explores if `uniform` is given.
    """
    expert, reason = _select(candidates, policy, previous=previous, general=general)
    propensity, avoided = 1.0, ""
    if candidates.selectable is not candidates.ranked:
        avoided = _avoided(candidates, policy, previous=previous, general=general)
        reason = "fallback" if avoided else reason
    if uniform is not None and reason == "routed":
        expert, reason, propensity = _explore(expert, candidates, policy, uniform=uniform, unmeasured=unmeasured)
    return expert, reason, propensity, avoided


def _utilities_and_prices(
    assignment: Assignment, prediction: Prediction, extra_price: NDArray[np.float64] | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the expected utility and price of each column of the assignment by name; no prices if all are 0."""
    names = assignment.experts
    utility = expected_utility(assignment, prediction.probabilities, prediction.residual)
    if extra_price is None and not assignment.is_priced:
        return dict(zip(names, utility.tolist(), strict=True)), {}
    price = expected_price(assignment, prediction.probabilities)
    if extra_price is not None:
        utility, price = utility - extra_price, price + extra_price
    return dict(zip(names, utility.tolist(), strict=True)), dict(zip(names, price.tolist(), strict=True))


def with_fallback(decision: Decision, expert: str, *, cause: Cause) -> Decision:
    """Return the decision with another expert, because its own did not answer for `cause`."""
    first, why = (decision.fallback_from, decision.cause) if decision.fallback_from else (decision.expert, cause)
    return replace(decision, expert=expert, reason="fallback", fallback_from=first, cause=why)


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The eligible experts by `utility`.

    `ranked` is in order of utility, with experts that are down after all that are up. `selectable` are the experts that
    are up, or all if none is. `free` are up and not overloaded. All three are one tuple if all are free.
    """

    utility: Mapping[str, float]
    ranked: tuple[str, ...]
    selectable: tuple[str, ...]
    free: tuple[str, ...]

    @classmethod
    def of(
        cls, eligible: Collection[str], utility: Mapping[str, float], health_by_expert: Mapping[str, Health]
    ) -> _Candidates:
        by_utility = sorted([name for name in utility if name in eligible], key=utility.__getitem__, reverse=True)
        if not health_by_expert:
            ranked = tuple(by_utility)
            return cls(utility, ranked, ranked, ranked)
        up: list[str] = []
        down: list[str] = []
        free: list[str] = []
        for name in by_utility:
            health = health_by_expert.get(name, _HEALTHY)
            if not health.up:
                down.append(name)
                continue
            up.append(name)
            if health.load < 1:
                free.append(name)
        return cls(utility, (*up, *down), tuple(up or down), tuple(free))

    def fallback_order(self, first: str, *, stand_in: str | None) -> tuple[str, ...]:
        """Return all candidates: the selected one, its stand-in, then the others by rank."""
        if stand_in is None and first == self.ranked[0]:
            return self.ranked
        others = [name for name in self.ranked if name != first]
        return first, *(sorted(others, key=stand_in.__ne__) if stand_in else others)


def _select(candidates: _Candidates, policy: Policy, *, previous: Previous, general: str | None) -> tuple[str, Reason]:
    """Return the selected expert and the reason. `general` is None unless the request is uncertain."""
    utility, free = candidates.utility, candidates.free
    expert, reason = _prefer(candidates.selectable, utility, policy, previous=previous, general=general)
    if previous.in_loop and reason == "sticky":
        return expert, reason
    if expert not in free and free and utility[expert] - utility[free[0]] <= policy.max_quality_loss:
        return free[0], "spilled"
    return expert, reason


def _avoided(candidates: _Candidates, policy: Policy, *, previous: Previous, general: str | None) -> str:
    """Return the expert that would be preferred if all were up, if it is down and another one is up; else ""."""
    if len(candidates.selectable) == len(candidates.ranked):
        return ""
    utility = candidates.utility
    ranked = tuple(sorted(candidates.ranked, key=utility.__getitem__, reverse=True))
    expert, _ = _prefer(ranked, utility, policy, previous=previous, general=general)
    return "" if expert in candidates.selectable else expert


def _prefer(
    ranked: tuple[str, ...],
    utility: Mapping[str, float],
    policy: Policy,
    *,
    previous: Previous,
    general: str | None,
) -> tuple[str, Reason]:
    """Return the preferred expert among `ranked`, regardless of its load, and the reason."""
    best = ranked[0]
    if previous.expert in ranked:
        loss = utility[best] - utility[previous.expert]
        if previous.continues or general or loss <= policy.sticky_margin:
            return previous.expert, "sticky"
    return (general, "uncertain") if general in ranked else (best, "routed")


def _explore(
    best: str, candidates: _Candidates, policy: Policy, *, uniform: float, unmeasured: Collection[str]
) -> tuple[str, Reason, float]:
    """Return the expert to call, the reason, and the propensity.

    An `unmeasured` expert has no expected quality; it counts as worse by exactly the largest loss of exploration.
    """
    names = tuple(dict.fromkeys((best, *candidates.free)))
    exploration = policy.exploration
    lowest = candidates.utility[best] - exploration.max_quality_loss
    utility = [lowest if name in unmeasured else candidates.utility[name] for name in names]
    if candidates.utility[best] == -math.inf:  # the plan allows none of the eligible experts for this category
        return best, "routed", 1.0
    index, propensity = choose(utility, rate=exploration.rate, loss=exploration.max_quality_loss, uniform=uniform)
    return names[index], "explored" if index else "routed", propensity


def choose(utility: Sequence[float], *, rate: float, loss: float, uniform: float) -> tuple[int, float]:
    """Return the index of the selected expert and its propensity; `uniform` is drawn from [0, 1).

    The propensities are exactly those of `propensities`, whose arrays would take ten times as long for one request.
    """
    best = max(utility)
    ties = utility.count(best)
    explored = [best > one >= best - loss and one > -math.inf for one in utility]
    count = sum(explored)
    mass = rate if count else 0.0
    best_probability, other_probability = (1.0 - mass) / ties, mass / max(count, 1)
    probabilities = [
        best_probability if one == best else other_probability if other else 0.0
        for one, other in zip(utility, explored, strict=True)
    ]
    bounds = list(accumulate(probabilities))
    index = bisect_right(bounds, uniform * bounds[-1])
    return index, probabilities[index]


def propensities(utility: NDArray[np.floating], *, rate: float, loss: float) -> NDArray[np.float64]:
    """Return the selection probability of each expert, shape (n_experts,), or (n, n_experts) for n requests.

    `utility` is expected quality minus price, -inf for an expert that may not answer. With probability `rate`, one of
    the other experts within `loss` of the best is selected uniformly; otherwise the best one, or uniformly one of
    several equal best ones. Off-policy estimates use these probabilities as exact weights. Raises ValueError if no
    expert may answer.
    """
    best = utility.max(axis=-1, keepdims=True)
    if np.isneginf(best).any():
        raise ValueError("no expert may answer")
    is_best = utility == best
    explored = (utility >= best - loss) & np.isfinite(utility) & ~is_best
    count = explored.sum(axis=-1, keepdims=True)
    explored_mass = np.where(count > 0, rate, 0.0)
    best_probability = (1.0 - explored_mass) / is_best.sum(axis=-1, keepdims=True)
    other_probability = np.where(explored, explored_mass / np.maximum(count, 1), 0.0)
    return np.asarray(np.where(is_best, best_probability, other_probability))
