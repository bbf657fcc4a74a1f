"""Scenarios in which a measured plan learns from its traffic: does a promotion ever make the service worse?

    python -m benchmarks.learning_scenarios --data DIR [--seeds 200] [--only NAME] [--json FILE] [--work DIR]

DIR holds prompts, scores and models as `coe benchmark` reads them. Each series starts from a plan that was measured on
probes. Then one expert gets better or worse in some categories, requests come with exploration, a part of them is
rated, and the functions behind `coe retrain` refit, plan and judge, without held-out probes. The truth is known: the
requests are drawn from the prompts that are not probes, with every expert's score.

Reported for each scenario: series, promotions, the largest loss of true quality by any promotion, series with a
promotion that lost quality, and how many of the gains above .02, and above .005, that the log can
show were found; a gain is that of one category in the mean quality over all requests. The log can show a
gain where a test of the true best move, made once at the end, has a power of 95 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from scipy.stats import norm

from benchmarks.quality_replay import ScoredPrompts, replayed
from coe.learning.experience import Experience
from coe.learning.moves import MIN_RATED, shares
from coe.learning.off_policy import greedy_policy
from coe.learning.plan_candidate import CurrentPlan, JudgedPlan, judge_plan
from coe.planning.assignment import Assignment
from coe.planning.problem import Problem
from coe.planning.score_table import ScoreTable, tabulate_softly
from coe.planning.solver import solve
from coe.routing.decision import propensities
from coe.trials.contrasts import SIGNIFICANCE

Array = NDArray[np.float64]

PROBES, TENANTS = 700, 8
WORSE, BETTER = 0.8, 0.8
"""Share of its score that a worse expert loses, and of what it lacks that a better one gains."""
WORTHWHILE, POWER = (0.02, 0.005), 0.95
EARLY = (500, 1000, 1500, 2000, 2500, 3000)
ROUNDS = (*EARLY, 5000, 7500, 10_000, 12_500, 15_000, 17_500, 20_000)
"""Numbers of requests after which a round takes place."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """`change` happens to one expert in `categories` categories; `gradual` spreads it over all requests."""

    name: str
    change: Literal["worse", "better"]
    categories: int
    rate: float
    loss: float
    requests: int
    rated: float
    gradual: bool = False


SCENARIOS = (
    Scenario("one expert worse in two categories", "worse", 2, 0.10, 0.15, 3000, 0.6),
    Scenario("nothing changes, short log", "worse", 0, 0.05, 0.05, 500, 0.2),
    Scenario("nothing changes, medium log", "worse", 0, 0.10, 0.15, 3000, 0.6),
    Scenario("nothing changes, long log", "worse", 0, 0.10, 0.15, 20_000, 0.2),
    Scenario("better in one category", "better", 1, 0.10, 0.15, 20_000, 0.6),
    Scenario("worse in one category", "worse", 1, 0.05, 0.05, 20_000, 0.6),
    Scenario("better in two categories, little exploration", "better", 2, 0.05, 0.05, 3000, 0.2),
    Scenario("worse in five categories", "worse", 5, 0.10, 0.15, 20_000, 0.6),
    Scenario("better in five categories, short log", "better", 5, 0.10, 0.15, 500, 0.6),
    Scenario("drifting worse in two categories", "worse", 2, 0.10, 0.15, 20_000, 0.6, gradual=True),
)


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The population of requests, posteriors (n, m), and every expert's expected score (n, k) at the start and end."""

    posterior: Array
    before: Array
    after: Array

    def scores(self, progress: float) -> Array:
        return self.before + progress * (self.after - self.before)


@dataclass(frozen=True, slots=True)
class Series:
    """`losses` holds the loss of true quality by each promotion, negative for a gain. `found` and `missed` count gains
    above each of WORTHWHILE."""

    losses: tuple[float, ...]
    found: tuple[int, ...]
    missed: tuple[int, ...]
    start: float
    end: float


def run(scored_prompts: ScoredPrompts, scenario: Scenario, seed: int) -> Series:
    random = np.random.default_rng((seed, sum(map(ord, scenario.name))))
    assignment, measured, rest = _measured_plan(scored_prompts, random, everything=not scenario.categories)
    truth = _truth(scored_prompts, rest, assignment, scenario, random)
    current = CurrentPlan(assignment, scenario.rate, scenario.loss)
    log = SimulatedLog(scored_prompts, truth, scenario, random)
    losses = []
    for count in (number for number in ROUNDS if number <= scenario.requests):
        log.serve(count, current.assignment)
        names, now = scored_prompts.categories, float(count)
        found = judge_plan(log.experience(), current, now=now, solve_plan=plan, base=measured, guarded=names)
        if found.judgement.reason == "better":
            scores = truth.scores(log.progress)
            old, new = (_value(scored_prompts, truth, one, scores) for one in (current.assignment, found.candidate))
            losses.append(old - new)
        current = following(current, found)
    shown = replace(truth, after=truth.scores(0.5))  # the mean over all requests
    hits, missed = _gains(scored_prompts, shown, assignment, current.assignment, log.experience())
    ends = (_value(scored_prompts, truth, one, truth.after) for one in (assignment, current.assignment))
    return Series(tuple(losses), hits, missed, *ends)


