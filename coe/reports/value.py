"""What routing is worth to whoever pays: its dollars and its ratings, against always calling one expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from coe.errors import DataError
from coe.learning.experience import Experience
from coe.learning.moves import MAX_UNSUPPORTED
from coe.learning.off_policy import BanditLog
from coe.learning.plan_candidate import MIN_SERVED
from coe.learning.refit import agreements, trust_of
from coe.registry import Registry
from coe.terminal import dollars
from coe.trials.contrasts import SIGNIFICANCE
from coe.trials.evidence import WORTH, Interval, policy_interval


def value_of(
    spend: Mapping[str, Any], found: Experience | None, registry: Registry, *, against: str | None
) -> dict[str, Any]:
    """Return the verdict and its parts, JSON-able: what `against` alone would have cost and how it would be rated.

    By default that is the expert that would have cost most, or the general one. `cost` is its row of `spend`, None
    without a price. `quality` has the mean rating of both and the gain of routing as intervals that hold at once and at
    every look; where it is None, `unknown` says why and what to do. Raises DataError for an undeclared expert.
    """
    names, always = registry.expert_names, spend["always"]
    if against is not None and against not in names:
        raise DataError(f"--against: experts.yaml has no expert {against!r}; it has {', '.join(names)}")
    priced = [row["expert"] for row in always["experts"] if row["dollars"]]
    expert = against or next(iter(priced), registry.general_expert)
    cost = next((row for row in always["experts"] if row["expert"] == expert and expert in priced), None)
    quality, unknown = _quality(found, expert, registry)
    shown = {} if quality is None else {name: one._asdict() for name, one in quality.items()}
    sentence = f"{_cost_sentence(cost, always['dollars'], expert)}; {_quality_sentence(quality, expert) or unknown}"
    return {"verdict": sentence, "against": expert, "cost": cost, "quality": shown or None, "unknown": unknown}


def _quality(found: Experience | None, expert: str, registry: Registry) -> tuple[dict[str, Interval] | None, str]:
    """The mean ratings `routed` and `alone`, and the `gain` of routing; or why they are not known, with the remedy."""
    unknown = f"what quality {expert} would have is not known, because"
    if found is None:
        return None, f"{unknown} the log has no answers in this time"
    rated = found.part(found.usable_off_policy & (trust_of(found, agreements(found)) == 1.0))
    if len(rated) < MIN_SERVED:
        needed = f"{len(rated)} of {len(found)} answers can be used and {MIN_SERVED} are needed"
        return None, f"{unknown} {needed}: rate answers (POST /v1/feedback)"
    place = found.experts.index(expert)
    if (missing := float((rated.propensities[:, place] == 0).mean())) > MAX_UNSUPPORTED:
        line = f"exploration: {{rate: {registry.policy.exploration.rate or 0.05:g}, max_quality_loss: 1}}"
        return None, f"{unknown} {missing:.0%} of the requests could not go to it: explore it with `policy: {{{line}}}`"
    log = BanditLog.of(rated)
    alone = np.tile(np.eye(len(found.experts))[place], (len(rated), 1))
    policies = {"routed": log.propensities, "alone": alone, "gain": log.propensities - alone}
    observed, error = (log.chosen, log.reward, log.propensities, log.modelled), SIGNIFICANCE / len(policies)
    return {name: policy_interval(*observed, policy, error=error) for name, policy in policies.items()}, ""


def _cost_sentence(cost: Mapping[str, Any] | None, spent: float, expert: str) -> str:
    if cost is None:
        return f"what always calling {expert} would cost is not known: declare `prices` in experts.yaml"
    low, high = cost["low"] - spent, cost["high"] - spent
    if low <= 0 <= high:
        return f"routing cost about the same as always calling {expert} ({dollars(spent)})"
    amount, less, more = (dollars(abs(one)) for one in (cost["saved"], *sorted((low, high), key=abs)))
    share = f"{abs(cost['saved']) / cost['dollars']:.0%}"
    verb = f"saved {amount}" if low > 0 else f"cost {amount} more"
    assumed = "" if cost["measured"] > 0.5 else ", if it writes as much"
    return f"routing {verb} ({share}; {less} to {more}) against always calling {expert}{assumed}"


def _quality_sentence(quality: Mapping[str, Interval] | None, expert: str) -> str:
    if quality is None:
        return ""
    value, low, high = quality["gain"]
    interval = f"{value:+.3f}, {low:+.3f} to {high:+.3f} in the mean rating"
    if low > 0 or high < 0:
        return f"its answers were rated {'better' if low > 0 else 'worse'} ({interval})"
    shown = (
        "its answers were rated the same" if low > -WORTH and high < WORTH else "no difference in ratings is shown yet"
    )
    return f"{shown} ({interval})"
