"""The residual model: it learns what embeddings add to the score table, and predicts 0 if they add nothing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from coe.learning.residual import MAX_AXES, MAX_TRAINING_PROMPTS, EmbeddingProjection, Residual, fit_residual

DIMENSIONS, EXPERTS = 8, 4


def prompts(count: int, *, seed: int = 0) -> NDArray[np.float64]:
    """Embeddings of two layers of unit length."""
    layers = np.random.default_rng(seed).normal(size=(count, 2, DIMENSIONS))
    return np.asarray((layers / np.linalg.norm(layers, axis=2, keepdims=True)).reshape(count, -1))


def scores_of(embeddings: NDArray[np.float64], *, signal: float) -> NDArray[np.float64]:
    """Right or wrong answers: the first two experts are right on opposite sides of the first axis, by `signal`."""
    side = np.sign(embeddings[:, 0])
    chance = 0.5 + signal * np.column_stack((side, -side, 0 * side, 0 * side))
    return (np.random.default_rng(1).random(chance.shape) < chance).astype(np.float64)


def fitted(signal: float) -> tuple[Residual, NDArray[np.float64]]:
    embeddings = prompts(600)
    scores = scores_of(embeddings, signal=signal)
    table = np.tile(scores.mean(axis=0), (600, 1))
    return fit_residual(embeddings, scores, table, dimensions=DIMENSIONS), table[0]


def test_it_selects_the_expert_of_each_side() -> None:
    residual, table = fitted(signal=0.3)
    unseen = prompts(300, seed=7)
    chosen = (table + residual(unseen)).argmax(axis=1)
    clear = np.abs(unseen[:, 0]) > 0.4
    assert ((chosen == 0) == (unseen[:, 0] > 0))[clear].mean() > 0.9


def test_without_a_signal_there_is_no_residual() -> None:
    residual, _ = fitted(signal=0.0)
    assert len(residual.known) == 0
    assert not residual(prompts(20, seed=7)).any()


def test_the_left_out_error_is_that_of_a_fit_without_the_prompt() -> None:
    embeddings = prompts(60)
    target = np.random.default_rng(2).normal(size=(60, EXPERTS))
    readings = EmbeddingProjection.of(embeddings, DIMENSIONS)(embeddings)
    kernel = np.exp(6.0 * (readings @ readings.T - 1))
    inverse = np.linalg.inv(kernel + 4.0 * np.eye(60))
    rest = np.arange(60) != 5
    weights = np.linalg.solve(kernel[np.ix_(rest, rest)] + 4.0 * np.eye(59), target[rest])
    left_out = target[5] - kernel[5, rest] @ weights
    np.testing.assert_allclose((inverse @ target)[5] / inverse[5, 5], left_out, rtol=1e-9)


def test_readings_ignore_what_all_prompts_share() -> None:
    embeddings = prompts(100)
    moved = embeddings + np.repeat([3.0, -2.0], DIMENSIONS)
    fit = EmbeddingProjection.of(embeddings, DIMENSIONS)
    np.testing.assert_allclose(
        fit(embeddings) @ fit(embeddings).T,
        (again := EmbeddingProjection.of(moved, DIMENSIONS)(moved)) @ again.T,
        atol=1e-9,
    )
    assert np.linalg.norm(fit(embeddings), axis=1) == pytest.approx(1.0)


def test_its_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 4 * (MAX_TRAINING_PROMPTS * (MAX_AXES + 32) + 3 * 384 * MAX_AXES) < 8e6
    monkeypatch.setattr("coe.learning.residual.MAX_TRAINING_PROMPTS", 200)
    residual, _ = fitted(signal=0.5)
    assert residual.known.shape == (200, 2 * DIMENSIONS)
