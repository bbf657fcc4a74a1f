"""Measures experts until more scores would not change the plan, within a budget of dollars and time (`coe tune`).

Probes are selected in rounds. Every score goes to the journal of `coe score`, so a stopped run continues. An expert
that answers no probe of a round gets no more in this run.

Every expert first answers a few probes of each category. Then `assess` states what the plan of the scores so far is
expected to lose to the best one, under the posterior of the qualities. The plan is settled when that is within a
tolerance. Until then, `next_cells` selects the cells (category x expert) whose next probes are expected to improve the
plan most per unit of cost. Scores of earlier runs count, so a new expert is measured beside the others by the same
rule.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from coe.artifacts.manifest import ROUTER
from coe.artifacts.store import ArtifactStore
from coe.errors import DataError
from coe.measuring.probes import Probe
from coe.measuring.quality import column_means
from coe.measuring.recorded_answers import RetryLimits
from coe.measuring.scoring import Scoring, called_experts, checked_sandbox
from coe.measuring.scoring_run import Cell, ExpertColumn, Journal, ScoringRun, judge_messages, score_columns
from coe.measuring.spending import MeteredExpert, Spending, check_price, max_output_tokens, worst_price
from coe.planning.job.basis import declared_problem
from coe.planning.job.plan import logged_uses
from coe.planning.problem import Problem
from coe.planning.score_table import ScoreTable, tabulate_partly
from coe.planning.solver import require_solution, solve
from coe.planning.uses import ASSUMED_OUTPUT_TOKENS, MEASURES, MeasuredUses
from coe.recipes.agreement import MAX_GRADED_CHARACTERS
from coe.registry import Registry
from coe.settings import Settings
from coe.terminal import dollars
from coe.trials.posterior import Posterior

Array = NDArray[np.float64]
FIRST_PROBES = 2
"""Probes of each category that every expert answers first."""
BLOCKS = (1, 2, 4, 8, 16)
"""Numbers of probes of a cell (category x expert) whose gain is compared: one alone may change no choice."""
ROUND_CELLS, ROUND_PROBES = 8, 4
"""Cells that get probes in one round, and the most probes of each."""
DRAWS, SOLVED_DRAWS = 1000, 40
"""Draws from the posterior; fewer if a budget is declared, since a program is solved for each."""
EXCLUDED = -1e9
"""Quality of an expert that may not serve a category."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A plan is settled when its expected loss is at most `tolerance` (quality, 0 to 1).

    Scoring also stops when all remaining probes together are expected to gain at most `min_gain`.
    """

    tolerance: float = 0.008
    min_gain: float = 0.001


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """The plan of the current scores, and what it may lose.

    `choice`, shape (n_categories,), is the index of the expert. `loss` is the quality that the plan is expected to lose
    to the best one, and `gain` the part of it that the remaining probes are expected to gain. `value`, shape
    (n_categories, n_experts), is the quality that each of the next `probes` of a cell is expected to gain.
    """

    choice: NDArray[np.int64]
    loss: float
    gain: float
    value: Array
    probes: NDArray[np.int64]


def assess(problem: Problem, posterior: Posterior, left: NDArray[np.int64]) -> Assessment:
    """Return the plan of `problem` and its expected loss under the posterior; `left` counts the remaining probes.

    The loss in a draw is what the draw's own plan gains over this one. Equal inputs give equal results. Raises
    ConfigError for an impossible budget.
    """
    plan = solve(problem)
    choice, is_allowed = np.array([problem.experts.index(name) for name in plan.choice]), np.isfinite(problem.quality)
    mean = np.where(is_allowed, posterior.mean, EXCLUDED)
    drawn = np.where(is_allowed, posterior.draw(SOLVED_DRAWS if problem.budget else DRAWS), EXCLUDED)
    rows = np.arange(len(choice))

    def loss(values: Array) -> float:
        best = values.argmax(axis=2)
        if problem.budget:
            tables = np.where(is_allowed, values, -np.inf)
            best = np.array([require_solution(replace(problem, quality=quality)).choice for quality in tables])
        gain = np.take_along_axis(values, best[:, :, None], 2)[:, :, 0] - values[:, rows, choice]
        return float(gain.mean(axis=0) @ problem.weights)

    variance, spread = posterior.variance, posterior.mean * (1 - posterior.mean)
    known_then = variance * left / np.maximum(variance * left + spread, 1e-12)  # share that the remaining probes remove
    value, probes = _value(mean - plan.price, posterior.covariance, problem.weights, spread, left)
    return Assessment(choice, loss(drawn), loss(mean + np.sqrt(known_then) * (drawn - mean)), value, probes)


def _value(
    worth: Array, covariance: Array, weights: Array, spread: Array, left: NDArray[np.int64]
) -> tuple[Array, NDArray[np.int64]]:
    """Return what each further probe of a cell is expected to gain, for the number of probes that makes it largest.

    Scores of a cell move the estimates of all categories of its expert (`covariance`), and gain where this changes the
    best expert: knowledge gradient for correlated beliefs, Frazier and others 2009, doi:10.1287/ijoc.1080.0314.
    `worth` is the quality less the price in the plan, `spread` the variance of one score.
    """
    from scipy.stats import norm

    ranked = np.sort(np.column_stack([np.full(len(worth), EXCLUDED), worth]), axis=1)
    best, second = ranked[:, -1:], ranked[:, -2:-1]
    gap = np.minimum(np.where(worth >= best, worth - second, best - worth), 10.0)
    value, probes = np.zeros(worth.shape), np.ones(worth.shape, dtype=np.int64)
    for count in BLOCKS:
        deviation = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2) + spread.T / count)
        change = np.abs(covariance) / deviation[:, None, :] + 1e-12
        distance = gap.T[:, :, None] / change
        gain = change * (norm.pdf(distance) - distance * norm.sf(distance))
        each = np.where(left >= count, np.einsum("i,kij->jk", weights, gain) / count, 0.0)
        probes = np.where(each > value, count, probes)
        value = np.maximum(each, value)
    return value, probes


Cells = list[tuple[int, int]]
"""Indices of probe and expert."""


def first_cells(member: Array, open_cells: NDArray[np.bool_]) -> Cells:
    """Return the open cells of the first FIRST_PROBES probes of each category, one probe of every category first.

    `member`, shape (n_probes, n_categories), has a 1 for the category of each probe; the probes are in the order in
    which they are scored. `open_cells`, shape (n_probes, n_experts), are those that can still be scored.
    """
    place = np.where(member > 0, (member > 0).cumsum(axis=0), 0).max(axis=1)  # in the category, from 1
    rows = [row for number in range(1, FIRST_PROBES + 1) for row in np.flatnonzero(place == number).tolist()]
    return [(row, column) for row in rows for column in np.flatnonzero(open_cells[row]).tolist()]


def next_cells(assessment: Assessment, cost: Array, member: Array, open_cells: NDArray[np.bool_]) -> Cells:
    """Return the open probes of the next round: some of each of the cells of the largest value per cost.

    `cost`, shape (n_experts,), is that of a probe in any unit. Experts get the probes of a category in one order, so
    that they mostly answer the same ones.
    """
    worth = assessment.value / np.maximum(cost, 1e-12)
    cells: Cells = []
    for place in np.argsort(-worth, axis=None, kind="stable")[:ROUND_CELLS].tolist():
        row, column = divmod(place, worth.shape[1])
        if worth[row, column] > 0:
            rows = np.flatnonzero((member[:, row] > 0) & open_cells[:, column])
            cells += [(probe, column) for probe in rows[: min(assessment.probes[row, column], ROUND_PROBES)].tolist()]
    return sorted(cells)


def stratified(difficulties: Sequence[str]) -> list[int]:
    """Return an order of a category's probes: shuffled within each difficulty, and each difficulty evenly spread.

    Any first part of it is thus a random sample with the difficulties in their proportions.
    """
    names = np.array(difficulties, dtype=object)
    place = np.empty(len(names))
    for name in sorted(set(difficulties)):
        rows = np.flatnonzero(names == name)
        place[np.random.default_rng([0, len(rows)]).permutation(rows)] = (np.arange(len(rows)) + 0.5) / len(rows)
    order: list[int] = np.lexsort((names.astype(str), place)).tolist()
    return order


ASSUMED_SECONDS = 5.0
"""Time of an answer of an expert that was not measured and declares no latency."""
CHARACTERS_PER_TOKEN = 4.0
"""Estimates the input tokens of probes that were not answered yet."""


@dataclass(frozen=True, slots=True)
class CallUse:
    """The expected price in US dollars and the expected seconds of one answer."""

    dollars: float
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Probes in the order in which each category scores them, and the experts and categories of a plan.

    `member`, shape (n_probes, n_categories), has a 1 for the category of each probe.
    """

    registry: Registry
    probes: tuple[Probe, ...]
    experts: tuple[str, ...]
    categories: tuple[str, ...]
    member: Array

    @classmethod
    def of(cls, registry: Registry, probes: Sequence[Probe], experts: Sequence[str]) -> Grid:
        """Order the probes of the categories that `experts` may serve. A pin on another expert excludes a category."""
        names = [one for one in registry.category_names if registry.assignment.get(one, experts[0]) in experts]
        ordered: list[Probe] = []
        for name in names:
            found = sorted((one for one in probes if one.category == name), key=lambda one: one.prompt_id)
            ordered += [found[place] for place in stratified([one.difficulty for one in found])]
        member = np.array([[one.category == name for name in names] for one in ordered], dtype=np.float64)
        return cls(registry, tuple(ordered), tuple(experts), tuple(names), member.reshape(len(ordered), len(names)))


