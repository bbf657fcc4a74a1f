"""The arena score and the perturbations of `coe benchmark --arena`."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from coe.measuring.benchmark.arena import PERTURBATIONS, arena_choice, arena_score, staying

COSTS = np.array([1.0, 4.0, 16.0])
PROMPTS = ("What is the capital of France?", "Calculate the determinant of this matrix.", "Weather tomorrow", "  ", "?")


@pytest.mark.parametrize(
    ("quality", "cost", "score"),
    [(0.8, 1.0, 1.1 * 0.8 / 1.08), (0.8, 16.0, 0.0), (0.6, 4.0, 1.1 * 0.6 * 0.5 / 0.56), (0.0, 16.0, 0.0)],
)
def test_the_score_is_a_harmonic_mean_with_cost_on_a_log_scale(quality: float, cost: float, score: float) -> None:
    assert arena_score(quality, cost, costs=COSTS) == pytest.approx(score)
    assert arena_score(quality, 4.0, costs=np.full(3, 4.0)) == pytest.approx(1.1 * quality / (0.1 * quality + 1))


def test_the_price_is_chosen_by_what_the_method_expects() -> None:
    equal, apart = np.tile([0.6, 0.6, 0.6], (4, 1)), np.tile([0.01, 0.9, 0.95], (4, 1))
    assert arena_choice(equal, COSTS).tolist() == [0, 0, 0, 0]
    assert arena_choice(apart, COSTS).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbation_keeps_the_words_and_is_the_same_again(name: str) -> None:
    for prompt in PROMPTS:
        first, second = (PERTURBATIONS[name](prompt, random.Random(3)) for _ in range(2))
        assert first == second
        assert len(first) > len(prompt) // 2
    changed = PERTURBATIONS[name](PROMPTS[1], random.Random(3))
    assert changed != PROMPTS[1]
    assert sorted(changed.lower()) == sorted(PROMPTS[1].lower()) or "matrix." in changed


def test_the_share_of_decisions_that_stay() -> None:
    def by_case(prompts: Sequence[str]) -> NDArray[np.int64]:
        return np.array([prompt.isupper() for prompt in prompts], dtype=np.int64)

    stays = staying(by_case, [f"Question {number} about law" for number in range(60)])
    assert set(stays) == set(PERTURBATIONS)
    assert 10 < sum(stays["case"]) < 50
    assert all(stays["typos"])
