"""Fit the ensemble on held-out scores: pool weights, in-distribution models, thresholds; and report the metrics.

`tune` chooses the parameters, `training_metrics` measures the cascade that results. Both use out-of-fold scores only
(see `routers.training.fitting`). Random folds decide everything but the temperatures: those are fitted on folds of
whole topics, because real traffic differs from the training texts, and heads are overconfident on what is new to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.calibration import (
    Floats,
    auroc,
    choose_confidence_threshold,
    choose_escalation_threshold,
    choose_separation_threshold,
    expected_calibration_error,
    fit_pool_weights,
    fit_temperature,
    logarithmic_pool,
    reliability,
    risk_coverage,
)
from routers.cascade import EnsembleWeights, InDistributionModel, InDistributionModels
from routers.training.fitting import HeadScores, HeldOutScores, Labels

MAX_ESCALATED_SHARE = 0.48
MAX_ACCURACY_LOSS = 0.002
MAX_AUROC_LOSS = 0.002
"""The fast stage keeps as many texts as these losses of accuracy and of out-of-scope AUROC allow, and at least
1 - MAX_ESCALATED_SHARE of them: more than half, so that the median latency is that of the fast heads
(docs/experiments/cascade-and-encoders.md)."""
MAX_REJECTED_SHARE = 0.05
"""In-scope texts that the suggested `confidence_threshold` may send to the general expert."""
OUT_OF_SCOPE_SHARE = 0.03
"""Assumed share of out-of-scope requests, which the data do not show. A higher value costs calibration."""


@dataclass(frozen=True, slots=True)
class CascadeOutputs:
    """Predictions of the cascade: `posterior` (n_texts, n_categories), its `confidence` and which are `escalated`."""

    posterior: Floats
    confidence: Floats
    escalated: NDArray[np.bool_]

    def correct(self, labels: Labels) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self.posterior.argmax(axis=1) == labels
        return found


def fit_in_distribution_model(in_scope: Floats, out_of_scope: Floats) -> InDistributionModel:
    """Fit the model on the features (n_texts, n_features) of held-out texts in scope and out of scope."""
    from sklearn.linear_model import LogisticRegression

    labels = np.arange(len(in_scope) + len(out_of_scope)) < len(in_scope)
    model = LogisticRegression(C=100, class_weight="balanced").fit(np.concatenate((in_scope, out_of_scope)), labels)
    prior = np.log((1 - OUT_OF_SCOPE_SHARE) / OUT_OF_SCOPE_SHARE)
    return InDistributionModel(weights=tuple(map(float, model.coef_[0])), bias=float(model.intercept_[0] + prior))


def tune(
    held_out: HeldOutScores, new_topics: HeadScores, labels: Labels
) -> tuple[EnsembleWeights, InDistributionModels]:
    """Fit pool weights, temperatures, in-distribution models and the escalation threshold.

    `held_out` are scores from random folds, `new_topics` those of the same texts from folds of whole topics.
    """
    inside, outside = held_out.in_scope, held_out.out_of_scope
    in_distribution = InDistributionModels(
        fast=fit_in_distribution_model(inside.fast_similarity, outside.fast_similarity),
        encoder=fit_in_distribution_model(inside.similarity[:, None], outside.similarity[:, None]),
    )
    ensemble = EnsembleWeights(
        fast=pool_weights(inside.heads[:2], new_topics.heads[:2], labels),
        encoder=pool_weights(inside.heads, new_topics.heads, labels),
        threshold=0.0,
    )
    threshold = _escalation_threshold(held_out, labels, ensemble, in_distribution)
    return replace(ensemble, threshold=threshold), in_distribution


def pool_weights(heads: Sequence[Floats], new_topics: Sequence[Floats], labels: Labels) -> tuple[float, ...]:
    """Return the weights of the pool of `heads`, divided by the temperature of the same pool on `new_topics`."""
    weights = fit_pool_weights(heads, labels)
    temperature = fit_temperature(logarithmic_pool(new_topics, weights), labels)
    return tuple(weight / temperature for weight in weights)


def simulate_cascade(
    scores: HeadScores, ensemble: EnsembleWeights, in_distribution: InDistributionModels
) -> CascadeOutputs:
    """Predict as CascadeRouter does for texts with these `scores`."""
    fast, fast_confidence = _fast(scores, ensemble, in_distribution)
    encoder, encoder_confidence = _encoder(scores, ensemble, in_distribution)
    escalated = fast_confidence < ensemble.threshold
    return CascadeOutputs(
        posterior=np.where(escalated[:, None], encoder, fast),
        confidence=np.where(escalated, encoder_confidence, fast_confidence),
        escalated=escalated,
    )


def _fast(
    scores: HeadScores, ensemble: EnsembleWeights, in_distribution: InDistributionModels
) -> tuple[Floats, Floats]:
    """Return posterior and confidence of the fast stage."""
    posterior = ensemble.fast_posterior(scores.lexical, scores.static)
    return posterior, posterior.max(axis=1) * in_distribution.fast(scores.fast_similarity)


def _encoder(
    scores: HeadScores, ensemble: EnsembleWeights, in_distribution: InDistributionModels
) -> tuple[Floats, Floats]:
    """Return posterior and confidence of the encoder stage."""
    posterior = ensemble.encoder_posterior(scores.heads)
    return posterior, posterior.max(axis=1) * in_distribution.encoder(scores.similarity[:, None])


def _escalation_threshold(
    held_out: HeldOutScores, labels: Labels, ensemble: EnsembleWeights, in_distribution: InDistributionModels
) -> float:
    """Return the lowest confidence at which the fast prediction is kept, so that neither accuracy nor the separation
    of out-of-scope texts suffers."""
    fast, fast_confidence = _fast(held_out.in_scope, ensemble, in_distribution)
    encoder, encoder_confidence = _encoder(held_out.in_scope, ensemble, in_distribution)
    for_accuracy = choose_escalation_threshold(
        fast_confidence,
        fast.argmax(axis=1) == labels,
        encoder.argmax(axis=1) == labels,
        max_escalated=MAX_ESCALATED_SHARE,
        max_loss=MAX_ACCURACY_LOSS,
    )
    outside = held_out.out_of_scope
    outside_fast = _fast(outside, ensemble, in_distribution)[1]
    outside_encoder = _encoder(outside, ensemble, in_distribution)[1]
    if fast.shape[1] == 2:  # without its own category, a text has one left, of probability 1
        outside_fast *= fast.max(axis=1).mean()
        outside_encoder *= encoder.max(axis=1).mean()
    for_separation = choose_separation_threshold(
        np.concatenate((fast_confidence, outside_fast)),
        np.concatenate((encoder_confidence, outside_encoder)),
        np.repeat([True, False], len(labels)),
        max_escalated=MAX_ESCALATED_SHARE,
        max_loss=MAX_AUROC_LOSS,
    )
    return max(for_accuracy, for_separation)


def training_metrics(
    held_out: HeldOutScores,
    new_topics: HeadScores,
    labels: Labels,
    categories: Sequence[str],
    ensemble: EnsembleWeights,
    in_distribution: InDistributionModels,
) -> dict[str, Any]:
    """Return held-out accuracy, calibration, escalation and out-of-scope detection of the cascade and its parts.

    `ece`, `reliability` and `accuracy_on_new_topics` are of topics that were left out, all other metrics
    of random folds.
    `confidence_threshold` is the suggested confidence below which the general expert answers; `rejected` and
    `rejected_out_of_scope` are the shares of in-scope and simulated out-of-scope texts below it.
    """
    inside, outside = (
        simulate_cascade(scores, ensemble, in_distribution) for scores in (held_out.in_scope, held_out.out_of_scope)
    )
    correct = inside.correct(labels)
    confidence = np.concatenate((inside.confidence, outside.confidence))
    in_scope = np.repeat([True, False], len(labels))
    confidence_threshold = choose_confidence_threshold(
        confidence, np.concatenate((correct, np.zeros_like(correct))), in_scope, max_rejected=MAX_REJECTED_SHARE
    )
    new = simulate_cascade(new_topics, ensemble, in_distribution)
    new_correct = new.correct(labels)
    return {
        "accuracy_on_new_topics": float(new_correct.mean()),
        "ece": expected_calibration_error(new.confidence, new_correct),
        "reliability": reliability(new.confidence, new_correct),
        "accuracy": float(correct.mean()),
        "accuracy_by_category": {name: float(correct[labels == i].mean()) for i, name in enumerate(categories)},
        "escalated": float(inside.escalated.mean()),
        "threshold": ensemble.threshold,
        "risk_coverage": _risk_coverage_points(inside.confidence, correct),
        "confusion": {"categories": list(categories), "counts": _confusion(inside.posterior, labels)},
        "out_of_scope_auroc": auroc(confidence, in_scope),
        "confidence_threshold": confidence_threshold,
        "rejected": float((inside.confidence < confidence_threshold).mean()),
        "rejected_out_of_scope": float((outside.confidence < confidence_threshold).mean()),
    }


def _risk_coverage_points(confidence: Floats, correct: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Return risk at 20 coverages, with the lowest confidence accepted at each."""
    coverage, risk = risk_coverage(confidence, correct)
    sorted_confidence = np.sort(confidence)[::-1]
    at = np.unique(np.linspace(0, len(risk) - 1, 21).astype(int)[1:])
    return [
        {"coverage": float(coverage[i]), "risk": float(risk[i]), "confidence": float(sorted_confidence[i])} for i in at
    ]


def _confusion(posterior: Floats, labels: Labels) -> list[list[int]]:
    """Return the counts of texts by true category (row) and predicted category (column)."""
    from sklearn.metrics import confusion_matrix

    found: list[list[int]] = confusion_matrix(
        labels, posterior.argmax(axis=1), labels=range(posterior.shape[1])
    ).tolist()
    return found
