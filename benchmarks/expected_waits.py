"""Error of the expected waits of `coe plan` against long simulations, and of its search against all plans.

    python benchmarks/expected_waits.py --json FILE [--problems 20] [--seed 0]

Random problems: four categories, four experts that share a device with room for two, load times of 1 to 20 s.

    estimate   the mean wait of every expert of a random plan, against one simulation of 20,000 requests
    search     the quality of `solve_with_waits` under a latency limit, against the best of all 256 plans by their own
               simulated waits; the limit is a percentile of the latencies of these plans
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from coe.errors import ConfigError
from coe.fleet.residency.load_times import LoadTimes
from coe.jobs import expected_waits
from coe.jobs.expected_waits import WaitModel, solve_with_waits, with_waits
from coe.mapping import Assignment, PlanInputs, Problem, Uses, planned_quality, planned_use, solve
from coe.mapping.score_table import ScoreTable
from coe.registry import Registry

CATEGORIES, EXPERTS = ("c0", "c1", "c2", "general"), ("e0", "e1", "e2", "e3")
LONG = 20_000


def registry(rng: np.random.Generator) -> Registry:
    experts = [
        {"name": name, "model": f"own/{name}", "runtime": "vllm", "memory_gb": float(rng.uniform(6, 12))}
        for name in EXPERTS
    ]
    return Registry.model_validate(
        {
            "version": 1,
            "categories": [{"name": name, "description": name} for name in CATEGORIES],
            "experts": experts,
            "assignment": {"general": EXPERTS[0]},
            "residency": {"devices": [{"name": "gpu0", "memory_gb": 24}], "max_wait": 20, "wait_timeout": 600},
        }
    )


def problem(rng: np.random.Generator) -> tuple[PlanInputs, WaitModel]:
    declared = registry(rng)
    with tempfile.TemporaryDirectory() as folder:
        load_times = LoadTimes(Path(folder) / "load-times.json", declared.experts)
        for name in EXPERTS:
            load_times.record([name], "stopped", float(rng.uniform(1, 20)))
    model = WaitModel(declared, load_times=load_times, rate=float(rng.uniform(0.02, 0.5)))
    quality = rng.uniform(0.3, 0.9, (4, 4))
    uses = Uses(latency_ms=np.tile(rng.uniform(500, 4000, 4), (4, 1)))
    found = Problem(CATEGORIES, EXPERTS, quality, rng.dirichlet(np.ones(4)), uses)
    table = ScoreTable(CATEGORIES, EXPERTS, quality, np.zeros((4, 4)), np.ones((4, 4)))
    return PlanInputs(found, table, None, 0.0, "random"), model


def solved(inputs: PlanInputs) -> Assignment:
    return solve(inputs.problem)


def estimate_error(inputs: PlanInputs, model: WaitModel, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """The estimate of each expert of a random plan, its standard error, and the mean of a long simulation."""
    plan = replace(solved(inputs), choice=tuple(rng.choice(EXPERTS, 4)))
    short = model.waits(inputs.problem, plan)
    usual = expected_waits.SIMULATED_REQUESTS, expected_waits.EVENT_BUDGET, expected_waits.SEEDS
    expected_waits.SIMULATED_REQUESTS, expected_waits.EVENT_BUDGET, expected_waits.SEEDS = LONG, LONG * 4, 1
    try:
        long = model.waits(inputs.problem, plan)
    finally:
        expected_waits.SIMULATED_REQUESTS, expected_waits.EVENT_BUDGET, expected_waits.SEEDS = usual
    return [(short[name].mean_s, short[name].standard_error_s, long[name].mean_s) for name in short]


def searched(inputs: PlanInputs, model: WaitModel, percentile: float) -> dict[str, float]:
    """Qualities of the best plan that keeps the limit: of all plans, and of those that the search simulates."""
    base = solved(inputs)
    qualities, latencies = [], []
    for choice in itertools.product(EXPERTS, repeat=4):
        plan = replace(base, choice=choice)
        waits = {name: wait.mean_s for name, wait in model.waits(inputs.problem, plan).items()}
        qualities.append(planned_quality(inputs.problem, plan))
        limited = with_waits(inputs, waits).problem.within(mean_latency_ms=1e9)
        latencies.append(planned_use(limited, plan)["mean_latency_ms"])
    limit = float(np.percentile(latencies, percentile))
    best = max(quality for quality, latency in zip(qualities, latencies, strict=True) if latency <= limit)
    limited = replace(inputs, problem=inputs.problem.within(mean_latency_ms=limit))
    try:
        found = solve_with_waits(limited, model, solve=solved)
    except ConfigError:
        return {"best": best, "found": float("nan"), "simulated": float("nan")}
    return {
        "best": best,
        "found": planned_quality(inputs.problem, found.assignment),
        "simulated": float(found.simulated),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--searched", type=int, default=8, help="of these, those whose 256 plans are all simulated")
    parser.add_argument("--limit-percentile", type=float, default=20, help="of the latencies of all plans")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    errors: list[tuple[float, float, float]] = []
    searches = []
    for number in range(given.problems):
        inputs, model = problem(rng)
        errors += estimate_error(inputs, model, rng)
        if number < given.searched:
            searches.append(searched(inputs, model, given.limit_percentile))
            print(number, searches[-1], flush=True)
    short, standard, long = np.array(errors).T
    within = np.abs(short - long) <= np.maximum(2 * standard, 0.05)
    waiting = long > 0.1
    report: dict[str, Any] = {
        "experts": len(errors),
        "mean_wait_s": round(float(long.mean()), 3),
        "mean_absolute_error_s": round(float(np.abs(short - long).mean()), 3),
        "median_relative_error": round(float(np.median(np.abs(short / long - 1)[waiting])), 3),
        "within_two_standard_errors": round(float(within.mean()), 3),
        "searches": searches,
    }
    given.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    print(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode())


if __name__ == "__main__":
    main()
