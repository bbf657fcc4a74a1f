"""Measures how often the loss bound of a cascade (`max_loss`) is broken on new prompts.

    .venv/bin/python -m benchmarks.recipe_bound DIR [--benchmark mmlupro] [--members A,B,LARGE] [--calibrations 60]

DIR is a folder of quality data with recorded answers. In each calibration, a random part of the prompts fits the
cascade of single members at several prices, a second part tests which prices keep the bound, and the rest measures the
loss of the cheapest accepted one against the last member.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.measuring.quality import read_quality
from coe.measuring.recorded_answers import read_answers
from coe.recipes.fitting.answers import Answers
from coe.recipes.fitting.fit import RecipeFit, replayed
from coe.recipes.fitting.max_loss import accepted_thresholds
from coe.recipes.policy import RecipePolicy

PRICES = (0.0005, 0.001, 0.002, 0.004, 0.006, 0.01, 0.015, 0.02)
"""Quality per billion active parameters times a thousand tokens; the safest first."""
BOUNDS = (0.01, 0.02, 0.05)
FITTED, CALIBRATED = 1200, 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--benchmark", default="mmlupro")
    parser.add_argument("--members", default="Phi-3-mini-4k-instruct,mathstral-7B,Meta-Llama-3_1-70B-Instruct")
    parser.add_argument("--calibrations", type=int, default=60)
    options = parser.parse_args()
    answers = _answers(options.folder, options.benchmark, options.members.split(","))
    broken, spent = dict.fromkeys(BOUNDS, 0), {bound: list[float]() for bound in BOUNDS}
    for seed in range(options.calibrations):
        shuffled = np.random.default_rng(seed).permutation(len(answers.labels))
        fitted, calibrated, rest = np.split(shuffled, [FITTED, FITTED + CALIBRATED])
        fit = RecipeFit(answers.rows(fitted), recipe="cascade", steps=[[c] for c in range(len(answers.experts))])
        policies = [fit.policy(price)[0] for price in PRICES]
        losses = [_outcome(policy, answers.rows(calibrated))[0] for policy in policies]
        for bound in BOUNDS:
            kept = accepted_thresholds(losses, bound)
            loss, cost = _outcome(policies[kept - 1], answers.rows(rest)) if kept else (np.zeros(1), 1.0)
            broken[bound] += bool(loss.mean() > bound)
            spent[bound].append(cost)
    for bound in BOUNDS:
        share = float(np.mean(spent[bound]))
        print(f"max_loss {bound:g}: broken in {broken[bound]} of {options.calibrations}, mean cost {share:.2f}")


def _answers(folder: Path, benchmark: str, members: list[str]) -> Answers:
    data = read_quality(folder, benchmark=benchmark, only=members)
    recorded = read_answers(folder, data)
    if recorded is None:
        raise SystemExit(f"{folder}: no table of answers")
    columns = [data.models.index(name) for name in members]
    names = sorted(set(data.categories))
    tokens = recorded.tokens[:, columns]
    return Answers(
        experts=tuple(members),
        classes=recorded.classes[:, columns],
        scores=data.scores[:, columns],
        costs=data.active_b[columns] * tokens / 1000,
        tokens=tokens,
        labels=np.array([names.index(name) for name in data.categories]),
        n_categories=len(names),
    )


def _outcome(policy: RecipePolicy, answers: Answers) -> tuple[NDArray[np.float64], float]:
    """Return the loss on each prompt against the last member, and the cost as a share of its cost."""
    found = replayed(policy, answers)
    cost = float(found.costs(answers).sum() / answers.costs[:, -1].sum())
    return answers.scores[:, -1] - found.scores, cost


if __name__ == "__main__":
    main()
