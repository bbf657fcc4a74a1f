"""Calibration on cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from routers.calibration import (
    choose_confidence_threshold,
    choose_escalation_threshold,
    choose_separation_threshold,
    expected_calibration_error,
    fit_pool_weights,
    fit_temperature,
)
from routers.training.fitting import FOLDS, HeadScores, HeldOutScores, pool_weights, simulate_cascade, topic_folds, tune

YES, NO = True, False


def logits_of(*rows: list[float]) -> np.ndarray:
    return np.log(np.array(rows, dtype=np.float32))


def test_temperature_undoes_a_in_scope_overconfidence() -> None:
    truth = logits_of(*[[0.8, 0.2]] * 10)
    labels = np.array([0] * 8 + [1] * 2)
    assert fit_temperature(3 * truth, labels) == pytest.approx(3, rel=0.05)
    assert fit_temperature(truth / 2, labels) == pytest.approx(0.5, rel=0.05)


def test_calibration_error_weighs_bins_by_count() -> None:
    confidence = np.array([0.85, 0.85, 0.35, 0.35])
    assert expected_calibration_error(confidence, np.array([YES, NO, NO, NO])) == pytest.approx((0.35 + 0.35) / 2)
    assert expected_calibration_error(np.array([]), np.array([], dtype=bool)) == 0.0


def test_a_small_loss_buys_fewer_escalations() -> None:
    confidence = np.linspace(0.1, 0.9, 100).astype(np.float32)
    fast, encoder = np.ones(100, dtype=bool), np.ones(100, dtype=bool)
    fast[[0, 1, 40]] = False  # the third error costs forty escalations
    exact = choose_escalation_threshold(confidence, fast, encoder, max_escalated=0.5, max_loss=0.0)
    tolerant = choose_escalation_threshold(confidence, fast, encoder, max_escalated=0.5, max_loss=0.011)
    assert (confidence < exact).sum() == 41
    assert (confidence < tolerant).sum() == 2


def test_escalation_for_separation_stops_once_the_encoder_adds_nothing() -> None:
    in_scope = np.arange(20) < 10
    fast = np.concatenate((np.linspace(0.5, 0.95, 10), np.full(10, 0.6))).astype(np.float32)
    encoder = np.where(in_scope, 0.9, 0.1).astype(np.float32)  # the encoder detects every out-of-scope text
    threshold = choose_separation_threshold(fast, encoder, in_scope, max_escalated=1.0, max_loss=0.0)
    assert 0.6 < threshold < 0.7
    capped = choose_separation_threshold(fast, encoder, in_scope, max_escalated=0.1, max_loss=0.0)
    assert (fast[in_scope] < capped).sum() <= 1


def test_rejection_begins_where_predictions_are_more_often_wrong_than_right() -> None:
    confidence = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=np.float32)
    right = np.array([NO, NO, YES, NO, YES, YES])
    in_scope = np.ones(6, dtype=bool)
    assert choose_confidence_threshold(confidence, right, in_scope, max_rejected=1.0) == pytest.approx(0.3)


def test_folds_of_topics_hold_whole_topics_of_every_class() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2, FOLDS, 8)) * 20
    topics = np.repeat(np.arange(2 * FOLDS), 6)
    vectors = (centres.reshape(-1, 8)[topics] + rng.normal(size=(len(topics), 8))).astype(np.float32)
    labels = topics // FOLDS
    parts = topic_folds(vectors, labels)
    assert sorted(np.concatenate([held for _, held in parts])) == list(range(len(topics)))
    for rest, held in parts:
        assert not set(topics[rest]) & set(topics[held])
        assert set(labels[rest]) == set(labels[held]) == {0, 1}


def test_the_temperature_of_a_pool_is_fitted_on_new_topics() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 900)

    def head(strength: float) -> np.ndarray:
        return (np.eye(3)[labels] * strength + rng.normal(0, 1, (900, 3))).astype(np.float32)

    known, new = head(4), head(1)
    (weight,) = pool_weights([known], [new], labels)
    assert weight == pytest.approx(1 / fit_temperature(new, labels), rel=0.05)
    assert weight < fit_pool_weights([known], labels)[0] / 1.5


def test_with_two_categories_the_encoder_is_called_where_it_separates_unknown_texts_better() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(1000) % 2

    def scores(inside: bool, strength: float) -> HeadScores:
        logits = np.eye(2)[labels] * strength + rng.normal(0, 0.5, (1000, 2))
        if not inside:  # the category of the text is left out
            logits = np.where(np.eye(2)[labels] > 0, -np.inf, logits)
        heads = [logits.astype(np.float32)] * 4
        fast = rng.normal(0.5 + 0.25 * inside, 0.2, (1000, 2))  # the encoder's similarity separates better
        return HeadScores(*heads, fast, rng.normal(0.2 + 0.2 * inside, 0.1, 1000))

    held_out = HeldOutScores(scores(True, 3), scores(False, 3))
    ensemble, in_distribution = tune(held_out, scores(True, 0.3), labels)
    assert simulate_cascade(held_out.in_scope, ensemble, in_distribution).escalated.mean() > 0.2
