"""CPU time of the residency schedule's decisions: many experts, a trace of Poisson arrivals, simulated servers.

    python benchmarks/residency_decisions.py [--experts 200] [--rate 4] [--length 150] [--seed 11]

A decision is one call of `Scheduler.decide`: the state of all servers, the policy, and the bookkeeping of its actions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from residency import Run
from residency_loads import Host
from residency_traces import Traffic, poisson

from coe.fleet.residency.policy import plan
from coe.fleet.residency.scheduler import Scheduler


def timed(decide: Callable[..., Any], taken: list[float]) -> Callable[..., Any]:
    """`decide`, which adds the CPU milliseconds of each call to `taken`."""

    def wrapped(scheduler: Scheduler, now: float) -> Any:
        begin = time.process_time_ns()
        decided = decide(scheduler, now)
        taken.append((time.process_time_ns() - begin) / 1e6)
        return decided

    return wrapped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=200)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--length", type=float, default=150.0, help="seconds")
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    taken: list[float] = []
    Scheduler.decide = timed(Scheduler.decide, taken)  # type: ignore[method-assign]
    trace = list(poisson(Traffic(given.experts, given.rate, given.length, given.seed)))
    run = Run(trace, given.experts, seed=given.seed, policy=plan, max_wait=90.0, host=Host())
    run.run()
    p50, p99 = np.percentile(taken, (50, 99))
    times = f"p50 {p50:.2f}, mean {np.mean(taken):.2f}, p99 {p99:.2f} ms"
    print(f"{len(taken)} decisions for {given.experts} experts: {times}")


if __name__ == "__main__":
    main()
