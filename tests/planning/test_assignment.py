"""Assignments: what is declared, what is expected, and their file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coe.planning.assignment import Assignment, expected_utility, information_value, routing_gain
from coe.planning.problem import Problem
from coe.planning.solver import solve

DECLARED = Assignment.declared(("code", "law", "general"), ("coder", "jurist", "big"), {"code": "coder"}, "big")


def test_a_declared_mapping_trusts_its_expert_then_the_general_one() -> None:
    assert DECLARED.choice == ("coder", "big", "big")
    np.testing.assert_allclose(DECLARED.quality, [[1, 0, 0.01], [0, 0, 1], [0, 0, 1]])
    np.testing.assert_allclose(expected_utility(DECLARED, np.array([0.9, 0.1, 0.0])), [0.9, 0.0, 0.109])


def test_an_expert_that_may_not_serve_the_likeliest_category_is_never_chosen() -> None:
    quality = np.array([[0.9, -np.inf], [0.1, 0.8]])
    planned = solve(Problem(("x", "y"), ("a", "b"), quality, np.array([0.5, 0.5])))
    value = expected_utility(planned, np.array([0.51, 0.49], dtype=np.float32))
    assert value[1] == -np.inf
    assert np.isfinite(expected_utility(planned, np.array([0.49, 0.51]))).all()


@pytest.mark.parametrize("excludes", [False, True])
def test_a_routers_posterior_has_the_same_expected_utility_as_one_in_double_precision(*, excludes: bool) -> None:
    generator = np.random.default_rng(0)
    quality = generator.random((16, 9))
    quality[3, 5] = -np.inf if excludes else 0.5
    names = tuple(map(str, range(16)))
    assignment = replace(
        Assignment.declared(("general", *names[1:]), names[:9], {}, "0"),
        quality=quality,
        price=generator.random((16, 9)),
    )
    for posterior in generator.dirichlet(np.full(16, 0.2), 100):
        single = posterior.astype(np.float32)
        found = expected_utility(assignment, single)
        np.testing.assert_allclose(found, expected_utility(assignment, single.astype(np.float64)), atol=1e-6)
        assert found.dtype == np.float32
        assert (found[5] == -np.inf) == (excludes and single.argmax() == 3)


def test_an_assignment_cannot_be_changed_after_it_was_made() -> None:
    with pytest.raises(ValueError, match="read-only"):
        DECLARED.quality[0, 0] = 0.0


def test_the_category_is_worth_nothing_among_categories_of_one_expert() -> None:
    posterior = np.array([0.5, 0.2, 0.3], dtype=np.float32)
    own = Assignment.declared(("a", "b", "general"), ("x", "y", "z"), {"a": "x", "b": "x"}, general="z")
    apart = Assignment.declared(("a", "b", "general"), ("x", "y", "z"), {"a": "x", "b": "y"}, general="z")
    assert information_value(own, posterior, [0, 1, 2], uncertain=False) == pytest.approx(0.3)
    assert information_value(apart, posterior, [0, 1, 2], uncertain=False) == pytest.approx(0.5)
    assert information_value(apart, posterior, [0, 1], uncertain=False) == pytest.approx(0.2)  # z may not answer
    assert information_value(apart, posterior, [1], uncertain=False) == 0


def test_an_uncertain_request_is_compared_with_the_general_expert_if_it_may_answer() -> None:
    posterior = np.array([0.7, 0.3], dtype=np.float32)
    declared = Assignment.declared(("a", "general"), ("x", "y"), {"a": "x"}, general="y")
    assert information_value(declared, posterior, [0, 1], uncertain=False) == pytest.approx(0.3)
    assert information_value(declared, posterior, [0, 1], uncertain=True) == pytest.approx(0.7 * 0.99)
    assert information_value(declared, posterior, [0], uncertain=True) == 0


def test_the_value_of_the_category_is_in_units_of_quality_less_price() -> None:
    even = np.array([0.5, 0.5], dtype=np.float32)

    def value(quality: list[list[float]], price: list[float]) -> float:
        return information_value(planned(quality, price), even, [0, 1], uncertain=False)

    assert value([[0.7, 0.6], [0.6, 0.605]], [0.0, 0.0]) == pytest.approx(0.0025)
    assert value([[0.7, 0.6], [0.6, 0.65]], [0.0, 0.0]) == pytest.approx(0.025)
    assert value([[0.7, 0.6], [0.6, 0.65]], [0.0, 0.1]) == 0
    assert value([[0.7, 0.6], [-np.inf, 0.65]], [0.0, 0.0]) == pytest.approx(0.05)  # an excluded expert has quality 0


def test_the_routing_gain_is_the_mean_over_categories_against_the_best_single_expert() -> None:
    measured = planned([[0.7, 0.6], [0.6, 0.65]], [0.0, 0.0])
    assert routing_gain(measured, [0, 1]) == pytest.approx(0.025)
    assert routing_gain(measured, [1]) == 0
    assert routing_gain(planned([[0.7, 0.6], [0.6, 0.65]], [0.0, 0.1]), [0, 1]) == pytest.approx(0.0)


def planned(quality: list[list[float]], price: list[float]) -> Assignment:
    made = Assignment.declared(("a", "general"), ("x", "y"), {"a": "x"}, general="y")
    return replace(made, quality=np.array(quality), price=np.tile(price, (2, 1)))
