"""Measures experts until more scores would not change the plan, within a budget of dollars and time (`coe tune`).

The scheduler (`coe.measuring.tuning`) selects probes in rounds. Every score goes to the journal of `coe score`, so a
stopped run continues. An expert that answers no probe of a round gets no more in this run.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from coe.artifacts.kinds import ROUTER
from coe.artifacts.store import ArtifactStore
from coe.errors import DataError
from coe.measuring.answers import RetryLimits
from coe.measuring.probes.probes import Probe
from coe.measuring.scoring import Scoring, called_experts, checked_sandbox
from coe.measuring.scoring_run import Cell, ExpertColumn, Journal, ScoringRun, judge_messages, score_columns
from coe.measuring.tuning.measurements import Estimate, Grid, Measurements
from coe.measuring.tuning.schedule import Assessment, Cells, Goal, cells_of, first_cells, next_blocks
from coe.measuring.tuning.spending import MeteredExpert, Spending, check_price, worst_price
from coe.planning.job.plan import logged_uses
from coe.recipes.judge import MAX_GRADED_CHARACTERS
from coe.registry import Registry
from coe.settings import Settings
from coe.terminal import dollars

GRACE_SECONDS = 30.0
"""Time after the deadline after which missing answers are cancelled."""
PLAN_DEVIATIONS = 1.0
"""Standard errors below the mean of the quality that plans trust, as by default in `coe plan`."""
LOG_SECONDS = 30 * 86_400
"""Length of the routing log from which the mix of categories is estimated, as by default in `coe plan`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a run in US dollars and seconds; None for none."""

    dollars: float | None = None
    seconds: float | None = None

    def cost(self, dollars: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the cost of calls as shares of the limits; without limits in dollars, or in seconds if all is free."""
        if self.dollars is None and self.seconds is None:
            return dollars if dollars.any() else seconds
        parts = ((dollars, self.dollars), (seconds, self.seconds))
        return np.asarray(np.sum([use / max(limit, 1e-9) for use, limit in parts if limit is not None], axis=0))


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a run: all scores, those of this run, the US dollars and seconds of this run, and the probability
    that the plan is good enough (None before the first plan)."""

    known: int
    cells: int
    scored: int
    spent: float
    seconds: float
    certainty: float | None


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
    certainty: float | None = None
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
        return Status(known, cells, known - self._known_before, self.spending.spent, seconds, self.certainty)

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
                if assessment.certainty >= self.goal.confidence:
                    return "settled"
                if assessment.reaches(self.goal):
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
            assessment = found.assess(open_cells, self.goal, deviations=PLAN_DEVIATIONS)
        except DataError:  # the budget limits a use that is unknown of an expert that does not answer
            return None
        self.certainty = assessment.certainty
        return assessment

    def _next(self, assessment: Assessment) -> Cells:
        found, open_cells = self._measurements(), self._open()
        uses = [found.call_use(column) for column in range(len(self.grid.experts))]
        cost = self.limits.cost(np.array([use.dollars for use in uses]), np.array([use.seconds for use in uses]))
        left = found.left(open_cells)
        blocks = next_blocks(assessment, np.broadcast_to(cost, left.shape), left)
        return [cell for block in blocks for cell in cells_of(block, self.grid.member, open_cells)]

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
