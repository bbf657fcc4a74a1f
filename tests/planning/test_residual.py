"""The residual: accepted where texts tell more than their categories, refused where they do not, served as saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coe.errors import ArtifactError
from coe.planning.assignment import expected_utility
from coe.planning.problem import Problem
from coe.planning.residual import Evidence, Residual, fit_residual
from coe.planning.solver import solve
from coe.planning.uses import Uses

DIMENSIONS, CATEGORIES, EXPERTS = 8, ("code", "general"), ("a", "b", "c")
Scores = NDArray[np.float64]
Pool = Callable[[NDArray[np.float64], NDArray[np.int64]], Scores]
"""Maps vectors (n_prompts, DIMENSIONS) and labels to the probability that each expert is right."""


def hidden(vectors: NDArray[np.float64], labels: NDArray[np.int64]) -> Scores:
    """A sub-category that no label names decides which of two experts is right."""
    side = 0.35 * np.sign(vectors[:, 0])
    return 0.5 + np.column_stack((side, -side, 0 * side))


def by_category(vectors: NDArray[np.float64], labels: NDArray[np.int64]) -> Scores:
    return np.array([[0.8, 0.5, 0.6], [0.4, 0.5, 0.6]])[labels]


def by_difficulty(vectors: NDArray[np.float64], labels: NDArray[np.int64]) -> Scores:
    """Some prompts are harder, for all experts alike."""
    return np.clip(by_category(vectors, labels) + 0.2 * np.sign(vectors[:, :1]), 0.0, 1.0)


def saturated(vectors: NDArray[np.float64], labels: NDArray[np.int64]) -> Scores:
    return np.full((len(vectors), 3), 0.97)


def one_leads(vectors: NDArray[np.float64], labels: NDArray[np.int64]) -> Scores:
    """Nearly all answers are right; on hard prompts the weaker experts fall behind, and never lead."""
    return 0.99 - np.outer(vectors[:, 0] > 0, (0.02, 0.05, 0.1))


def drawn(pool: Pool, count: int, *, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64], Scores]:
    """Features of two layers, labels and right or wrong answers."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, DIMENSIONS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = rng.integers(0, len(CATEGORIES), count)
    scores = (rng.random((count, 3)) < pool(vectors, labels)).astype(np.float64)
    return np.hstack((vectors, vectors)), labels, scores


def fitted(pool: Pool, count: int = 400, *, seed: int = 0, **given: Any) -> tuple[Residual | None, Evidence]:
    features, labels, scores = drawn(pool, count, seed=seed)
    return fit_residual(
        lambda rows: (features[rows], np.eye(2)[labels[rows]]),
        labels,
        given.get("scores", scores),
        given.get("charge", np.zeros((2, 3))),
        dimensions=DIMENSIONS,
        categories=CATEGORIES,
        experts=EXPERTS,
        encoder="e",
    )


@pytest.fixture(scope="module")
def residual() -> Residual:
    found, evidence = fitted(hidden)
    assert found is not None, evidence
    return found


def test_where_texts_tell_more_than_categories_other_texts_get_the_better_expert(residual: Residual) -> None:
    features, _, _ = drawn(hidden, 300, seed=7)
    chosen = np.array([residual(row)[:2].argmax() for row in features])
    clear = np.abs(features[:, 0]) > 0.2
    assert ((chosen == 0) == (features[:, 0] > 0))[clear].mean() > 0.9


@pytest.mark.parametrize("pool", [by_category, by_difficulty, saturated, one_leads])
def test_of_pools_without_a_gain_at_most_a_twentieth_is_accepted(pool: Pool) -> None:
    accepted = [fitted(pool, seed=seed)[0] is not None for seed in range(20)]
    assert np.mean(accepted) <= 0.05


def test_a_prompt_does_not_vouch_for_itself(residual: Residual) -> None:
    _, _, scores = drawn(hidden, 400, seed=0)
    scores[5] = 1 - scores[5]
    other, _ = fitted(hidden, scores=scores)
    assert other is not None
    row = np.random.default_rng(0).permutation(400).tolist().index(5)
    np.testing.assert_allclose(other.left_out[row], residual.left_out[row], atol=1e-12)


