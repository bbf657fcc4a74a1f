"""Exploration: exact propensities, and choices that follow them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.routing.decision import choose, propensities

UTILITY = np.array([0.70, 0.72, 0.40, -np.inf, 0.71])


def test_the_best_keeps_the_rest_and_those_within_the_loss_share_the_rate() -> None:
    np.testing.assert_allclose(propensities(UTILITY, rate=0.1, loss=0.05), [0.05, 0.9, 0.0, 0.0, 0.05])
    np.testing.assert_allclose(propensities(UTILITY, rate=0.1, loss=0.01), [0.0, 0.9, 0.0, 0.0, 0.1])


@pytest.mark.parametrize(("rate", "loss"), [(0.0, 1.0), (0.1, 0.0)])
def test_without_rate_or_anyone_within_the_loss_the_best_is_certain(rate: float, loss: float) -> None:
    np.testing.assert_allclose(propensities(UTILITY, rate=rate, loss=loss), [0, 1, 0, 0, 0])


def test_no_expert_to_choose_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="no expert"):
        propensities(np.full(2, -np.inf), rate=0.1, loss=0.1)


_UTILITIES = st.lists(st.one_of(st.sampled_from((0.2, 0.5, 0.5, 0.52)), st.just(-np.inf)), min_size=1, max_size=6)


@given(
    utility=_UTILITIES.filter(lambda w: max(w) > -np.inf),
    rate=st.floats(0, 1),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_a_choice_always_has_a_propensity(utility: list[float], rate: float, uniform: float) -> None:
    values = np.array(utility)
    chances = propensities(values, rate=rate, loss=0.1)
    assert chances.sum() == pytest.approx(1.0)
    assert chances[choose(chances.tolist(), uniform)] > 0.0


def test_weights_say_who_is_explored_whatever_the_loss() -> None:
    weights = np.array([0.0, 1.0, 2.5, 0.0, 0.0])
    np.testing.assert_allclose(propensities(UTILITY, rate=0.1, loss=0.01, weights=weights), [0, 0.75, 0.25, 0, 0])
