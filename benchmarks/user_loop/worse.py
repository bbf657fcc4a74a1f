"""An expert that gets worse: after how many ratings the alarm comes, with which categories, and what it is worth.

Four experts, nine categories, 20 rated requests of each category and day; the plan is solved from 30 probes a cell.
After ten days the expert with most categories drops to .3 in three of its own. `control`: nothing changes for 50 days.
Looks are every six hours, as the gateway's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coe.learning.experience import Experience
from coe.planning.assignment import Assignment
from coe.planning.problem import Problem
from coe.planning.score_table import tabulate_softly
from coe.planning.solver import solve
from coe.reports.degradation import DAY_SECONDS, Baseline, Degradation, degradations

CATEGORIES = ("code", "math", "law", "medicine", "finance", "writing", "history", "science", "general")
EXPERTS, PROBES, A_DAY, WINDOW, LOOKS = ("claude", "gpt", "alt", "small"), 30, 20, 7, 4
TRUE = np.array([[0.9, 0.85, 0.75, 0.6]] * 5 + [[0.8, 0.88, 0.75, 0.6]] * 4)
DROPPED = {"law", "medicine", "finance"}


def planned(seed: int) -> tuple[Assignment, Baseline]:
    """The plan of 30 probes a cell."""
    random = np.random.default_rng(seed)
    member = np.repeat(np.eye(len(CATEGORIES)), PROBES, axis=0)
    scores = (random.random((len(member), len(EXPERTS))) < np.repeat(TRUE, PROBES, axis=0)).astype(np.float64)
    table = tabulate_softly(CATEGORIES, EXPERTS, member, scores)
    quality = table.lower(deviations=1.0)
    return solve(Problem.of(table, quality=quality)), Baseline(quality, table.count, {})


def traffic(
    seed: int, days: int, assignment: Assignment, truth: NDArray[np.float64], *, first: float, strict: float = 0.0
) -> Experience:
    """The rated requests of some days; raters are `strict`er than the probes by some quality."""
    random, count = np.random.default_rng(seed), days * A_DAY * len(CATEGORIES)
    category = np.tile(np.repeat(np.arange(len(CATEGORIES)), 1), days * A_DAY)
    posterior = random.dirichlet([0.3] * len(CATEGORIES), count) * 0.2
    posterior[np.arange(count), category] += 0.8
    utility = posterior @ assignment.value
    chosen = utility.argmax(axis=1)
    blank = Experience.blank(CATEGORIES, EXPERTS, count)
    reward = (random.random(count) < truth[category, chosen] - strict).astype(np.float32)
    return replace(
        blank,
        posterior=posterior.astype(np.float32),
        chosen=chosen.astype(np.int16),
        reward=reward,
        kind=np.zeros(count, dtype=np.int8),
        time=(first + np.arange(count) / count * days) * DAY_SECONDS,
    )


def joined(parts: list[Experience]) -> Experience:
    names = [name for name in Experience.__dataclass_fields__ if isinstance(getattr(parts[0], name), np.ndarray)]
    return replace(parts[0], **{name: np.concatenate([getattr(one, name) for one in parts]) for name in names})


def first_alarm(log: Experience, baseline: Baseline, days: int, *, start: int) -> tuple[float, Degradation] | None:
    """The day of the first look with an alarm, and the alarm; each look reads the last week."""
    for look in range(start * LOOKS + 1, days * LOOKS + 1):
        now = look / LOOKS * DAY_SECONDS
        seen = log.part((log.time < now) & (log.time >= now - WINDOW * DAY_SECONDS))
        if found := degradations(seen, baseline):
            return look / LOOKS, found[0]
    return None


def run(seeds: int) -> None:
    for name, strict in (("control", 0.0), ("control, raters stricter by .1", 0.1)):
        false = 0
        for seed in range(seeds):
            assignment, baseline = planned(seed)
            log = traffic(seed + 1000, 50, assignment, TRUE, first=0.0, strict=strict)
            if found := first_alarm(log, baseline, 50, start=0):
                false += 1
                print(seed, found)
        print(f"worse, {name}: {false} of {seeds} series of 50 days have a false alarm", flush=True)
    for number in (3, 1):
        days, named = [], []
        for seed in range(seeds):
            assignment, baseline = planned(seed)
            own = [row for row, expert in enumerate(assignment.choice) if expert == "claude"][-number:]
            worse = TRUE.copy()
            worse[own, 0] = 0.3
            log = joined([traffic(seed + 1000, 10, assignment, TRUE, first=0.0), traffic(seed + 5000, 5, assignment, worse, first=10.0)])
            found = first_alarm(log, baseline, 15, start=8)
            days.append(found[0] - 10 if found else np.inf)
            named.append({one.category for one in found[1].drops} == {CATEGORIES[row] for row in own} if found else False)
        ratings = np.array(days) * A_DAY
        print(f"worse, {number} categories: alarm after {np.median(ratings)} ratings a category (90 %: {np.quantile(ratings, .9)}), within a day {np.mean(np.array(days) <= 1):.0%}; exactly the right categories {np.mean(named):.0%}", flush=True)
