"""Forecasts the request rates of experts from recent traffic, their own and that of the categories they answer."""

from __future__ import annotations

import math
from collections.abc import Mapping

RATE_DECAY = 120.0
"""Seconds in which the weight of a request in a traffic rate decays to 1/e."""
SHARE_DECAY = 3600.0
"""Seconds in which the weight of a request in an expert's share of a category decays to 1/e."""
MIN_PERIOD = 30.0
"""Shortest period, in seconds, that a rate is measured over. Otherwise the first request would count as many."""
PRIOR_REQUESTS = 1.0
"""Requests that the assigned expert of a category counts for before any traffic."""
OWN_WEIGHT = 0.5
"""Weight of an expert's own recent traffic against that of its categories."""


class DecayingCounts:
    """Event counts by key that decay exponentially; `decay` is their time constant in seconds.

    Instead of all counts, the weight of a new event changes with time: a count is its weight times `unit`.
    """

    def __init__(self, decay: float, *, at: float) -> None:
        self.weights: dict[str, float] = {}
        self._decay, self._origin, self._latest = decay, at, at

    def add(self, key: str, now: float, value: float = 1.0) -> None:
        weight = value / self.unit(now)
        self.weights[key] = self.weights.get(key, 0.0) + weight

    def unit(self, now: float) -> float:
        """Return the count of a weight of 1 at `now`. While the clock is set back, nothing decays."""
        self._origin += min(now - self._latest, 0.0)
        self._latest = now
        unit = math.exp((self._origin - now) / self._decay)
        if unit < _SMALLEST_UNIT:
            self.weights = {key: weight * unit for key, weight in self.weights.items()}
            self._origin, unit = now, 1.0
        return unit


_SMALLEST_UNIT = 1e-100
"""Unit below which the weights are rescaled, since they would grow beyond what a float holds."""


class Forecast:
    """Request rates by expert, in requests a second.

    An expert's rate is its share of each category's requests times the category's rate. Shares decay slowly and begin
    with the assignment; rates decay fast, so when the traffic of a category rises, the forecast of all its experts
    does. Half of the forecast is the expert's own recent rate, for conversations that stay with it.
    """

    def __init__(self, assignment: Mapping[str, str], *, now: float) -> None:
        self._began = now
        self._categories = DecayingCounts(RATE_DECAY, at=now)
        self._own = DecayingCounts(RATE_DECAY, at=now)
        self._shares: dict[str, DecayingCounts] = {}
        for category, expert in assignment.items():
            self._shares_of(category, now).add(expert, now, PRIOR_REQUESTS)

    def _shares_of(self, category: str, now: float) -> DecayingCounts:
        if category not in self._shares:
            self._shares[category] = DecayingCounts(SHARE_DECAY, at=now)
        return self._shares[category]

    def record(self, expert: str, category: str, now: float) -> None:
        """Counts one request of `category` for `expert`."""
        self._categories.add(category, now)
        self._own.add(expert, now)
        self._shares_of(category, now).add(expert, now)

    def period(self, now: float) -> float:
        """The seconds that a count stands for: one more request raises a rate by at most 1 / period."""
        return RATE_DECAY * -math.expm1(-max(now - self._began, MIN_PERIOD) / RATE_DECAY)

    def rates(self, now: float) -> dict[str, float]:
        """The forecast by expert; an expert that is absent has rate 0."""
        period = self.period(now)
        own, shared = OWN_WEIGHT * self._own.unit(now) / period, (1 - OWN_WEIGHT) * self._categories.unit(now) / period
        rates = {expert: own * weight for expert, weight in self._own.weights.items()}
        for category, weight in self._categories.weights.items():
            shares = self._shares[category].weights
            total = sum(shares.values())
            if not total:  # months without a request: the counts have decayed to nothing
                continue
            rate = shared * weight / total
            for expert, share in shares.items():
                rates[expert] = rates.get(expert, 0.0) + rate * share
        return rates