@dataclass(frozen=True)
class Measurements:
    """Measurements of a grid: `scores`, shape (n_probes, n_experts), NaN where missing, and `uses` of that shape by
    measure. `weights`, shape (n_categories,), is the mix of traffic; None for that of the probes."""

    grid: Grid
    scores: Array
    uses: Mapping[str, Array]
    weights: Array | None = None

    @classmethod
    def of(cls, grid: Grid, cells: Mapping[tuple[int, int], Cell], *, weights: Array | None = None) -> Measurements:
        """Collect the scored cells, by the indices of probe and expert."""
        shape = len(grid.probes), len(grid.experts)
        scores, uses = np.full(shape, np.nan), {name: np.full(shape, np.nan) for name in MEASURES}
        for place, cell in cells.items():
            scores[place] = np.nan if cell.score is None else cell.score
            for name, values in uses.items():
                found = getattr(cell, name)
                values[place] = np.nan if found is None else found
        return cls(grid, scores, uses, weights)

    @cached_property
    def table(self) -> ScoreTable:
        return tabulate_partly(self.grid.categories, self.grid.experts, self.grid.member, self.scores)

    def assess(self, open_cells: NDArray[np.bool_]) -> Assessment:
        """Return the plan of these scores, as `coe plan` makes it, and what it may lose. Raises ConfigError."""
        posterior = self.table.posterior()
        left = (self.grid.member.T @ open_cells).astype(np.int64)
        return assess(self._problem(posterior), posterior, left)

    def _problem(self, posterior: Posterior) -> Problem:
        grid = self.grid
        weights = np.maximum(grid.member.sum(axis=0), 1.0) if self.weights is None else self.weights
        measured = MeasuredUses.of(grid.categories, grid.experts, grid.member, self.uses)
        return declared_problem(
            grid.registry,
            self.table,
            quality=posterior.mean,
            variance=posterior.variance,
            weights=weights,
            measured_uses=measured,
        )

    def call_use(self, expert: int) -> CallUse:
        """Return the expected use of one more answer of an expert, by index: its mean so far, or the declared one."""
        spec = self.grid.registry.expert(self.grid.experts[expert])
        given, written, latency = (float(column_means(self.uses[name][:, expert], np.nan)) for name in MEASURES)
        if np.isnan(given):
            given = sum(len(one.prompt) for one in self.grid.probes) / len(self.grid.probes) / CHARACTERS_PER_TOKEN
        if np.isnan(written):
            written = min(ASSUMED_OUTPUT_TOKENS, max_output_tokens(spec))
        dollars = spec.prices.cost(given, written)
        declared = ASSUMED_SECONDS if spec.latency_ms is None else spec.latency_ms / 1000
        return CallUse(dollars, declared if np.isnan(latency) else latency / 1000)


