"""The rounds of `coe retrain` with experts of known quality: when they move what should move, and nothing else.

`alt` is truly .95 against .78 in law and medicine, and .45 in math; 10 % of the requests explore. Reported for each
rate of ratings: after how many requests each category had moved, and the share of series that moved both in
time; then, with experts that are as measured, the share of series with any move in 50 rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning_scenarios import Scenario, SimulatedLog, Truth, following, plan
from benchmarks.quality_replay import ScoredPrompts
from coe.learning.plan_candidate import CurrentPlan, judge_plan
from coe.planning.score_table import ScoreTable

CATEGORIES, SHARES = ("law", "medicine", "math", "code", "general"), (0.2, 0.2, 0.2, 0.2, 0.2)
EXPERTS, PROBES = ("main", "alt", "small"), 40
MEASURED = np.array([[0.78, 0.72, 0.7], [0.78, 0.72, 0.7], [0.9, 0.45, 0.6], [0.85, 0.7, 0.65], [0.85, 0.75, 0.7]])
TRUE = MEASURED.copy()
TRUE[:2, 1] = 0.95
ASKED, RATE, LOSS = 2000, 0.1, 0.1


def series(seed: int, truth: NDArray[np.float64], *, rated: float, ends: Sequence[int]) -> dict[str, list[int]]:
    """The number of requests after which each category moved, in rounds after `ends` requests."""
    random = np.random.default_rng(seed)
    category = random.choice(len(CATEGORIES), ASKED, p=SHARES)
    posterior = random.dirichlet([0.3] * len(CATEGORIES), ASKED) * 0.2
    posterior[np.arange(ASKED), category] += 0.8
    scores = truth[category]
    count = np.full(MEASURED.shape, float(PROBES))
    measured = ScoreTable(CATEGORIES, EXPERTS, MEASURED, MEASURED * (1 - MEASURED), count)
    current, moves = CurrentPlan(plan(measured, MEASURED), RATE, LOSS), dict[str, list[int]]()
    scenario = Scenario("known", "better", 2, RATE, LOSS, ends[-1], rated)
    prompts = ScoredPrompts(CATEGORIES, EXPERTS, posterior, scores)
    log = SimulatedLog(prompts, Truth(posterior, scores, scores), scenario, random)
    for end in ends:
        log.serve(end, current.assignment)
        before, now = current.assignment.choice, float(end)
        current = following(current, judge_plan(log.experience(), current, now=now, solve_plan=plan, base=measured))
        for name, old, new in zip(CATEGORIES, before, current.assignment.choice, strict=True):
            if old != new:
                moves.setdefault(name, []).append(end)
    return moves


def run(seeds: int) -> None:
    for rated, limit, step, rounds in ((0.6, 3000, 250, 40), (0.05, 25_000, 1250, 40)):
        ends = [step * number for number in range(1, rounds + 1)]
        found = [series(seed, TRUE, rated=rated, ends=ends) for seed in range(seeds)]
        in_time = sum(max(one.get(name, [np.inf])[0] for name in CATEGORIES[:2]) <= limit for one in found) / seeds
        others = sum(len(set(one) - set(CATEGORIES[:2])) > 0 for one in found)
        medians = [float(np.median([one.get(name, [np.inf])[0] for one in found])) for name in CATEGORIES[:2]]
        print(f"learning, {rated:.0%} rated: both within {limit} requests in {in_time:.0%} of series", flush=True)
        print(f"  medians of {', '.join(CATEGORIES[:2])}: {medians}; series with another move: {others}", flush=True)
    null = [series(seed, MEASURED, rated=0.6, ends=range(400, 20_001, 400)) for seed in range(seeds)]
    print(f"learning, as measured, 50 rounds: {sum(map(bool, null)) / seeds:.1%} of series have a move")