def following(current: CurrentPlan, judged: JudgedPlan) -> CurrentPlan:
    """The plan that serves after a round."""
    since = {move.category: move.decided for move in judged.moves if move.accepted and judged.judgement.promote}
    return replace(current, assignment=judged.candidate, since={**current.since, **since})


def plan(table: ScoreTable, quality: Array) -> Assignment:
    return solve(Problem.of(table, quality=quality, weights=np.ones(len(table.categories))))


def _measured_plan(
    scored_prompts: ScoredPrompts, random: np.random.Generator, *, everything: bool
) -> tuple[Assignment, ScoreTable, NDArray[np.int64]]:
    """The plan of `coe plan`, its table, and the prompts that are left as requests.

    With `everything` it is made of all scores, so that nothing is left to learn.
    """
    shuffled = random.permutation(len(scored_prompts.scores))
    probes, rest = shuffled[:PROBES], shuffled[PROBES:]
    used = rest if everything else probes
    table = tabulate_softly(
        scored_prompts.categories, scored_prompts.experts, scored_prompts.posterior[used], scored_prompts.scores[used]
    )
    return plan(table, table.posterior().mean), table, rest


def _truth(
    scored_prompts: ScoredPrompts,
    rest: NDArray[np.int64],
    assignment: Assignment,
    scenario: Scenario,
    random: np.random.Generator,
) -> Truth:
    """One expert changes: a worse one in categories that the plan gives it, or the one that exploration
    reaches most gets better there."""
    posterior, before = scored_prompts.posterior[rest], scored_prompts.scores[rest]
    likeliest, chosen = posterior.argmax(axis=1), shares(assignment).argmax(axis=1)
    sizes = np.bincount(likeliest, minlength=len(scored_prompts.categories))
    if scenario.change == "worse":
        expert = int(np.bincount(chosen, weights=sizes, minlength=len(scored_prompts.experts)).argmax())
        possible = np.flatnonzero(chosen == expert)
    else:
        value = assignment.quality - assignment.price
        reached = (value < value.max(axis=1, keepdims=True)) & (
            value >= value.max(axis=1, keepdims=True) - scenario.loss
        )
        expert = int((reached * sizes[:, None]).sum(axis=0).argmax())
        possible = np.flatnonzero(reached[:, expert])
    weights = sizes[possible] / max(sizes[possible].sum(), 1)
    count = min(scenario.categories, int((weights > 0).sum()))
    changed = random.choice(possible, size=count, replace=False, p=weights) if count else np.array([], dtype=int)
    after, rows = before.copy(), np.isin(likeliest, changed)
    own = after[rows, expert]
    after[rows, expert] = own * (1 - WORSE) if scenario.change == "worse" else own + (1 - own) * BETTER
    return Truth(posterior, before if scenario.gradual else after, after)


class SimulatedLog:
    """Requests as the gateway logs them, in arrays."""

    def __init__(
        self, scored_prompts: ScoredPrompts, truth: Truth, scenario: Scenario, random: np.random.Generator
    ) -> None:
        self._scored_prompts, self._truth, self._scenario, self._random = scored_prompts, truth, scenario, random
        self._columns: list[dict[str, Any]] = []
        self._count = 0

    @property
    def progress(self) -> float:
        return self._count / self._scenario.requests

    def serve(self, deadline: int, assignment: Assignment) -> None:
        """Requests up to number `deadline`, decided by an assignment."""
        count, random, scenario = deadline - self._count, self._random, self._scenario
        rows = random.integers(0, len(self._truth.posterior), count)
        posterior = self._truth.posterior[rows]
        utility = posterior @ (assignment.quality - assignment.price)
        weights = None if assignment.exploration is None else assignment.exploration[posterior.argmax(axis=1)]
        chances = propensities(utility, rate=scenario.rate, loss=scenario.loss, weights=weights)
        chosen = np.minimum((random.random((count, 1)) > np.cumsum(chances, axis=1)).sum(axis=1), chances.shape[1] - 1)
        progress = (self._count + np.arange(count)) / scenario.requests
        start, end = self._truth.before[rows, chosen], self._truth.after[rows, chosen]
        mean = start + progress * (end - start)
        rated = random.random(count) < scenario.rated
        reward = np.where(rated, (random.random(count) < mean).astype(float), np.nan)
        self._columns.append(
            {
                "posterior": posterior.astype(np.float32),
                "chosen": chosen.astype(np.int16),
                "propensity": chances[np.arange(count), chosen].astype(np.float32),
                "propensities": chances.astype(np.float32),
                "reward": reward.astype(np.float32),
                "kind": np.where(rated, 0, -1).astype(np.int8),
                "tenant": random.integers(0, TENANTS, count).astype(np.int32),
                "time": self._count + np.arange(count, dtype=np.float64),
            }
        )
        self._count = deadline

    def experience(self) -> Experience:
        names = self._columns[0]
        columns = {name: np.concatenate([one[name] for one in self._columns]) for name in names}
        count = self._count
        return Experience(
            categories=self._scored_prompts.categories,
            experts=self._scored_prompts.experts,
            tenants=tuple(f"t{number}" for number in range(TENANTS)),
            allowed=np.ones((count, len(self._scored_prompts.experts)), dtype=np.bool_),
            corrected=np.full(count, -1, dtype=np.int16),
            **columns,
        )


