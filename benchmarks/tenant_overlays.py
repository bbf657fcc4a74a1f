"""Tenant overlays: accuracy gained by tenants that need one, and overlays given to tenants that do not.

    python benchmarks/tenant_overlays.py [--tenants N] [--requests N] [--json FILE]

Synthetic posteriors of 14 categories, correct for 80 % of the requests. For each kind of tenant: how many get an
overlay, and the accuracy by the tenant's own labels on held-out requests."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from coe.core import Prediction
from coe.jobs.rounds.overlay_round import judge_overlays
from coe.learning.estimation.experience import Experience
from coe.routing.classification import Overlays

CATEGORIES = tuple(f"c{number}" for number in range(14))
FRESH = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=40)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {
        f"{name}, corrects {rate:.0%} of what is wrong": tenants(given.tenants, given.requests, swapped, rate)
        for name, swapped in (("as everybody", 0), ("means another category by one", 1), ("by three", 3))
        for rate in (0.1, 0.3, 0.7)
    }
    found["corrects 5 % at random"] = tenants(given.tenants, given.requests, 0, 0.0, noise=0.05)
    found["microseconds"] = cost()
    text = json.dumps(found, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text)


def tenants(count: int, requests: int, swapped: int, rate: float, *, noise: float = 0.0) -> dict[str, float]:
    """The share with a head, and the share of fresh requests classified as meant, without and with it."""
    heads, before, after = 0, [], []
    for number in range(count):
        random = np.random.default_rng(number)
        meaning = np.arange(len(CATEGORIES))
        meaning[:swapped] = (meaning[:swapped] + 7) % len(CATEGORIES)
        (tried,) = judge_overlays(asked(random, requests, meaning, rate, noise)) or (None,)
        posterior, meant = traffic(random, FRESH, meaning)
        head = tried.overlay if tried is not None else None
        heads += head is not None
        before.append(float((posterior.argmax(axis=1) == meant).mean()))
        after.append(before[-1] if head is None else float((head.apply(posterior).argmax(axis=1) == meant).mean()))
    worst = min(b - a for a, b in zip(before, after, strict=True))
    return {"heads": heads / count, "before": np.mean(before), "after": np.mean(after), "worst change": worst}


def traffic(random: np.random.Generator, count: int, meaning: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors (count, m) of the router, and what the tenant means."""
    category = random.integers(len(CATEGORIES), size=count)
    taken = np.where(random.random(count) < 0.8, category, random.integers(len(CATEGORIES), size=count))
    logits = random.normal(size=(count, len(CATEGORIES)))
    logits[np.arange(count), taken] += 4.0
    logits[np.arange(count), category] += 1.0
    posterior = np.exp(logits)
    return (posterior / posterior.sum(axis=1, keepdims=True)).astype(np.float32), meaning[category]


def asked(random: np.random.Generator, count: int, meaning: np.ndarray, rate: float, noise: float) -> Experience:
    posterior, meant = traffic(random, count, meaning)
    said = (posterior.argmax(axis=1) != meant) & (random.random(count) < rate)
    corrected = np.where(said, meant, -1)
    corrected = np.where(random.random(count) < noise, random.integers(len(CATEGORIES), size=count), corrected)
    nothing: dict[str, Any] = {"categories": CATEGORIES, "experts": ("e",), "tenants": ("t",), "versions": ("v",)}
    return Experience(
        **nothing,
        posterior=posterior,
        chosen=np.zeros(count, dtype=np.int16),
        allowed=np.ones((count, 1), dtype=np.bool_),
        propensity=np.ones(count, dtype=np.float32),
        reward=np.full(count, np.nan, dtype=np.float32),
        kind=np.full(count, -1, dtype=np.int8),
        corrected=corrected.astype(np.int16),
        tenant=np.zeros(count, dtype=np.int32),
        version=np.zeros(count, dtype=np.int32),
        time=np.arange(count, dtype=np.float64),
        identity=np.arange(count, dtype=np.uint64),
    )


def cost() -> dict[str, float]:
    """Of one request with an overlay of 16 categories, and of one without; the least of seven runs."""
    import timeit

    from coe.routing.classification import Overlay

    size, number = 16, 20_000
    head = Overlay("t", tuple(map(str, range(size))), np.eye(size) + 0.1, np.zeros(size), 0.1)
    overlays = Overlays("v", {"t": head})
    posterior = np.random.default_rng(0).dirichlet(np.ones(size)).astype(np.float32)
    prediction = Prediction(posterior, "predict_fast")

    def least(tenant: str) -> float:
        runs = timeit.repeat(lambda: overlays.apply(prediction, tenant), number=number, repeat=7)
        return min(runs) / number * 1e6

    return {"with": least("t"), "without": least("nobody")}


if __name__ == "__main__":
    main()
