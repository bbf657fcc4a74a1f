"""Forecasts the request rate of each expert from the traffic of the categories and its own recent traffic."""

from __future__ import annotations

import math
from collections.abc import Mapping

RATE_DECAY = 120.0
"""Seconds in which the weight of a request in a traffic rate decays to 1/e."""
SHARE_DECAY = 3600.0
"""Seconds in which the weight of a request in an expert's share of a category decays to 1/e."""
MIN_PERIOD = 30.0
"""Shortest period, in seconds, that a rate is measured over. Otherwise the first request would look like many."""
PRIOR_REQUESTS = 1.0
"""Requests that the assigned expert of a category counts for before any traffic."""
OWN_WEIGHT = 0.5
"""Weight of an expert's own recent traffic against that of its categories."""


class DecayingCount:
    """An event count that decays exponentially; `decay` is its time constant in seconds."""

    __slots__ = ("_at", "_decay", "_value")

    def __init__(self, decay: float, *, at: float, value: float = 0.0) -> None:
        self._decay, self._at, self._value = decay, at, value

    def add(self, now: float) -> None:
        self._value = self.value(now) + 1.0
        self._at = now

    def value(self, now: float) -> float:
        return self._value * math.exp(-max(now - self._at, 0.0) / self._decay)


class Forecast:
    """Request rates by expert, in requests a second.

    An expert's rate is its share of each category's requests times the category's rate. Shares decay slowly and begin
    with the assignment; rates decay fast, so when the traffic of a category rises, the forecast of all its experts
    does. Half of the forecast is the expert's own recent rate, for conversations that stay with it.
    """

    def __init__(self, assignment: Mapping[str, str], *, now: float) -> None:
        self._began = now
        self._categories: dict[str, DecayingCount] = {}
        self._own: dict[str, DecayingCount] = {}
        self._shares: dict[str, dict[str, DecayingCount]] = {}
        for category, expert in assignment.items():
            self._shares[category] = {expert: DecayingCount(SHARE_DECAY, at=now, value=PRIOR_REQUESTS)}

    def record(self, expert: str, category: str, now: float) -> None:
        """Counts one request of `category` for `expert`."""
        self._categories.setdefault(category, DecayingCount(RATE_DECAY, at=now)).add(now)
        self._own.setdefault(expert, DecayingCount(RATE_DECAY, at=now)).add(now)
        self._shares.setdefault(category, {}).setdefault(expert, DecayingCount(SHARE_DECAY, at=now)).add(now)

    def rates(self, now: float) -> dict[str, float]:
        """The forecast by expert; an expert that is absent has rate 0."""
        period = RATE_DECAY * -math.expm1(-max(now - self._began, MIN_PERIOD) / RATE_DECAY)  # that a count stands for
        rates = {expert: OWN_WEIGHT * own.value(now) / period for expert, own in self._own.items()}
        for category, count in self._categories.items():
            rate = (1 - OWN_WEIGHT) * count.value(now) / period
            shares = {expert: share.value(now) for expert, share in self._shares[category].items()}
            total = sum(shares.values())
            for expert, share in shares.items():
                rates[expert] = rates.get(expert, 0.0) + rate * share / total
        return rates
