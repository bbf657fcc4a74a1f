"""Generate request traces for the residency simulator from seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

CATEGORIES = 16
SERVICE, SPREAD = 3.0, 0.6
"""Seconds of work a request, lognormal: the mean, and the deviation of the logarithm."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: seconds from the beginning, its expert and category by number, seconds of work."""

    at: float
    expert: int
    category: int
    work: float


@dataclass(frozen=True)
class Traffic:
    """Parameters of all traces: number of experts, mean requests a second, and length in seconds."""

    experts: int
    rate: float
    length: float
    seed: int

    @cached_property
    def popularity(self) -> np.ndarray:
        """Zipf's law over a random order; it has nothing to do with the experts' categories."""
        order = np.random.default_rng(self.seed + 1).permutation(self.experts)
        share = np.empty(self.experts)
        share[order] = 1.0 / np.arange(1, self.experts + 1)
        return share / share.sum()

    @cached_property
    def category_of(self) -> np.ndarray:
        return np.random.default_rng(self.seed + 2).integers(CATEGORIES, size=self.experts)

    def asked(self, rng: np.random.Generator, at: float, expert: int) -> Asked:
        work = rng.lognormal(np.log(SERVICE) - SPREAD**2 / 2, SPREAD)
        return Asked(at, expert, int(self.category_of[expert]), float(work))


def poisson(traffic: Traffic) -> Iterator[Asked]:
    """Independent requests at a constant rate."""
    rng = np.random.default_rng(traffic.seed)
    times = np.cumsum(rng.exponential(1 / traffic.rate, size=round(traffic.rate * traffic.length)))
    experts = rng.choice(traffic.experts, size=len(times), p=traffic.popularity)
    for at, expert in zip(times, experts, strict=True):
        yield traffic.asked(rng, float(at), int(expert))


def bursty(traffic: Traffic) -> Iterator[Asked]:
    """Half of the requests come in bursts: some 20 for one expert within 10 s (jobs, evaluations, agents)."""
    rng = np.random.default_rng(traffic.seed)
    half = round(traffic.rate * traffic.length / 2)
    times = list(rng.uniform(0, traffic.length, size=half))
    experts = list(rng.choice(traffic.experts, size=half, p=traffic.popularity))
    for _ in range(half // 20):
        begin, expert = rng.uniform(0, traffic.length), int(rng.choice(traffic.experts, p=traffic.popularity))
        size = rng.poisson(20)
        times += list(begin + rng.uniform(0, 10.0, size=size))
        experts += [expert] * size
    for index in np.argsort(times, kind="stable"):
        yield traffic.asked(rng, float(times[index]), int(experts[index]))


def correlated(traffic: Traffic) -> Iterator[Asked]:
    """Conversations of some 5 turns that stay with their expert, 20 s apart; every 10 minutes four of the categories
    are in fashion and draw three quarters of the new conversations."""
    rng = np.random.default_rng(traffic.seed)
    share, category_of = traffic.popularity, traffic.category_of
    found = []
    for phase in np.arange(0, traffic.length, 600.0):
        fashion = np.isin(category_of, rng.choice(CATEGORIES, size=4, replace=False))
        liked = 0.75 * share * fashion / (share * fashion).sum() + 0.25 * share * ~fashion / (share * ~fashion).sum()
        for _ in range(rng.poisson(traffic.rate * 600.0 / 5)):
            at, expert = phase + rng.uniform(0, 600.0), int(rng.choice(traffic.experts, p=liked))
            for _ in range(rng.geometric(1 / 5)):
                found.append((at, expert))
                at += rng.exponential(20.0)
    for at, expert in sorted(found):
        yield traffic.asked(rng, float(at), expert)


def daily(traffic: Traffic) -> Iterator[Asked]:
    """A day's cycle in the length of the trace: the rate swings by 80 % about its mean, and each category has its peak
    at another hour."""
    rng = np.random.default_rng(traffic.seed)
    share, category_of = traffic.popularity, traffic.category_of
    for at in np.sort(rng.uniform(0, traffic.length, size=rng.poisson(2 * traffic.rate * traffic.length))):
        hour = 2 * np.pi * at / traffic.length
        if rng.uniform() * 2 > 1 + 0.8 * np.sin(hour - np.pi / 2):
            continue
        liked = share * (1 + 0.8 * np.sin(hour - 2 * np.pi * category_of / CATEGORIES))
        yield traffic.asked(rng, float(at), int(rng.choice(traffic.experts, p=liked / liked.sum())))


def shifting(traffic: Traffic) -> Iterator[Asked]:
    """As poisson, but the popularity of the experts is drawn anew three times."""
    rng = np.random.default_rng(traffic.seed)
    times = np.cumsum(rng.exponential(1 / traffic.rate, size=round(traffic.rate * traffic.length)))
    share, phase = traffic.popularity, 0
    for at in times:
        if int(4 * at / traffic.length) != phase:
            phase = int(4 * at / traffic.length)
            share = share[rng.permutation(traffic.experts)]
        yield traffic.asked(rng, float(at), int(rng.choice(traffic.experts, p=share)))


KINDS: dict[str, Callable[[Traffic], Iterator[Asked]]] = {
    "poisson": poisson,
    "bursty": bursty,
    "correlated": correlated,
    "daily": daily,
    "shifting": shifting,
}