def _population(scored_prompts: ScoredPrompts, truth: Truth) -> Experience:
    whole = ScoredPrompts(scored_prompts.categories, scored_prompts.experts, truth.posterior, truth.after)
    return whole.experience(np.arange(len(truth.posterior)))


def _value(scored_prompts: ScoredPrompts, truth: Truth, assignment: Assignment, scores: Array) -> float:
    return float((greedy_policy(_population(scored_prompts, truth), assignment) * scores).sum(axis=1).mean())


def _gains(
    scored_prompts: ScoredPrompts, truth: Truth, first: Assignment, final: Assignment, log: Experience
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Counts gains above each of WORTHWHILE: those found, and those that the log could show but were missed."""
    seen = _population(scored_prompts, truth)
    likeliest = seen.posterior.argmax(axis=1)
    old, new = ((greedy_policy(seen, one) * truth.after).sum(axis=1) for one in (first, final))
    found, missed = [], []
    for category in range(len(scored_prompts.categories)):
        own = likeliest == category
        best = float(truth.after[own].mean(axis=0).max() * own.mean() - (old * own).mean()) if own.any() else 0.0
        if ((new - old) * own).mean() >= best / 2 > 0:
            found.append(best)
        elif best > 0:
            missed.append(_shown_gain(truth.after[own].mean(axis=0), log, first, category) * float(own.mean()))
    return tuple(tuple(sum(gain > limit for gain in gains) for limit in WORTHWHILE) for gains in (found, missed))


def _shown_gain(mean: Array, log: Experience, first: Assignment, category: int) -> float:
    """The gain in the category by the best move that a test of two shares, at one look, shows with a power of POWER in
    this log; 0 for none. The tests of all categories share the level."""
    rated = log.part((log.posterior.argmax(axis=1) == category) & log.rated)
    counts = np.bincount(rated.chosen, minlength=len(mean)).astype(float)
    target = int(np.where(counts >= MIN_RATED, mean, -1.0).argmax())
    chosen = int(shares(first)[category].argmax())
    gain, pair = float(mean[target] - mean[chosen]), [target, chosen]
    if gain <= 0 or counts[pair].min() < MIN_RATED:
        return 0.0
    level = float(counts[pair] @ mean[pair] / counts[pair].sum())
    error = (level * (1 - level) * (1 / counts[pair]).sum()) ** 0.5
    return gain if gain / error >= norm.isf(SIGNIFICANCE / len(log.categories)) + norm.ppf(POWER) else 0.0


def summary(scenario: Scenario, series: list[Series]) -> dict[str, Any]:
    losses = [loss for one in series for loss in one.losses]
    found, missed = (
        [sum(column) for column in zip(*(getattr(one, name) for one in series), strict=True)]
        for name in ("found", "missed")
    )
    return {
        "scenario": scenario.name,
        "series": len(series),
        "promotions": len(losses),
        "largest_loss": max(losses, default=0.0),
        "series_with_a_loss": sum(any(loss > 0 for loss in one.losses) for one in series) / len(series),
        "gains": {
            f"above {limit}": {"found": hit, "missed": miss}
            for limit, hit, miss in zip(WORTHWHILE, found, missed, strict=True)
        },
        "quality_at_start": float(np.mean([one.start for one in series])),
        "quality_at_end": float(np.mean([one.end for one in series])),
    }


def report(scored_prompts: ScoredPrompts, seeds: int, only: str | None) -> Iterator[dict[str, Any]]:
    for scenario in SCENARIOS:
        if only is None or only in scenario.name:
            yield summary(scenario, [run(scored_prompts, scenario, seed) for seed in range(seeds)])


def main() -> None:
    scored_prompts, given = replayed(__doc__, seeds=200)
    found = []
    for one in report(scored_prompts, given.seeds, given.only):
        print(orjson.dumps(one).decode(), flush=True)
        found.append(one)
    if given.json:
        given.json.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
