"""Time of a plan's parts by its size (wall, processor): fitting recipes, solving, prices, marginal values.

python -m benchmarks.plan_size --experts 60 --arms 40 --categories 200 --json plan.json
python -m benchmarks.plan_size --experts 60 --arms 120 --recipes 40 --categories 200
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coe.planning import Problem, Uses, marginal_values, routed_use, solve
from coe.planning.prices import prices
from coe.planning.program import require_solution
from coe.recipes.fitting.answers import Answers
from coe.recipes.fitting.arms import declared_arms

MEMBERS, REQUESTS = 3, 4000
PROBES = 20
"""Probes of a category that recipes are fitted on."""


def problem_of(*, experts: int, arms: int, categories: int, seed: int, budget: Mapping[str, float]) -> Problem:
    """Return a random problem. Larger experts tend to be better, and an arm better than its best member at a cost
    between its cheapest member's and that of all."""
    random = np.random.default_rng(seed)
    size = np.exp(random.uniform(0.0, np.log(400.0), experts))
    skill = 0.35 + 0.08 * np.log(size) + random.normal(0, 0.03, experts)
    quality = np.clip(skill + random.normal(0, 0.08, (categories, experts)), 0.0, 1.0)
    cost = size / 50 * np.exp(random.normal(0, 0.4, (categories, experts)))
    active, latency = np.tile(size, (categories, 1)), 20 * cost
    members, calls = {}, {}
    for number in range(arms):
        group = random.choice(experts, MEMBERS, replace=False)
        group = group[np.argsort(size[group])]
        share = np.column_stack((np.ones((categories, 1)), random.uniform(0.1, 0.9, (categories, MEMBERS - 1))))
        share = np.minimum.accumulate(share, axis=1)
        gain = random.uniform(-0.02, 0.05, categories)
        quality = np.column_stack((quality, np.clip(quality[:, group].max(axis=1) + gain, 0.0, 1.0)))
        cost = np.column_stack((cost, (cost[:, group] * share).sum(axis=1)))
        active = np.column_stack((active, (active[:, group] * share).sum(axis=1)))
        latency = np.column_stack((latency, (latency[:, group] * share).sum(axis=1)))
        members[f"arm{number}"] = tuple(f"e{index}" for index in group)
        calls[f"arm{number}"] = share
    names = tuple(f"e{number}" for number in range(experts)) + tuple(members)
    memory = np.concatenate((2 * size, np.zeros(arms)))
    return Problem(
        tuple(f"c{number}" for number in range(categories)),
        names,
        quality,
        random.dirichlet(np.full(categories, 2.0)),
        Uses(memory, active, cost, latency, calls),
        budget,
        members,
    )


def fit_recipes(*, experts: int, recipes: int, categories: int, seed: int) -> int:
    """Fit cascades of three to five members on random answers; return their number."""
    random = np.random.default_rng(seed)
    size = np.exp(random.uniform(0.0, np.log(400.0), experts))
    labels = np.repeat(np.arange(categories), PROBES)
    skill = np.clip(0.35 + 0.08 * np.log(size) + random.normal(0, 0.08, (categories, experts)), 0.05, 0.95)
    right = random.random((len(labels), experts)) < skill[labels]
    classes = np.where(right, 0, random.integers(1, 10, right.shape))
    tokens = random.lognormal(5.0, 0.8, right.shape).round()
    names = tuple(f"e{number}" for number in range(experts))
    answers = Answers(names, classes, right.astype(float), tokens * size, tokens, labels, categories)
    arms = 0
    for number in range(recipes):
        members = random.choice(experts, 3 + number % 3, replace=False)
        steps = [[int(member)] for member in members[np.argsort(size[members])]]
        arms += len(declared_arms(answers, f"r{number}", steps))
    return arms


def posteriors(problem: Problem, *, count: int, seed: int) -> np.ndarray:
    """Return mixed posteriors around categories that are drawn by weight."""
    random = np.random.default_rng(seed)
    true = random.choice(len(problem.categories), size=count, p=problem.weights)
    logits = random.normal(size=(count, len(problem.categories)))
    logits[np.arange(count), true] += 6.0
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True)


def budgets(problem: Problem) -> dict[str, dict[str, float]]:
    """Return budgets that bind, from the uses of the plan without a budget."""
    best = problem.quality.argmax(axis=1)
    rows = np.arange(len(best))
    cost, latency = (float(problem.weights @ problem.use(row)[rows, best]) for row in ("mean_cost", "mean_latency_ms"))
    memory = float(problem.use("memory_gb").sum())
    return {
        "none": {},
        "memory_gb": {"memory_gb": memory / 4},
        "mean_cost": {"mean_cost": cost / 3},
        "max_share": {"max_share": 0.15},
        "memory_gb, mean_cost": {"memory_gb": memory / 4, "mean_cost": cost / 3},
        "all": {"memory_gb": memory / 4, "mean_cost": cost / 3, "mean_latency_ms": latency / 2, "max_share": 0.2},
    }


def seconds(what: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Return the wall time and the processor time in seconds, and the result."""
    began, worked = time.perf_counter(), time.process_time()
    found = what()
    return (round(time.perf_counter() - began, 2), round(time.process_time() - worked, 2)), found


def measure(problem: Problem, traffic: np.ndarray, *, full: bool) -> dict[str, Any]:
    plan_time, plan = seconds(lambda: require_solution(problem))
    price_time, _ = seconds(lambda: prices(problem, hosted=plan.hosted, traffic=traffic))
    quality = problem.weights @ problem.quality[np.arange(len(problem.categories)), plan.choice]
    report: dict[str, Any] = {"solve": plan_time, "prices": price_time, "quality": round(float(quality), 5)}
    if full:
        assignment = solve(problem, traffic=traffic)
        report["values"], _ = seconds(lambda: marginal_values(problem, assignment))
        limits = problem.budget
        report["use_of_limit"] = {
            row: used / limits[row] for row, used in routed_use(problem, assignment, traffic).items()
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=60)
    parser.add_argument("--arms", type=int, default=40)
    parser.add_argument("--recipes", type=int, default=0, help="recipes to fit")
    parser.add_argument("--categories", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", help="one budget of the list, instead of all")
    parser.add_argument("--full", action="store_true", help="marginal values too")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    shape = {name: getattr(chosen, name) for name in ("experts", "arms", "categories", "seed")}
    found: dict[str, Any] = {}
    if chosen.recipes:
        sizes = {name: getattr(chosen, name) for name in ("experts", "recipes", "categories", "seed")}
        found["fit"], arms = seconds(lambda: fit_recipes(**sizes))
        print(f"{f'fit {arms} arms':22} {found['fit']}", flush=True)
    free = problem_of(**shape, budget={})
    traffic = posteriors(free, count=REQUESTS, seed=chosen.seed + 1)
    for name, limits in budgets(free).items():
        if chosen.budget in (None, name):
            found[name] = measure(problem_of(**shape, budget=limits), traffic, full=chosen.full)
            print(f"{name:22} {json.dumps(found[name])}", flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(shape | {"budgets": found}, indent=2))


if __name__ == "__main__":
    main()
