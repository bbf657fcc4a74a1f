"""How often each expert will be asked for soon: the categories' traffic times who answers what, and recency."""

from __future__ import annotations

import math
from collections.abc import Mapping

QUICK, SLOW = 120.0, 3600.0
"""Seconds in which the memory of traffic fades to 1/e: of what is asked now, and of who answers a category."""
FIRST = 30.0
"""Seconds that a rate is measured over at least, or the first request would look like many."""
PRIOR = 1.0
"""Requests that the declared expert of a category counts for before any traffic."""
OWN = 0.5
"""Weight of an expert's own latest traffic against that of its categories."""


class Faded:
    """A count whose events fade with time."""

    __slots__ = ("_at", "_span", "_value")

    def __init__(self, span: float, *, at: float, value: float = 0.0) -> None:
        self._span, self._at, self._value = span, at, value

    def add(self, now: float) -> None:
        self._value = self.value(now) + 1.0
        self._at = now

    def value(self, now: float) -> float:
        return self._value * math.exp(-max(now - self._at, 0.0) / self._span)


class Forecast:
    """Rates by expert, in requests a second.

    An expert's rate is its share of each category's requests, remembered long and begun with the declared assignment,
    times the category's rate, remembered shortly: when a category comes up, all of its experts do. Half of the forecast
    is the expert's own latest rate, for conversations that stay with it.
    """

    def __init__(self, assignment: Mapping[str, str], *, now: float) -> None:
        self._began = now
        self._categories: dict[str, Faded] = {}
        self._own: dict[str, Faded] = {}
        self._shares: dict[str, dict[str, Faded]] = {}
        for category, expert in assignment.items():
            self._shares[category] = {expert: Faded(SLOW, at=now, value=PRIOR)}

    def note(self, expert: str, category: str, now: float) -> None:
        """One request of `category` came for `expert`."""
        self._categories.setdefault(category, Faded(QUICK, at=now)).add(now)
        self._own.setdefault(expert, Faded(QUICK, at=now)).add(now)
        self._shares.setdefault(category, {}).setdefault(expert, Faded(SLOW, at=now)).add(now)

    def rates(self, now: float) -> dict[str, float]:
        """The forecast by expert; an expert not named is not expected."""
        seen = QUICK * -math.expm1(-max(now - self._began, FIRST) / QUICK)  # seconds that a faded count stands for
        rates = {expert: OWN * own.value(now) / seen for expert, own in self._own.items()}
        for category, count in self._categories.items():
            rate = (1 - OWN) * count.value(now) / seen
            shares = {expert: share.value(now) for expert, share in self._shares[category].items()}
            total = sum(shares.values())
            for expert, share in shares.items():
                rates[expert] = rates.get(expert, 0.0) + rate * share / total
        return rates
