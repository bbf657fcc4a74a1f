"""Simulates the test of a recipe's loss bound in service: false alarms at the bound, and delay above it.

    .venv/bin/python -m benchmarks.recipe_audit [--runs 200] [--requests 10000]

In each run, answers differ at a fixed rate from those after the last step, and a share of the requests is audited.
`differ` is the largest rate that keeps the bound: max_loss over the loss per difference. A run is `broken` if the test
reaches its limit at any time.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from coe.learning.recipes.max_loss import LIMIT, capital

RATES = (0.005, 0.02, 0.05, 0.2)
"""Largest rates of differences that keep a bound, for example 0.01 / 0.5 = 0.02."""
FACTORS = (0.5, 1.5, 2.0, 4.0)
"""True rates as multiples of them."""
AUDIT_RATES = (0.02, 1.0)
MAX_AUDITED = 40_000
"""Audited requests after which a delay is no longer measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    print("at the bound: broken runs")
    for audit_rate in AUDIT_RATES:
        for rate in RATES:
            broken = sum(
                np.isfinite(_audited_until_broken(rate, rate, audit_rate, options.requests, seed))
                for seed in range(options.runs)
            )
            print(f"  audit rate {audit_rate:g}, differ {rate:g}: {broken} of {options.runs}")
    print("away from the bound: broken runs, audited requests until then (median, 95 %)")
    for rate in RATES:
        for factor in FACTORS:
            delays = np.array(
                [_audited_until_broken(factor * rate, rate, 1.0, MAX_AUDITED, seed) for seed in range(options.runs)]
            )
            found = np.isfinite(delays)
            middle, late = np.quantile(delays, (0.5, 0.95), method="higher")
            print(
                f"  differ {rate:g}, true {factor:g} times: {found.sum()} of {options.runs}, {middle:.0f}, {late:.0f}"
            )


def _audited_until_broken(true_rate: float, rate: float, audit_rate: float, requests: int, seed: int) -> float:
    """Return the number of audited requests at which a run breaks the bound; infinite if it does not."""
    random = np.random.default_rng(seed)
    audited = random.random(requests) < audit_rate
    differed: NDArray[np.int64] = np.cumsum((random.random(requests) < true_rate)[audited])
    found = capital(np.arange(1, len(differed) + 1), differed, rate) >= LIMIT
    return float(found.argmax() + 1) if found.any() else np.inf


if __name__ == "__main__":
    main()
