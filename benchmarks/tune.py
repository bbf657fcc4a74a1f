"""Compares the probes that `coe tune` scores with scoring everything, at the true quality of the plans.

    python -m benchmarks.tune DIR/quality --benchmark llmrouter9 [--models a,b,c] [--runs 20]
    python -m benchmarks.tune --mocks

Each run draws 40 probes of each category from the prompts of a benchmark, and lets the scheduler of `coe tune` read
their scores from it. The true quality of a plan is that on all other prompts of its categories. `uniform` is the plan
of as many calls, spread evenly. `--mocks` has three experts that differ by category in place of a benchmark.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.measuring.quality import read_quality
from coe.measuring.tuning.schedule import (
    Cells,
    Goal,
    assess,
    cells_of,
    first_cells,
    next_blocks,
    without_prompts,
)
from coe.planning import Problem, best_choice
from coe.planning.score_table import ScoreTable, fit_pseudo_count, tabulate_partly

Array = NDArray[np.float64]
PROBES = 40
MIN_PROMPTS = 60
"""Prompts of a category, so that some remain to measure the true quality."""


@dataclass(frozen=True)
class Pool:
    """Scores, shape (n_prompts, n_experts), with the category of each prompt by index."""

    scores: Array
    labels: NDArray[np.int64]
    experts: tuple[str, ...]

    @property
    def categories(self) -> int:
        return int(self.labels.max()) + 1


def pool_of(folder: Path, benchmark: str, models: Sequence[str]) -> Pool:
    data = read_quality(folder, benchmark=benchmark, only=models)
    names = [name for name in sorted(set(data.categories)) if data.categories.count(name) >= MIN_PROMPTS]
    rows = [row for row, name in enumerate(data.categories) if name in names]
    return Pool(data.scores[rows], np.array([names.index(data.categories[row]) for row in rows]), data.models)


def mock_pool(rng: np.random.Generator) -> Pool:
    """Three experts of 14 categories: one is good at each, by .1 to .4, on prompts of three difficulties."""
    skill = np.full((14, 3), 0.45) + 0.1 * rng.standard_normal((14, 1))
    skill[np.arange(14), rng.integers(3, size=14)] += rng.uniform(0.1, 0.4, size=14)
    labels = np.repeat(np.arange(14), 1000)
    chance = np.clip(skill[labels] + np.tile([0.2, 0.0, -0.2], 14_000)[:14_000, None], 0.02, 0.98)
    return Pool((rng.uniform(size=chance.shape) < chance).astype(float), labels, ("one", "two", "three"))


@dataclass
class Run:
    """Probes of one run in the order in which they are scored: `rows`, shape (n_categories, PROBES)."""

    pool: Pool
    rows: NDArray[np.int64]
    budget: Mapping[str, float]

    def __post_init__(self) -> None:
        self.known = np.full((self.rows.size, len(self.pool.experts)), np.nan)
        self.member = np.repeat(np.eye(len(self.rows)), self.rows.shape[1], axis=0)
        self.all = self.pool.scores[self.rows.ravel()]

    def score(self, cells: Cells) -> None:
        for cell in cells:
            self.known[cell] = self.all[cell]

    def problem(self) -> tuple[Problem, ScoreTable, float]:
        names = tuple(f"c{row}" for row in range(len(self.rows)))
        table = tabulate_partly(names, self.pool.experts, self.member, self.known)
        strength = fit_pseudo_count([names[row] for row in self.member.argmax(axis=1)], self.known)
        quality = table.lower(deviations=1.0, pseudo_count=strength)
        return Problem.of(table, quality=quality, weights=np.ones(len(names)), budget=self.budget), table, strength

    def tune(self, goal: Goal) -> tuple[NDArray[np.int64], int, float]:
        """The plan, the calls, and the certainty in the end."""
        self.score(first_cells(self.member, np.isnan(self.known)))
        while True:
            problem, table, strength = self.problem()
            paired, open_cells = without_prompts(table, self.member, self.known), np.isnan(self.known)
            left = (self.member.T @ open_cells).astype(np.int64)
            found = assess(problem, paired, left, goal, pseudo_count=strength)
            blocks = next_blocks(found, np.ones(table.count.shape), left)
            if found.reaches(goal) or not blocks:
                return found.choice, int(np.isfinite(self.known).sum()), found.certainty
            for block in blocks:
                self.score(cells_of(block, self.member, open_cells))

    def uniform(self, probes: int) -> NDArray[np.int64]:
        """The plan of the first probes of every category, answered by all experts."""
        scored = np.tile(np.arange(self.rows.shape[1]) < probes, len(self.rows))
        self.known = np.where(scored[:, None], self.all, np.nan)
        problem, _, _ = self.problem()
        return best_choice(problem, problem.quality)


def true_quality(pool: Pool, rows: NDArray[np.int64]) -> Array:
    """Means of the prompts that are not probes."""
    rest = np.setdiff1d(np.arange(len(pool.labels)), rows.ravel())
    member = np.eye(pool.categories)[pool.labels[rest]]
    return np.asarray(member.T @ pool.scores[rest] / member.sum(axis=0)[:, None])


def once(pool: Pool, seed: int, goal: Goal, probes: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.permutation(np.flatnonzero(pool.labels == row))[:probes] for row in range(pool.categories)])
    truth = true_quality(pool, rows)
    cells = np.arange(len(truth))
    choice, calls, certainty = Run(pool, rows, {}).tune(goal)
    share = calls / (rows.size * len(pool.experts))
    full, equal = (Run(pool, rows, {}).uniform(count) for count in (probes, round(share * probes)))
    return {
        "calls": calls,
        "share": share,
        "certainty": certainty,
        "tuned": truth[cells, choice].mean(),
        "everything": truth[cells, full].mean(),
        "uniform": truth[cells, equal].mean(),
        "best": truth.max(axis=1).mean(),
        "single": truth.mean(axis=0).max(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--benchmark")
    parser.add_argument("--models", default="")
    parser.add_argument("--mocks", action="store_true")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--tolerance", type=float, default=Goal().tolerance)
    parser.add_argument("--confidence", type=float, default=Goal().confidence)
    given = parser.parse_args()
    goal = Goal(given.tolerance, given.confidence)
    found = []
    for seed in range(given.first, given.first + given.runs):
        models = [name for name in given.models.split(",") if name]
        pool = mock_pool(np.random.default_rng(seed)) if given.mocks else pool_of(given.data, given.benchmark, models)
        probes = min(PROBES, int(np.bincount(pool.labels).min()) - 20)
        found.append(once(pool, seed, goal, probes))
    size = np.sqrt(len(found))
    for name in found[0]:
        values = np.array([one[name] for one in found])
        print(f"{name:12} {values.mean():9.4f} ± {values.std(ddof=1) / size:.4f}")
    for name in ("tuned", "everything", "uniform"):
        lost = np.array([one["best"] - one[name] for one in found])
        above = f"above .02 in {(lost > 0.02).mean():.0%}"
        print(f"best - {name:11} {lost.mean():7.4f} ± {lost.std(ddof=1) / size:.4f}  {above}")
    for name in ("everything", "uniform"):
        lost = np.array([one[name] - one["tuned"] for one in found])
        print(f"{name} - tuned {lost.mean():7.4f} ± {lost.std(ddof=1) / size:.4f}")


if __name__ == "__main__":
    main()
