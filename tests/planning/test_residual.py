"""The residual: accepted where texts tell more than their categories, refused where they do not, served as saved.

Rated requests are played by experts of known quality: they make the residual better, or change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from coe.errors import ArtifactError
from coe.planning.assignment import expected_utility
from coe.planning.problem import Problem
from coe.planning.residual import Evidence, Residual, fit_residual, smoothed
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
    measured = Residual.of(
        lambda rows: (features[rows], np.eye(2)[labels[rows]]),
        labels,
        given.get("scores", scores),
        dimensions=DIMENSIONS,
        categories=CATEGORIES,
        experts=EXPERTS,
        prompts=[(f"p{row}", f"text \n {row} " + "long " * 100) for row in range(count)],
        encoder="e",
    )
    return fit_residual(measured, given.get("charge", np.zeros((2, 3))))


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
    row = [name for name, _ in other.prompts].index("p5")
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
    assert (again.prompts, again.encoder) == (residual.prompts, "e")
    assert (again.categories, again.experts) == (CATEGORIES, EXPERTS)


def test_a_damaged_file_is_refused_with_the_remedy(residual: Residual) -> None:
    for data in (b"", b"PK", residual.to_bytes()[:5000]):
        with pytest.raises(ArtifactError, match="coe plan"):
            Residual.from_bytes(data)


def test_a_file_has_a_bounded_number_of_prompts_and_ratings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe.planning.residual.MAX_PROMPTS", 150)
    monkeypatch.setattr("coe.planning.residual._evidence", lambda *_: Evidence(0.0, 0.0, ""))
    texts = np.random.default_rng(0).normal(size=(200, DIMENSIONS))
    measured = measured_prompts(texts, np.zeros(200, dtype=np.int64), np.eye(2)[[0, 1] * 100])
    few = replace(measured, labels=np.where(np.arange(150) < 120, 0, -1))
    ratings = ratings_of(measured, texts, np.zeros(200, dtype=np.int64), texts[:, 0] > 0)
    for one, known in ((measured, 150), (few, 120)):
        found, _ = fit_residual(one.with_ratings(*ratings), np.zeros((1, 2)))
        assert found is not None
        assert (sum(text is not None for _, text in found.prompts), len(found.prompts)) == (known, 150)
        assert found.prompts[known:] == tuple((f"req_{row}", None) for row in range(200 - (150 - known), 200))
        assert len(found.with_ratings(*ratings).prompts) == 150


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


def test_the_nearest_prompts_come_with_their_scores(residual: Residual) -> None:
    features, labels, scores = drawn(hidden, 400, seed=0)
    nearest = residual.nearest(features[17], ("c", "a", "new"))
    assert nearest[0] == {
        "prompt_id": "p17",
        "category": CATEGORIES[labels[17]],
        "text": ("text 17 " + "long " * 100)[:120],
        "similarity": pytest.approx(1.0, abs=1e-4),
        "weight": nearest[0]["weight"],
        "scores": {"c": scores[17, 2], "a": scores[17, 0]},
    }
    assert 1 > nearest[0]["weight"] > nearest[1]["weight"] > nearest[2]["weight"] > 0
    assert len(nearest) == 3


def test_prices_of_a_budget_are_those_of_decisions_with_the_residual() -> None:
    """Without it, no price parts the requests of one category; with it, the budget is spent where it helps."""
    cost = np.array([[1.0, 9.0, 1.0]])
    problem = Problem(
        ("general",), EXPERTS, np.array([[0.5, 0.55, 0.3]]), np.ones(1), Uses(cost=cost), {"mean_cost": 3.0}
    )
    plan = solve(problem, traffic=np.ones((400, 1)))
    features, _, scores = drawn(hidden, 2000, seed=3)
    measured = Residual.of(
        lambda rows: (features[rows], np.ones((len(rows), 1))),
        np.zeros(2000, dtype=np.int64),
        scores,
        dimensions=DIMENSIONS,
        categories=("general",),
        experts=EXPERTS,
        prompts=[("p", "")] * 2000,
    )
    found, _ = fit_residual(measured, plan.price)
    assert found is not None
    priced = solve(problem, traffic=np.ones((400, 1)), residual=found)
    chosen = np.array([expected_utility(priced, np.ones(1), row).argmax() for row in found.left_out])
    assert cost[0, chosen].mean() == pytest.approx(3.0, rel=0.02)
    unseen = drawn(hidden, 2000, seed=4)[0]
    chosen = np.array([expected_utility(priced, np.ones(1), found(row)).argmax() for row in unseen])
    assert cost[0, chosen].mean() == pytest.approx(3.0, rel=0.15)
    assert cost[0, [expected_utility(plan, np.ones(1)).argmax()]].mean() == 1.0


WIDE = 24
"""Dimensions in which a few hundred probes are far from most texts."""


class Played(NamedTuple):
    """Mean quality of the choices on other texts without and with ratings, and whether each residual was accepted."""

    without: float
    with_ratings: float
    accepted: tuple[bool, bool]


def played(share: float, *, seed: int) -> Played:
    """Play one category with two hidden topics, in each of which one expert is better than 0.55 by `share`.

    300 probes are measured. Then the plan decides 1,500 requests, a tenth of them against its choice, and all are rated
    on another level than the probes.
    """
    rng = np.random.default_rng(seed)
    probes, requests, others = (rng.normal(size=(count, WIDE)) for count in (300, 1500, 2000))

    def quality(texts: NDArray[np.float64]) -> Scores:
        return 0.55 + share * np.outer(np.sign(texts[:, 0]), (1.0, -1.0))

    scores = (rng.random((300, 2)) < quality(probes)).astype(np.float64)
    measured = measured_prompts(probes, np.zeros(300, dtype=np.int64), scores)
    first, _ = fit_residual(measured, np.zeros((1, 2)))

    def choices(plan: Residual | None, texts: NDArray[np.float64]) -> NDArray[np.int64]:
        mean = np.tile(scores.mean(axis=0), (len(texts), 1))
        if plan is not None:
            mean = mean + smoothed(plan.projection(texts) @ plan.vectors.T, plan.errors, np.isfinite(plan.scores))
        return np.asarray(mean.argmax(axis=1))

    expert = np.where(rng.random(1500) < 0.2, rng.integers(0, 2, 1500), choices(first, requests))
    chance = (quality(requests) + np.array([0.25, 0.1]))[np.arange(1500), expert]
    ratings = ratings_of(measured, requests, expert, rng.random(1500) < chance)
    second, _ = fit_residual((first or measured).with_ratings(*ratings), np.zeros((1, 2)))
    found = [quality(others)[np.arange(2000), choices(plan, others)].mean() for plan in (first, second or first)]
    return Played(found[0], found[1], (first is not None, second is not None))


def measured_prompts(texts: NDArray[np.float64], labels: NDArray[np.int64], scores: Scores) -> Residual:
    """Probes of one category, scored by two experts."""
    return Residual.of(
        lambda rows: (texts[rows], np.ones((len(rows), 1))),
        labels,
        scores,
        dimensions=texts.shape[1],
        categories=("general",),
        experts=("a", "b"),
        prompts=[(f"p{row}", "") for row in range(len(texts))],
    )


def ratings_of(
    measured: Residual, texts: NDArray[np.float64], expert: NDArray[np.int64], good: NDArray[np.bool_]
) -> tuple[list[str], Scores, Scores, Scores]:
    """The arguments of `with_ratings`."""
    scores = np.where(np.eye(2, dtype=np.bool_)[expert], good.astype(np.float64)[:, None], np.nan)
    return [f"req_{row}" for row in range(len(texts))], measured.projection(texts), np.ones((len(texts), 1)), scores


def test_ratings_show_topics_that_probes_show_weakly() -> None:
    found = [played(0.17, seed=seed) for seed in range(7)]
    assert any(one.accepted == (False, True) for one in found)  # a plan without a residual gets one
    assert np.mean([one.accepted[1] for one in found]) >= 0.5
    assert np.mean([one.with_ratings - one.without for one in found]) > 0.02
    assert min(one.with_ratings - one.without for one in found) > -0.005


def test_ratings_of_level_experts_change_nothing() -> None:
    assert sum(any(played(0.0, seed=seed).accepted) for seed in range(8)) == 0


def test_the_expert_that_answers_the_harder_texts_is_not_blamed_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe.planning.residual._evidence", lambda *_: Evidence(0.0, 0.0, ""))
    rng = np.random.default_rng(0)
    probes, requests = rng.normal(size=(200, DIMENSIONS)), rng.normal(size=(1500, DIMENSIONS))
    measured = measured_prompts(probes, np.zeros(200, dtype=np.int64), np.full((200, 2), 0.5))
    hard = requests[:, 0] > 0
    expert = np.where(hard, 0, rng.integers(0, 2, 1500))  # the texts that are hard go to one expert
    ratings = ratings_of(measured, requests, expert, rng.random(1500) < 0.9 - 0.4 * hard)
    found, _ = fit_residual(measured.with_ratings(*ratings), np.zeros((1, 2)))
    assert found is not None
    beyond = np.array([found(text) for text in 2.0 * np.eye(DIMENSIONS)[:1]])
    assert abs(beyond[0, 0] - beyond[0, 1]) < 0.03, beyond
