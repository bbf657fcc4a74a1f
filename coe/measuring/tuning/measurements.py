"""The scores and uses of experts on probes so far, in the form that the scheduler and the estimate of a run need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coe.measuring.probes.probes import Probe
from coe.measuring.quality import column_means
from coe.measuring.scoring_run import Cell
from coe.measuring.tuning.schedule import Assessment, Goal, assess, stratified, without_prompts
from coe.measuring.tuning.spending import max_output_tokens
from coe.planning.job.budget_solver import declared_problem
from coe.planning.problem import Problem
from coe.planning.score_table import ScoreTable, fit_pseudo_count, tabulate_partly
from coe.planning.uses import ASSUMED_OUTPUT_TOKENS, MEASURES, MeasuredUses
from coe.registry import Registry

Array = NDArray[np.float64]
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

    def assess(self, open_cells: NDArray[np.bool_], goal: Goal, *, deviations: float) -> Assessment:
        """Return the plan of these scores, as `coe plan` makes it, and what it may lose. Raises ConfigError."""
        labels = [probe.category for probe in self.grid.probes]
        strength = fit_pseudo_count(labels, self.scores)
        paired = without_prompts(self.table, self.grid.member, self.scores)
        problem = self._problem(self.table.lower(deviations=deviations, pseudo_count=strength))
        return assess(problem, paired, self.left(open_cells), goal, pseudo_count=strength)

    def left(self, open_cells: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the number of probes that can still be scored, shape (n_categories, n_experts)."""
        return (self.grid.member.T @ open_cells).astype(np.int64)

    def _problem(self, quality: Array) -> Problem:
        grid = self.grid
        weights = np.maximum(grid.member.sum(axis=0), 1.0) if self.weights is None else self.weights
        measured = MeasuredUses.of(grid.categories, grid.experts, grid.member, self.uses)
        return declared_problem(grid.registry, self.table, quality=quality, weights=weights, measured_uses=measured)

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