@dataclass(frozen=True, slots=True)
class Estimate:
    """The expected calls, US dollars and seconds of a part of a run."""

    calls: int
    dollars: float
    seconds: float

    @classmethod
    def of(cls, counts: Sequence[int], uses: Sequence[CallUse], *, concurrency: int) -> Estimate:
        """Estimate calls by expert; all experts run at once, with `concurrency` calls each."""
        pairs = list(zip(counts, uses, strict=True))
        seconds = max((count * use.seconds / concurrency for count, use in pairs), default=0.0)
        return cls(sum(counts), sum(count * use.dollars for count, use in pairs), seconds)


GRACE_SECONDS = 30.0
"""Time after the deadline after which missing answers are cancelled."""
LOG_SECONDS = 30 * 86_400
"""Length of the routing log from which the mix of categories is estimated, as by default in `coe plan`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a run in US dollars and seconds; None for none."""

    dollars: float | None = None
    seconds: float | None = None

    def cost(self, dollars: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the cost of calls: 1, which is that of any call, plus its uses, each as a share of the mean expert's.

        Of the uses, the limited ones count; without limits, the dollars.
        """
        uses = [use for use, limit in ((dollars, self.dollars), (seconds, self.seconds)) if limit is not None]
        return np.asarray(1.0 + sum(use / max(float(use.mean()), 1e-12) for use in uses or [dollars]))


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a run: all scores, those of this run, the US dollars and seconds of this run, and the quality
    that the plan is expected to lose to the best one (None before the first plan)."""

    known: int
    cells: int
    scored: int
    spent: float
    seconds: float
    loss: float | None


@dataclass(slots=True)
class Tuning:
    """One run over the probes and experts of `scoring`. `weights` is the mix of categories in the routing log."""

    scoring: Scoring
    journal: Journal
    grid: Grid
    goal: Goal
    limits: Limits
    weights: NDArray[np.float64] | None = None
    spending: Spending = field(default_factory=Spending)
    loss: float | None = None
    _keys: list[list[str]] = field(init=False)
    _began: float = field(init=False)
    _known_before: int = field(init=False)
    _failed: set[tuple[int, int]] = field(init=False, default_factory=set)
    _dropped: set[int] = field(init=False, default_factory=set)
    _judge: MeteredExpert | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        place = {probe.prompt_id: number for number, probe in enumerate(self.scoring.probes)}
        rows = [place[probe.prompt_id] for probe in self.grid.probes]
        self._keys = [[self.scoring.keys[name][row] for name in self.grid.experts] for row in rows]
        self._began, self._known_before = time.monotonic(), len(self._scored())

    @classmethod
    def of(
        cls,
        scoring: Scoring,
        journal: Journal,
        settings: Settings,
        *,
        limits: Limits,
        goal: Goal,
        spent: float = 0.0,
    ) -> Tuning:
        """Prepare a run that has already `spent` some US dollars.

        Raises DataError where no category can be planned.
        """
        grid = Grid.of(scoring.registry, scoring.probes, [spec.name for spec in scoring.experts])
        if not grid.probes:
            raise DataError("tune: no probe is of a category that these experts may serve; add some to probes.jsonl")
        tuning = cls(scoring, journal, grid, goal, limits, _mix(settings, scoring.registry, grid.categories))
        tuning.spending.spent = spent
        return tuning

    @property
    def unpriced(self) -> list[str]:
        """The experts that the run may call and whose price is unknown."""
        called = {spec.name: spec for spec in self.scoring.experts}
        if self.scoring.judge is not None and any(probe.checker == "judge" for probe in self.grid.probes):
            called[self.scoring.judge.name] = self.scoring.judge
        return [name for name, one in called.items() if not one.has_known_price]

    def estimates(self) -> tuple[Estimate, Estimate]:
        """The expected use of the first probes of every category, and of all that are missing."""
        found, open_cells = self._measurements(), self._open()
        uses = [found.call_use(column) for column in range(len(self.grid.experts))]
        everything: Cells = [(int(row), int(column)) for row, column in np.argwhere(open_cells)]

        def estimate(cells: Cells) -> Estimate:
            calls = Counter(column for _, column in cells)
            if self.scoring.judge is not None:
                judged = sum(self.grid.probes[row].checker == "judge" for row, _ in cells)
                calls[self.grid.experts.index(self.scoring.judge.name)] += judged
            return Estimate.of([calls[at] for at in range(len(uses))], uses, concurrency=self.scoring.concurrency)

        return estimate(first_cells(self.grid.member, open_cells)), estimate(everything)

    def status(self) -> Status:
        known, cells = len(self._scored()), len(self.grid.probes) * len(self.grid.experts)
        seconds = time.monotonic() - self._began
        return Status(known, cells, known - self._known_before, self.spending.spent, seconds, self.loss)

    async def run(self, settings: Settings, report: Callable[[str], None]) -> str:
        """Score until the plan is settled or a limit is reached; returns the reason for the end."""
        sandbox = await checked_sandbox(self.grid.probes)
        self._began, concurrency, limits = time.monotonic(), self.scoring.concurrency, RetryLimits()
        self.spending.dollars = self.limits.dollars
        self.spending.deadline = None if self.limits.seconds is None else self._began + self.limits.seconds
        self.journal.failed.clear()  # what failed in an earlier run is requested again
        metered = self.limits.dollars is not None
        async with called_experts(self.scoring, settings, sends_once=metered) as called:
            experts = {
                name: MeteredExpert(one, self.scoring.registry.expert(name), self.spending, report=report)
                for name, one in called.items()
            }
            judge = None
            if (asked := self.scoring.judge) is not None:
                self._judge = judge = MeteredExpert(called[asked.name], asked, self.spending, report=report)
            run = ScoringRun(self.journal, sandbox, judge, limits, concurrency, report, lambda _: None)
            return await self._rounds(experts, run)

    async def _rounds(self, experts: Mapping[str, MeteredExpert], run: ScoringRun) -> str:
        while True:
            cells = first_cells(self.grid.member, self._open())
            assessment = await asyncio.to_thread(self._assess)
            if len(self._dropped) == len(self.grid.experts):
                return "no expert answers"
            if assessment is not None and not cells:
                if assessment.loss <= self.goal.tolerance:
                    return "settled"
                if assessment.gain <= self.goal.min_gain:
                    return "little to gain"
                cells = self._next(assessment)
            if not cells:
                return "all scored"
            progressed = await self._score(cells, experts, run)
            if self.spending.is_over:
                await asyncio.to_thread(self._assess)
                return "time"
            if not progressed and (self.spending.is_short or (self._judge and self._judge.is_stopped)):
                return "budget"

    def _grade_price(self, probe: Probe) -> float:
        """Return the highest price of the judge's grade of an answer; 0 where it gives none."""
        judge = self.scoring.judge
        if judge is None or probe.checker != "judge":
            return 0.0
        return worst_price(judge, judge_messages(probe, "\U0010ffff" * MAX_GRADED_CHARACTERS))

    async def _score(self, cells: Cells, experts: Mapping[str, MeteredExpert], run: ScoringRun) -> bool:
        """Score some cells; returns False if none got a score. Notes the failed cells and the experts to drop."""
        names, self.spending.is_short = self.grid.experts, False
        with suppress(TimeoutError):
            async with asyncio.timeout(self._seconds_left()):
                for batch in self._batches(cells, experts):
                    columns = [ExpertColumn(experts[names[one]], found) for one, found in self._by_column(batch)]
                    await score_columns(columns, run)
        for column, found in self._by_column(cells):
            failed = {(row, one) for row, one in cells if one == column and self._keys[row][one] in self.journal.failed}
            self._failed |= failed
            if experts[names[column]].is_stopped:
                self._dropped.add(column)
            elif failed and not any(key in self.journal.scored for key in found):
                self._dropped.add(column)
                run.report(f"{names[column]}: answered no probe of a round; the rest are left for the next run")
        return any(self._keys[row][column] in self.journal.scored for row, column in cells)

    def _by_column(self, cells: Cells) -> list[tuple[int, dict[str, Probe]]]:
        """Return the probes of some cells by column, and by the key of their cell."""
        found: dict[int, dict[str, Probe]] = {}
        for row, column in cells:
            found.setdefault(column, {})[self._keys[row][column]] = self.grid.probes[row]
        return list(found.items())

    def _batches(self, cells: Cells, experts: Mapping[str, MeteredExpert]) -> Iterator[Cells]:
        """Split cells into parts that run at once: as many probes as the budget allows for all of their experts.

        So a small budget is spent on all experts alike. What remains in the end goes to those with the fewest scores.
        """

        def price(row: int, column: int) -> float:
            probe = self.grid.probes[row]
            return experts[self.grid.experts[column]].worst_price(probe.messages) + self._grade_price(probe)

        groups = [[cell for cell in cells if cell[0] == row] for row in dict.fromkeys(row for row, _ in cells)]
        while groups:
            batch, rest, available = list[tuple[int, int]](), list[Cells](), self.spending.available
            for group in groups:
                if (needed := sum(price(*cell) for cell in group)) <= available:
                    batch += group
                    available -= needed
                else:
                    rest.append(group)
            if batch:
                yield batch
            elif all(len(group) == 1 for group in rest):
                self.spending.is_short = True
                return
            else:
                scores = Counter(column for _, column in self._scored())
                rest = [[cell] for cell in sorted(chain.from_iterable(rest), key=lambda cell: scores[cell[1]])]
            groups = rest

    def _seconds_left(self) -> float | None:
        """Seconds until answers are given up; None without a limit."""
        deadline = self.spending.deadline
        return None if deadline is None else max(deadline - time.monotonic(), 0.0) + GRACE_SECONDS

    def _assess(self) -> Assessment | None:
        """Assess the scores so far; None as long as an expert has none."""
        found, open_cells = self._measurements(), self._open()
        measured = np.asarray(np.isfinite(found.scores).any(axis=0))
        measured[sorted(self._dropped)] = True
        if not measured.all():
            return None
        try:
            assessment = found.assess(open_cells)
        except DataError:  # the budget limits a use that is unknown of an expert that does not answer
            return None
        self.loss = assessment.loss
        return assessment

    def _next(self, assessment: Assessment) -> Cells:
        found, open_cells = self._measurements(), self._open()
        uses = [found.call_use(column) for column in range(len(self.grid.experts))]
        cost = self.limits.cost(np.array([use.dollars for use in uses]), np.array([use.seconds for use in uses]))
        return next_cells(assessment, cost, self.grid.member, open_cells)

    def _scored(self) -> dict[tuple[int, int], Cell]:
        scored = self.journal.scored
        return {
            (row, column): scored[key]
            for row, keys in enumerate(self._keys)
            for column, key in enumerate(keys)
            if key in scored
        }

    def _open(self) -> NDArray[np.bool_]:
        """The cells that can still be scored in this run, shape (n_probes, n_experts)."""
        found = np.ones((len(self.grid.probes), len(self.grid.experts)), dtype=np.bool_)
        for cell in (*self._scored(), *self._failed):
            found[cell] = False
        found[:, sorted(self._dropped)] = False
        return found

    def _measurements(self) -> Measurements:
        return Measurements.of(self.grid, self._scored(), weights=self.weights)


def price_of_check(registry: Registry, limits: Limits) -> float:
    """Return the highest price of the live check of all experts. Raises DataError if it is above the limit."""
    price = sum(check_price(spec) for spec in registry.experts)
    if limits.dollars is not None and price > limits.dollars:
        raise DataError(
            f"tune: --budget {limits.dollars:g} is too small: checking the experts may cost {dollars(price)}; raise it"
        )
    return price


def _mix(settings: Settings, registry: Registry, categories: tuple[str, ...]) -> NDArray[np.float64] | None:
    """The mix of categories in the routing log, as `coe plan` uses it; None where the log has too few requests."""
    logged = logged_uses(settings, registry, LOG_SECONDS)
    router = ArtifactStore(settings.artifacts, ROUTER).in_use() or ""
    mix = None if logged is None else logged.mix(categories, router=router)
    return None if mix is None else mix[0]
