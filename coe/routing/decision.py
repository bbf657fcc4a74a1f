"""`decide()`: select the expert for a classified request. Pure: no clock, no randomness, no state.

The rule is Jain et al. 2024 (arXiv 2412.01868) with the router's posterior in place of its most likely category: of the
experts that can take the request, the one of highest utility, which is expected quality minus price. Pinned, sticky and
uncertain requests and the health of experts modify it. Exploration selects another expert of nearly the same utility
for a share of requests, with exact propensities.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from coe.core import Chat, Decision, ExpertRule, Health, Prediction, Reason
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
    utility, prices = _utilities_and_prices(assignment, prediction, extra_price)
    eligible = eligible_arms(chat, registry, utility, recipe, language=prediction.language, rule=rule, named=named)
    if named in eligible:
        previous = Previous(named, continues=True, in_loop=True)  # stays whatever its utility and load
        utility.setdefault(named, -math.inf)
    policy = registry.policy
    threshold = confidence_threshold if policy.confidence_threshold is None else policy.confidence_threshold
    general = assignment.general_expert if confidence < threshold else None

    health = {name: health_by_expert.get(name, _HEALTHY) for name in eligible}
    by_utility = sorted([name for name in utility if name in eligible], key=utility.__getitem__, reverse=True)
    up = [name for name in by_utility if health[name].up]
    free = [name for name in up if health[name].load < 1]
    ranked = [*up, *(name for name in by_utility if not health[name].up)]

    expert, reason = _prefer(by_utility, utility, policy, previous=previous, general=general)
    avoided = expert if up and expert not in up else ""
    if avoided:
        expert, reason = _prefer(up, utility, policy, previous=previous, general=general)
    if (
        expert not in free
        and free
        and utility[expert] - utility[free[0]] <= policy.max_quality_loss
        and not (previous.in_loop and reason == "sticky")
    ):
        expert, reason = free[0], "spilled"
    chances = dict[str, float]()
    if avoided:
        reason = "fallback"
    elif reason == "sticky" and expert == named:
        reason = "rule"
    elif reason == "routed" and uniform is not None and utility[expert] > -math.inf:  # else the plan allows none
        options = list(dict.fromkeys((expert, *free)))
        rate, loss = policy.exploration.rate, policy.exploration.max_quality_loss
        unmeasured = assignment.unmeasured_experts(prediction.best)  # each counts as worse by exactly the largest loss
        values = np.array([utility[expert] - loss if name in unmeasured else utility[name] for name in options])
        weights = assignment.exploration_weights(prediction.best, options)
        chances = dict(zip(options, propensities(values, rate=rate, loss=loss, weights=weights).tolist(), strict=True))
        index = choose(list(chances.values()), uniform)
        expert, reason = options[index], "explored" if index else "routed"

    stand_in = None if registry.residency is None else registry.arm(expert).stand_in
    ranked.sort(key=lambda name: (name != expert, name != stand_in))
    return Decision(
        expert,
        category,
        confidence,
        reason,
        tuple(ranked),
        chances.get(expert, 1.0),
        tuple([chances.get(name, 0.0) for name in ranked]) if chances.get(expert, 1.0) < 1.0 else (),
        utility=tuple([utility[name] for name in ranked]),
        price=tuple([prices.get(name, 0.0) for name in ranked]) if any(prices.values()) else (),
        fallback_from=avoided,
        cause=(health[avoided].cause or "circuit_open") if avoided else "",
        rule=prediction.rule,
    )


def _prefer(
    ranked: Sequence[str], utility: Mapping[str, float], policy: Policy, *, previous: Previous, general: str | None
) -> tuple[str, Reason]:
    """Return the preferred expert among `ranked`, regardless of its load, and the reason. `general` is None unless the
    request is uncertain."""
    best = ranked[0]
    if previous.expert in ranked:
        loss = utility[best] - utility[previous.expert]
        if previous.continues or general or loss <= policy.sticky_margin:
            return previous.expert, "sticky"
    if general is not None and general in ranked:
        return general, "uncertain"
    return best, "routed"


def _utilities_and_prices(
    assignment: Assignment, prediction: Prediction, extra_price: NDArray[np.float64] | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the expected utility and price of each column of the assignment by name."""
    utility = expected_utility(assignment, prediction.probabilities, prediction.residual)
    price = expected_price(assignment, prediction.probabilities) if assignment.is_priced else np.zeros(len(utility))
    if extra_price is not None:
        utility, price = utility - extra_price, price + extra_price
    names = assignment.experts
    return dict(zip(names, utility.tolist(), strict=True)), dict(zip(names, price.tolist(), strict=True))


def with_fallback(decision: Decision, expert: str, *, cause: Cause) -> Decision:
    """Return the decision with another expert, because its own did not answer for `cause`."""
    first, why = (decision.fallback_from, decision.cause) if decision.fallback_from else (decision.expert, cause)
    return replace(decision, expert=expert, reason="fallback", fallback_from=first, cause=why)


def choose(probabilities: Sequence[float], uniform: float) -> int:
    """Return the index of the selected expert; `uniform` is drawn from [0, 1)."""
    bounds = list(accumulate(probabilities))
    return bisect_right(bounds, uniform * bounds[-1])


def propensities(
    utility: NDArray[np.floating], *, rate: float, loss: float, weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return the selection probability of each expert, shape (n_experts,), or (n, n_experts) for n requests.

    `utility` is expected quality minus price, -inf for an expert that may not answer. Each other expert is explored
    with probability `rate` times its weight; without `weights`, those within `loss` of the best share the rate evenly.
    Otherwise the best one is selected, or uniformly one of several equal best ones. Off-policy estimates use these
    probabilities as exact weights. Raises ValueError if no expert may answer.
    """
    best = utility.max(axis=-1, keepdims=True)
    if np.isneginf(best).any():
        raise ValueError("no expert may answer")
    is_best = utility == best
    if weights is None:
        within = (utility >= best - loss) & np.isfinite(utility) & ~is_best
        weights = within / np.maximum(within.sum(axis=-1, keepdims=True), 1)
    explored = np.where(is_best, 0.0, rate * weights)
    best_probability = (1.0 - explored.sum(axis=-1, keepdims=True)) / is_best.sum(axis=-1, keepdims=True)
    return np.asarray(np.where(is_best, best_probability, explored))
