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


def planned(seed: int) -> tuple[Assignment, Baseline, Problem]:
    """The plan of 30 probes a cell."""
    random = np.random.default_rng(seed)
    member = np.repeat(np.eye(len(CATEGORIES)), PROBES, axis=0)
    scores = (random.random((len(member), len(EXPERTS))) < np.repeat(TRUE, PROBES, axis=0)).astype(np.float64)
    table = tabulate_softly(CATEGORIES, EXPERTS, member, scores)
    quality = table.posterior().mean
    problem = Problem.of(table, quality=quality)
    return solve(problem), Baseline(quality, table.count, {}), problem


def traffic(
    seed: int, days: int, assignment: Assignment, truth: NDArray[np.float64], *, first: float, strict: float = 0.0
) -> Experience:
    """The rated requests of some days; raters are `strict`er than the probes by some quality."""
    random, count = np.random.default_rng(seed), days * A_DAY * len(CATEGORIES)
    category = np.tile(np.arange(len(CATEGORIES)), days * A_DAY)
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
    for name, strict in (("nothing changes", 0.0), ("raters are stricter by .1", 0.1)):
        alarms = 0
        for seed in range(seeds):
            assignment, baseline, _ = planned(seed)
            log = traffic(seed + 1000, 50, assignment, TRUE, first=0.0, strict=strict)
            alarms += first_alarm(log, baseline, 50, start=0) is not None
        print(f"worse, {name}: {alarms} of {seeds} series of 50 days have an alarm", flush=True)
    for number in (3, 1):
        found = [dropped(seed, number) for seed in range(seeds)]
        ratings = np.array([one[0] for one in found])
        print(
            f"worse, in {number} categories: alarm after {np.quantile(ratings, 0.5):.0f} ratings of each (90 %: "
            f"{np.quantile(ratings, 0.9):.0f}), within a day {np.mean(ratings <= A_DAY):.0%}; names the dropped ones "
            f"{np.mean([one[1] for one in found]):.2f}, others {np.mean([one[2] for one in found]):.2f} at first; "
            f"true quality {np.mean([one[3] for one in found]):.3f}, demoted {np.mean([one[4] for one in found]):.3f}, "
            f"best {np.mean([one[5] for one in found]):.3f}",
            flush=True,
        )


def dropped(seed: int, number: int) -> tuple[float, ...]:
    """Ratings of each category until the alarm; the share of the dropped categories that it names, and the others that
    it names; and the true quality without demotion, with it after two days, and of the best plan."""
    assignment, baseline, problem = planned(seed)
    own = [row for row, expert in enumerate(assignment.choice) if expert == "claude"][-number:]
    truth = TRUE.copy()
    truth[own, 0] = 0.3
    parts = [
        traffic(seed + int(1000 * first), 10, assignment, now, first=first)
        for now, first in ((TRUE, 0.0), (truth, 10.0))
    ]
    log = joined(parts)
    look, alarm = first_alarm(log, baseline, 20, start=8) or (np.inf, None)
    quality, named = problem.quality.copy(), {one.category for one in alarm.drops} if alarm else set()
    for worse in degradations(log.part((log.time < 12 * DAY_SECONDS) & (log.time >= 5 * DAY_SECONDS)), baseline):
        for one in worse.drops:
            quality[CATEGORIES.index(one.category), EXPERTS.index(worse.expert)] = one.found
    choices = assignment.choice, solve(replace(problem, quality=quality)).choice
    values = [np.mean([truth[row, EXPERTS.index(expert)] for row, expert in enumerate(one)]) for one in choices]
    right = {CATEGORIES[row] for row in own}
    return (look - 10) * A_DAY, len(named & right) / number, len(named - right), *values, truth.max(axis=1).mean()
