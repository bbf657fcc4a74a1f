"""Evidence that is read after every request: it rarely errs, and finds what a single test of a fixed size would."""

from __future__ import annotations

import numpy as np
import pytest

from coe.trials.evidence import confidence_sequence, log_evidence, weighted_differences


def largest(new: float, old: float, *, share: float, count: int, seed: int) -> np.ndarray:
    """The largest wealth so far, a logarithm, after each of `count` requests; a share goes to the new expert."""
    random = np.random.default_rng(seed)
    chosen = (random.random(count) < share).astype(int)
    reward = (random.random(count) < np.where(chosen == 1, new, old)).astype(float)
    chances = np.tile([1 - share, share], (count, 1))
    return np.maximum.accumulate(
        log_evidence(*weighted_differences(chosen, reward, chances, np.array([-1.0, 1.0]))[:2])
    )


@pytest.mark.parametrize(("quality", "share"), [(0.78, 0.1), (0.95, 0.05), (0.3, 0.3), (0.5, 0.0125)])
def test_an_expert_that_is_no_better_is_rarely_shown_better_at_any_of_its_looks(quality: float, share: float) -> None:
    wealth = [largest(quality, quality, share=share, count=2000, seed=seed)[-1] for seed in range(300)]
    assert np.mean(np.array(wealth) >= np.log(20)) <= 0.05


def test_a_better_expert_is_found_soon_and_a_later_change_too() -> None:
    found = [largest(0.95, 0.78, share=0.25, count=400, seed=seed)[-1] for seed in range(100)]
    assert np.mean(np.array(found) >= np.log(20)) > 0.85
    random = np.random.default_rng(0)
    differences = np.where(random.random(3000) < np.repeat([0.4, 0.7], [2000, 1000]), 1.0, -1.0)
    assert (log_evidence(differences, np.full(3000, -1.0)) >= np.log(1000)).argmax() > 2000


def test_differences_are_unbiased_by_propensities_and_never_below_their_bound() -> None:
    random = np.random.default_rng(0)
    chances = random.dirichlet([2.0, 1.0, 1.0], 40_000)
    chosen = (random.random((40_000, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    reward = (random.random(40_000) < np.array([0.4, 0.6, 0.9])[chosen]).astype(float)
    keep = chances.min(axis=1) > 0.05
    found, least, most = weighted_differences(chosen[keep], reward[keep], chances[keep], np.array([-1.0, 1.0, 0.0]))
    assert found.mean() == pytest.approx(0.2, abs=4 * found.std() / len(found) ** 0.5)
    assert ((least <= found) & (found <= most)).all()
    assert (least < 0).all()


def test_intervals_of_several_measures_hold_at_every_look_and_exclude_a_true_difference() -> None:
    random, truth = np.random.default_rng(0), np.array([0.0, 0.2, -0.3])
    chance = random.uniform(0.05, 0.5, (1200, 100, 1))
    new, old = (random.random((1200, 100, 3)) < level for level in (0.5 + truth, np.full(3, 0.5)))
    is_new = random.random(chance.shape) < chance
    weighted = np.where(is_new, (new - 0.5) / chance, (0.5 - old) / (1 - chance))
    low, high = confidence_sequence(weighted, -0.5 / chance, 0.5 / chance)
    held = ((low <= truth) & (truth <= high)).all(axis=(0, 2))
    assert held.mean() >= 0.95
    assert ((low[-1, :, 1] > 0) & (high[-1, :, 2] < 0)).mean() > 0.5
    assert (high - low)[-1].max() < 0.5