def test_an_expert_that_may_not_serve_is_no_gain() -> None:
    allowed = np.array([[0.0, np.inf, 0.0], [0.0, np.inf, 0.0]])
    assert fitted(hidden)[1].gain > fitted(hidden, charge=allowed)[1].gain + 0.05


def test_too_few_prompts_give_none_and_the_reason() -> None:
    found, evidence = fitted(hidden, count=99)
    assert found is None
    assert "99" in evidence.refused
    gappy = drawn(hidden, 400, seed=0)[2]
    gappy[:350, 0] = np.nan
    assert "50 prompts" in fitted(hidden, scores=gappy)[1].refused
    gappy[100:350, 0] = drawn(hidden, 400, seed=0)[2][100:350, 0]
    known, _ = fitted(hidden, scores=gappy)
    assert known is not None
    assert np.isfinite(known(drawn(hidden, 1, seed=9)[0][0])).all()


def test_what_is_saved_predicts_the_same(residual: Residual) -> None:
    again = Residual.from_bytes(residual.to_bytes())
    assert again.to_bytes() == residual.to_bytes()
    features = drawn(hidden, 1, seed=9)[0][0]
    np.testing.assert_allclose(again(features), residual(features), atol=2e-3)
    assert (again.categories, again.experts, again.encoder) == (CATEGORIES, EXPERTS, "e")


def test_a_damaged_file_is_refused_with_the_remedy(residual: Residual) -> None:
    for data in (b"", b"PK", residual.to_bytes()[:5000]):
        with pytest.raises(ArtifactError, match="coe plan"):
            Residual.from_bytes(data)


def test_of_many_prompts_a_bounded_sample_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe.planning.residual.MAX_PROMPTS", 250)
    found, _ = fitted(hidden)
    assert found is not None
    assert len(found.labels) == len(found.errors) == 250


def test_over_other_names_known_experts_keep_what_is_known(residual: Residual) -> None:
    features = drawn(hidden, 1, seed=9)[0][0]
    other = residual.over(("new", "code"), ("c", "new", "b", "a"))
    assert other(features)[1] == 0
    np.testing.assert_allclose(other(features)[[3, 2, 0]], residual(features), atol=1e-6)
    assert set(other.labels.tolist()) == {1, -1}


def test_the_expected_gain_is_where_texts_decide(residual: Residual) -> None:
    level = np.zeros((2, 3))
    assert (residual.gain(level, [0, 1, 2]) > 0.05).all()
    assert not residual.gain(level, [0]).any()
    assert (residual.gain(level + np.array([2.0, 0.0, 0.0]), [0, 1, 2]) < 1e-6).all()


def test_prices_of_a_budget_are_those_of_decisions_with_the_residual() -> None:
    """Without it, no price parts the requests of one category; with it, the budget is spent where it helps."""
    cost = np.array([[1.0, 9.0, 1.0]])
    problem = Problem(
        ("general",), EXPERTS, np.array([[0.5, 0.55, 0.3]]), np.ones(1), Uses(cost=cost), {"mean_cost": 3.0}
    )
    plan = solve(problem, traffic=np.ones((400, 1)))
    features, _, scores = drawn(hidden, 2000, seed=3)
    found, _ = fit_residual(
        lambda rows: (features[rows], np.ones((len(rows), 1))),
        np.zeros(2000, dtype=np.int64),
        scores,
        plan.price,
        dimensions=DIMENSIONS,
        categories=("general",),
        experts=EXPERTS,
    )
    assert found is not None
    priced = solve(problem, traffic=np.ones((400, 1)), residual=found)
    chosen = np.array([expected_utility(priced, np.ones(1), row).argmax() for row in found.left_out])
    assert cost[0, chosen].mean() == pytest.approx(3.0, rel=0.02)
    unseen = drawn(hidden, 2000, seed=4)[0]
    chosen = np.array([expected_utility(priced, np.ones(1), found(row)).argmax() for row in unseen])
    assert cost[0, chosen].mean() == pytest.approx(3.0, rel=0.15)
    assert cost[0, [expected_utility(plan, np.ones(1)).argmax()]].mean() == 1.0
