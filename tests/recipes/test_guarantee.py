"""The bound on what a recipe may lose."""

import numpy as np
import pytest

from coe.recipes.fitting.max_loss import LEVEL, accepted_thresholds, loss_p_value


def losses(rate: float, *, prompts: int, seed: int) -> np.ndarray:
    """Losses of a recipe that disagrees on a tenth of the prompts, with this mean."""
    random = np.random.default_rng(seed)
    differs = random.random(prompts) < 0.1
    return np.where(differs, np.where(random.random(prompts) < 0.5 + 5 * rate, 1.0, -1.0), 0.0)


def test_a_recipe_that_breaks_the_bound_is_accepted_in_at_most_one_of_twenty_calibrations() -> None:
    accepted = sum(loss_p_value(losses(0.02, prompts=800, seed=seed), 0.02) <= LEVEL for seed in range(400))
    assert accepted <= 0.05 * 400


@pytest.mark.parametrize("max_loss", [0.01, 0.02])
def test_a_recipe_that_loses_nothing_is_accepted_with_enough_prompts(max_loss: float) -> None:
    assert loss_p_value(np.zeros(1500), max_loss) <= LEVEL


def test_too_few_prompts_prove_nothing() -> None:
    assert loss_p_value(np.zeros(100), 0.01) > LEVEL
    assert loss_p_value(np.zeros(0), 0.01) == 1.0


def test_the_first_threshold_that_fails_ends_the_sequence() -> None:
    good, bad = np.zeros(1500), np.full(1500, 0.5)
    assert accepted_thresholds([good, good, bad, good], 0.02) == 2
    assert accepted_thresholds([bad, good], 0.02) == 0
    assert accepted_thresholds([], 0.02) == 0
