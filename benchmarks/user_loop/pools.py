"""The rule of `coe tune` on recorded outcomes (DIR/quality of `--data DIR`) and on three mock experts.

Each run draws 40 probes of each category with 60 prompts or more and lets the rule read their scores. The true quality
of a plan is that on the other prompts; every category has equal weight, and every call costs the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.measuring.quality import read_quality
from coe.measuring.tune import Goal, assess, first_cells, next_cells
from coe.planning.problem import Problem
from coe.planning.score_table import tabulate_partly

Array = NDArray[np.float64]
PROBES, MIN_PROMPTS = 40, 60
SMALL = ("gemma-2-9b-it", "qwen2.5-7b-instruct", "llama-3.1-8b-instruct")
POOLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mocks": ("", ()),
    "llmrouter9, three": ("llmrouter9", SMALL),
    "llmrouter9, all": ("llmrouter9", ()),
}


def mock_pool(rng: np.random.Generator) -> tuple[Array, NDArray[np.int64]]:
    """Three experts of 14 categories: one is better in each, by .1 to .4, on prompts of three difficulties."""
    skill = np.full((14, 3), 0.45) + 0.1 * rng.standard_normal((14, 1))
    skill[np.arange(14), rng.integers(3, size=14)] += rng.uniform(0.1, 0.4, size=14)
    labels = np.repeat(np.arange(14), 1000)
    chance = np.clip(skill[labels] + np.tile([0.2, 0.0, -0.2], 4667)[:14_000, None], 0.02, 0.98)
    return (rng.uniform(size=chance.shape) < chance).astype(np.float64), labels


def recorded_pool(folder: Path, benchmark: str, models: tuple[str, ...]) -> tuple[Array, NDArray[np.int64]]:
    """Scores and the index of the category of each prompt."""
    data = read_quality(folder, benchmark=benchmark, only=models)
    names = [name for name in sorted(set(data.categories)) if data.categories.count(name) >= MIN_PROMPTS]
    rows = [row for row, name in enumerate(data.categories) if name in names]
    return data.scores[rows], data.labels(rows, names)


def tune(scores: Array, member: Array, *, everything: bool) -> tuple[NDArray[np.int64], int]:
    """Return the plan and the number of scores."""
    names, experts = (
        tuple(f"{kind}{one}" for one in range(size))
        for kind, size in zip("ce", (member.shape[1], scores.shape[1]), strict=True)
    )
    known, goal = scores.copy() if everything else np.full(scores.shape, np.nan), Goal()
    cells = [] if everything else first_cells(member, np.isnan(known))
    while True:
        for cell in cells:
            known[cell] = scores[cell]
        table = tabulate_partly(names, experts, member, known)
        posterior, left = table.posterior(), (member.T @ np.isnan(known)).astype(np.int64)
        problem = Problem.of(table, quality=posterior.mean, weights=np.ones(len(names)))
        assessment = assess(problem, posterior, left)
        cells = next_cells(assessment, np.ones(len(experts)), member, np.isnan(known))
        if assessment.loss <= goal.tolerance or assessment.gain <= goal.min_gain or not cells:
            return assessment.choice, int(np.isfinite(known).sum())


def run(seeds: int, data: Path | None) -> None:
    """Print a line for each pool."""
    folder = None if data is None else data / "quality"
    for name, (benchmark, models) in POOLS.items():
        if benchmark and folder is None:
            print(f"{name}: needs --data")
            continue
        losses: dict[bool, list[float]] = {True: [], False: []}
        shares = []
        for seed in range(100, 100 + seeds):
            rng = np.random.default_rng(seed)
            scores, labels = recorded_pool(folder, benchmark, models) if benchmark and folder else mock_pool(rng)
            number = int(labels.max()) + 1
            probes = min(PROBES, int(np.bincount(labels).min()) - 20)
            rows = np.concatenate([rng.permutation(np.flatnonzero(labels == one))[:probes] for one in range(number)])
            others = np.setdiff1d(np.arange(len(labels)), rows)
            member = np.eye(number)[labels[others]]
            truth = (member.T @ scores[others]) / member.sum(axis=0)[:, None]
            for everything, values in losses.items():
                choice, count = tune(scores[rows], np.eye(number)[labels[rows]], everything=everything)
                values.append(float((truth.max(axis=1) - truth[np.arange(number), choice]).mean()))
            shares.append(count / scores[rows].size)
        lost, whole = np.array(losses[False]), np.array(losses[True])
        print(
            f"{name:18} calls {np.mean(shares):4.0%}  loss {lost.mean():.4f}, above .02 {(lost > 0.02).mean():4.0%}; "
            f"of everything {whole.mean():.4f}, {(whole > 0.02).mean():4.0%}"
        )
