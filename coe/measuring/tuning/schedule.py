"""Schedules probes: first those whose scores could change the plan, and none once the plan is settled.

Every expert first answers a few probes of each category. Then `assess` draws quality tables from the posterior of the
scores and solves the plan of each. The loss of the current plan in a draw is what the draw's own plan gains over it.
The plan is settled when the loss is within a tolerance in most draws. Until then, `next_blocks` selects the categories
with the largest expected loss per unit of cost, and there the experts that enough draws choose. These are the expected
opportunity cost of Chick and Inoue (2001, doi:10.1287/opre.49.5.732.10615) and successive elimination.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coe.planning.problem import Problem
from coe.planning.score_table import ScoreTable
from coe.planning.solver import best_choice

Array = NDArray[np.float64]
BLOCK_PROBES = 3
"""Probes of a category at a time: one of each difficulty, where they are marked."""
MAX_BLOCKS = 4
"""Categories that get probes in one round."""
MIN_CHOSEN = (0.05, 0.01)
"""Share of the draws that must choose an expert in a category, for it to get more probes there. The second share
applies once all experts above the first have answered all probes."""
DRAWS, MAX_SOLVED_DRAWS, MIN_SOLVED_DRAWS, SOLVED_CELLS = 1000, 60, 20, 30_000
"""Draws from the posterior. If a budget is declared, a program is solved for each draw. The number of draws is then
SOLVED_CELLS by the number of cells (category x expert), within the two limits."""
PSEUDO_COUNTS = (4.0, 10.0)
"""Least and most pseudo-scores of the posterior. The strength that is fitted to few scores may be extreme; the
posterior would then be too narrow, and the plan settled too early."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A plan is settled when its loss is at most `tolerance` (quality, 0 to 1) with the probability `confidence`.

    Scoring also stops when all remaining probes together are expected to gain at most `min_gain`.
    """

    tolerance: float = 0.015
    confidence: float = 0.9
    min_gain: float = 0.001


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """The plan of the current scores, its possible loss, and the possible gain of the remaining probes.

    `choice`, shape (n_categories,), is the index of the expert. `certainty` is the probability that the loss is within
    the tolerance. `gain`, shape (n_categories,), is the quality that the remaining probes are expected to gain in each
    category, and `chosen`, shape (n_categories, n_experts), the probability that they choose the expert.
    """

    choice: NDArray[np.int64]
    certainty: float
    gain: Array
    chosen: Array

    def reaches(self, goal: Goal) -> bool:
        """Return True if more probes would not change the plan enough."""
        return self.certainty >= goal.confidence or float(self.gain.sum()) <= goal.min_gain

    def contenders(self, category: int, least: float) -> list[int]:
        """Return the experts that may be chosen for a category with a probability of `least`, and the chosen one."""
        found = self.chosen[category] >= least
        found[self.choice[category]] = True
        return np.flatnonzero(found).tolist()


def assess(
    problem: Problem, table: ScoreTable, left: NDArray[np.int64], goal: Goal, *, pseudo_count: float
) -> Assessment:
    """Return the plan of `problem`, whose quality is the one that plans trust, and its loss under the posterior.

    The posterior of each cell is normal around the shrunk mean of `table`, whose variances are those of comparisons
    (`without_prompts`). `left`, shape (n_categories, n_experts), counts the remaining probes. Equal inputs give equal
    results. Raises ConfigError for an impossible budget.
    """
    strength = float(np.clip(pseudo_count, *PSEUDO_COUNTS))
    mean = np.where(np.isfinite(problem.quality), table.shrunk(pseudo_count=strength), -np.inf)
    error = table.error(pseudo_count=strength)
    choice = best_choice(problem, problem.quality)
    lost, _ = _losses(problem, choice, mean, error)
    known_then = error * np.sqrt(left / (table.count + left + strength))  # of the mean after the remaining probes
    gained, best = _losses(problem, choice, mean, known_then)
    chosen = (best[:, :, None] == np.arange(mean.shape[1])).mean(axis=0)
    certainty = float((lost.sum(axis=1) <= goal.tolerance).mean())
    return Assessment(choice, certainty, gained.mean(axis=0), chosen)


def _losses(problem: Problem, choice: NDArray[np.int64], mean: Array, error: Array) -> tuple[Array, NDArray[np.int64]]:
    """Return the quality that `choice` loses to the best plan of each draw around `mean`, and the choices of that plan.

    Shapes (n_draws, n_categories); the losses of a draw sum to that of the plan, which is not negative.
    """
    draws = DRAWS
    if problem.budget:
        draws = int(np.clip(SOLVED_CELLS // mean.size, MIN_SOLVED_DRAWS, MAX_SOLVED_DRAWS))
    drawn = mean + error * np.random.default_rng(0).standard_normal((draws, *mean.shape))
    best = best_choice(problem, drawn)
    rows = np.arange(len(choice))
    return problem.weights * (np.take_along_axis(drawn, best[:, :, None], 2)[:, :, 0] - drawn[:, rows, choice]), best


def without_prompts(table: ScoreTable, member: Array, scores: Array) -> ScoreTable:
    """Return the table with the variances that remain when each prompt's mean over the experts is removed.

    `member` and `scores` are those of the table, NaN where a score is missing. A hard prompt lowers the scores of all
    experts, which changes no choice between them. Prompts with one score do not count.
    """
    known = np.isfinite(scores)
    count = known.sum(axis=1, keepdims=True)
    used = known & (count > 1)
    level = np.where(known, scores, 0.0).sum(axis=1, keepdims=True) / np.maximum(count, 1)
    rest = np.where(used, (scores - level) ** 2 * count / np.maximum(count - 1, 1), 0.0)
    offset = np.where(used, scores - level, 0.0)
    size = np.maximum(member.T @ used, 1.0)
    variance = (member.T @ rest) / size - ((member.T @ offset) / size) ** 2
    return replace(table, variance=np.maximum(variance, 0.0))


@dataclass(frozen=True, slots=True)
class Block:
    """The next probes of one category, for some experts, by index."""

    category: int
    experts: tuple[int, ...]


Cells = list[tuple[int, int]]
"""Indices of probe and expert."""


def first_cells(member: Array, open_cells: NDArray[np.bool_]) -> Cells:
    """Return the open cells of the first BLOCK_PROBES probes of each category, one probe of every category first.

    `member`, shape (n_probes, n_categories), has a 1 for the category of each probe; the probes are in the order in
    which they are scored. `open_cells`, shape (n_probes, n_experts), are those that can still be scored.
    """
    place = np.where(member > 0, (member > 0).cumsum(axis=0), 0).max(axis=1)  # in the category, from 1
    rows = [row for number in range(1, BLOCK_PROBES + 1) for row in np.flatnonzero(place == number).tolist()]
    return [(row, column) for row in rows for column in np.flatnonzero(open_cells[row]).tolist()]


def cells_of(block: Block, member: Array, open_cells: NDArray[np.bool_]) -> Cells:
    """Return the open cells of the next BLOCK_PROBES probes of a block that have any. So experts answer the same."""
    columns, rows = np.array(block.experts), np.flatnonzero(member[:, block.category])
    rows = rows[open_cells[np.ix_(rows, columns)].any(axis=1)][:BLOCK_PROBES]
    return [(row, column) for row in rows.tolist() for column in block.experts if open_cells[row, column]]


def next_blocks(found: Assessment, cost: Array, left: NDArray[np.int64]) -> list[Block]:
    """Return the blocks of the next round, those of the largest expected gain per cost first; none if there is none.

    `cost` and `left`, shape (n_categories, n_experts), are the cost of a probe in any unit and the remaining probes.
    """
    for least in MIN_CHOSEN:
        ranked = []
        for row, gain in enumerate(found.gain.tolist()):
            contenders = found.contenders(row, least)
            experts = [one for one in contenders if left[row, one] > 0]
            if len(contenders) > 1 and experts:
                ranked.append((-gain / max(float(cost[row, experts].sum()), 1e-12), row, tuple(experts)))
        if ranked:
            return [Block(row, experts) for _, row, experts in sorted(ranked)[:MAX_BLOCKS]]
    return []


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
