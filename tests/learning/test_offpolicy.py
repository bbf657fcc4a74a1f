"""Off-policy estimates against values that are known: unbiased, covering, and honest where support is thin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coe.learning.off_policy import (
    BanditLog,
    greedy_policy,
    policy_difference,
    policy_value,
    utility,
)
from coe.planning.assignment import Assignment, expected_utility
from coe.planning.problem import Problem
from coe.planning.score_table import tabulate_softly
from coe.planning.solver import solve
from tests.learning.samples import CATEGORIES, EXPERTS, TRUTH, experience, rated_experience

RIGHT = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
SWAPPED = RIGHT[::-1]


def assignment(quality: np.ndarray) -> Assignment:
    table = tabulate_softly(CATEGORIES, EXPERTS, np.eye(3), np.zeros((3, 3)))
    return solve(Problem.of(table, quality=quality))


def value(quality: np.ndarray) -> float:
    """Mean reward of the policy of a table, for equally frequent categories that the router always classifies
    correctly."""
    posterior = np.full((3, 3), 0.05) + 0.85 * np.eye(3)
    return float(TRUTH[np.arange(3), (posterior @ quality).argmax(axis=1)].mean())


def test_intervals_cover_the_true_value_of_policies_near_and_far() -> None:
    covered: list[bool] = []
    for seed in range(30):
        log = rated_experience(500, seed=seed, quality=RIGHT, rate=0.1)
        prepared = BanditLog.of(log)
        for quality in (RIGHT, SWAPPED, TRUTH, np.eye(3)[[1, 1, 1]]):
            found = policy_value(prepared, greedy_policy(log, assignment(quality)))
            covered.append(found.low <= value(quality) <= found.high)
    assert np.mean(covered) >= 0.9


def test_estimates_are_centred_on_the_truth() -> None:
    found = [
        policy_value(BanditLog.of(log), greedy_policy(log, assignment(SWAPPED))).value
        for log in (rated_experience(1000, seed=seed, quality=RIGHT) for seed in range(30))
    ]
    errors = np.array(found) - value(SWAPPED)
    assert abs(errors.mean()) < 3 * errors.std() / 30**0.5


def test_unsupported_choices_are_reported_and_widen_the_interval() -> None:
    log = rated_experience(1000, seed=2, quality=RIGHT, rate=0.0)
    found = policy_value(BanditLog.of(log), greedy_policy(log, assignment(SWAPPED)))
    assert found.unsupported == pytest.approx(2 / 3, abs=0.05)
    assert "could not have been made in the log" in found.warning
    assert found.low <= value(SWAPPED) <= found.high


def test_a_gain_without_observed_rewards_earns_no_credit() -> None:
    log = rated_experience(1500, seed=3, quality=SWAPPED, rate=0.0)
    current, candidate = (greedy_policy(log, assignment(q)) for q in (SWAPPED, RIGHT))
    knowing = replace(BanditLog.of(log), modelled=log.posterior @ TRUTH)
    assert (
        policy_difference(replace(knowing, propensities=np.maximum(knowing.propensities, 1e-9)), candidate, current).low
        > 0.1
    )
    assert policy_difference(knowing, candidate, current).low <= 0.0


def test_utility_equals_that_of_a_decision_request_by_request() -> None:
    quality = TRUTH.copy()
    quality[2, 0] = -np.inf
    planned = assignment(quality)
    requests = experience(9)
    each = [expected_utility(planned, posterior.astype(np.float64)) for posterior in requests.posterior]
    np.testing.assert_allclose(utility(requests, planned), np.stack(each))


def test_an_expert_that_could_not_take_the_request_is_never_chosen() -> None:
    allowed = np.ones((3, 3), dtype=np.bool_)
    allowed[0] = [False, True, True]
    policy = greedy_policy(experience(3, allowed=allowed), assignment(RIGHT))
    assert policy.argmax(axis=1).tolist() == [1, 1, 2]
