"""What the views of held-out texts ask for: the heads' weights, familiarity, thresholds; and how good that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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
    logarithmic_pool,
    reliability,
    risk_coverage,
    softmax,
)
from routers.cascade import EnsembleWeights, InDistributionModels
from routers.heads.in_distribution import fit_in_distribution_model
from routers.training.fitting import HeadScores, HeldOutScores, Labels

MAX_ESCALATED_SHARE = 0.35
MAX_ACCURACY_LOSS = 0.005
MAX_AUROC_LOSS = 0.002
"""The cheap stage keeps as much as it can within these losses of accuracy and of the AUROC of confidence, and at least
1 - MOST_ESCALATED."""
MAX_REJECTED_SHARE = 0.05
"""Share of known texts that the suggested `confidence_threshold` may turn away."""


@dataclass(frozen=True, slots=True)
class CascadeOutputs:
    """What the cascade answers: a posterior (n_texts, n_categories), its confidence and who was `escalated`."""

    posterior: Floats
    confidence: Floats
    escalated: NDArray[np.bool_]

    def right(self, labels: Labels) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self.posterior.argmax(axis=1) == labels
        return found


def tune(held_out: HeldOutScores, labels: Labels) -> tuple[EnsembleWeights, InDistributionModels]:
    """Weights, familiarity and escalation."""
    known, unknown = held_out.known, held_out.unknown
    familiarities = InDistributionModels(
        cheap=fit_in_distribution_model(known.near, unknown.near),
        full=fit_in_distribution_model(known.similarity[:, None], unknown.similarity[:, None]),
    )
    pooling = EnsembleWeights(
        cheap=fit_pool_weights(known.heads[:2], labels), full=fit_pool_weights(known.heads, labels), threshold=0.0
    )
    return replace(pooling, threshold=_threshold(held_out, labels, pooling, familiarities)), familiarities


def simulate_cascade(
    views: HeadScores, pooling: EnsembleWeights, familiarities: InDistributionModels
) -> CascadeOutputs:
    """As CascadeRouter serves texts with these `views`."""
    cheap, cheap_confidence = _cheap(views, pooling, familiarities)
    full, full_confidence = _full(views, pooling, familiarities)
    escalated = cheap_confidence < pooling.threshold
    return CascadeOutputs(
        posterior=np.where(escalated[:, None], full, cheap),
        confidence=np.where(escalated, full_confidence, cheap_confidence),
        escalated=escalated,
    )


def _cheap(views: HeadScores, pooling: EnsembleWeights, familiarities: InDistributionModels) -> tuple[Floats, Floats]:
    posterior = pooling.join_cheap(views.lexical, views.static)
    return posterior, posterior.max(axis=1) * familiarities.cheap(views.near)


def _full(views: HeadScores, pooling: EnsembleWeights, familiarities: InDistributionModels) -> tuple[Floats, Floats]:
    posterior = pooling.join_full(views.heads)
    return posterior, posterior.max(axis=1) * familiarities.full(views.similarity[:, None])


def _threshold(
    held_out: HeldOutScores, labels: Labels, pooling: EnsembleWeights, familiarities: InDistributionModels
) -> float:
    """The lowest confidence at which the cheap answer is kept, so that neither accuracy nor confidence suffers."""
    (cheap, sure), (full, surer) = (stage(held_out.known, pooling, familiarities) for stage in (_cheap, _full))
    right, righter = cheap.argmax(axis=1) == labels, full.argmax(axis=1) == labels
    for_accuracy = choose_escalation_threshold(sure, right, righter, most=MAX_ESCALATED_SHARE, loss=MAX_ACCURACY_LOSS)
    for_doubt = choose_separation_threshold(
        np.concatenate((sure, _cheap(held_out.unknown, pooling, familiarities)[1])),
        np.concatenate((surer, _full(held_out.unknown, pooling, familiarities)[1])),
        np.repeat([True, False], len(labels)),
        most=MAX_ESCALATED_SHARE,
        loss=MAX_AUROC_LOSS,
    )
    return max(for_accuracy, for_doubt)


def training_metrics(
    held_out: HeldOutScores,
    labels: Labels,
    categories: Sequence[str],
    pooling: EnsembleWeights,
    familiarities: InDistributionModels,
) -> dict[str, Any]:
    """Held-out accuracy, calibration and escalation of the cascade and its parts, and what doubt is worth.

    `confidence_threshold` is the suggested confidence below which the general expert should answer; `doubted` and
    `doubted_unknown` are the shares of known texts and of stand-ins for unknown ones that it turns away.
    """
    known, unknown = (simulate_cascade(views, pooling, familiarities) for views in (held_out.known, held_out.unknown))
    right = known.right(labels)
    confidence_threshold = choose_confidence_threshold(
        np.concatenate((known.confidence, unknown.confidence)),
        np.concatenate((right, np.zeros_like(right))),
        np.repeat([True, False], len(labels)),
        most=MAX_REJECTED_SHARE,
    )
    return {
        "accuracy": float(right.mean()),
        "accuracy_by_category": {name: float(right[labels == i].mean()) for i, name in enumerate(categories)},
        "accuracy_by_head": _by_head(held_out.known, labels, pooling),
        "escalated": float(known.escalated.mean()),
        "threshold": pooling.threshold,
        "ece_before": _ece_before(held_out.known, labels, known.escalated),
        "ece": expected_calibration_error(known.confidence, right),
        "reliability": [asdict(found) for found in reliability(known.confidence, right)],
        "risk_coverage": _curve(known.confidence, right),
        "confusion": {"categories": list(categories), "counts": _confusion(known.posterior, labels)},
        "unknown_auroc": auroc(
            np.concatenate((known.confidence, unknown.confidence)), np.repeat([True, False], len(labels))
        ),
        "confidence_threshold": confidence_threshold,
        "doubted": float((known.confidence < confidence_threshold).mean()),
        "doubted_unknown": float((unknown.confidence < confidence_threshold).mean()),
    }


def _by_head(views: HeadScores, labels: Labels, pooling: EnsembleWeights) -> dict[str, float]:
    parts = dict(zip(("lexical", "static", "linear", "knn"), views.heads, strict=True))
    parts |= {
        "cheap": logarithmic_pool(views.heads[:2], pooling.cheap),
        "full": logarithmic_pool(views.heads, pooling.full),
    }
    return {name: float((logits.argmax(axis=1) == labels).mean()) for name, logits in parts.items()}


def _ece_before(views: HeadScores, labels: Labels, escalated: NDArray[np.bool_]) -> float:
    """Of the plain mean of the same heads' logits."""
    plain = (logarithmic_pool(heads, [1 / len(heads)] * len(heads)) for heads in (views.heads, views.heads[:2]))
    posterior = softmax(np.where(escalated[:, None], *plain))
    return expected_calibration_error(posterior.max(axis=1), posterior.argmax(axis=1) == labels)


def _curve(confidence: Floats, right: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Risk at 20 coverages, and the confidence from which on that share is answered."""
    coverage, risk = risk_coverage(confidence, right)
    surest = np.sort(confidence)[::-1]
    at = np.unique(np.linspace(0, len(risk) - 1, 21).astype(int)[1:])
    return [{"coverage": float(coverage[i]), "risk": float(risk[i]), "confidence": float(surest[i])} for i in at]


def _confusion(posterior: Floats, labels: Labels) -> list[list[int]]:
    """How many texts of each category (a row) were taken for which (a column)."""
    size = posterior.shape[1]
    found: list[list[int]] = (
        np.bincount(labels * size + posterior.argmax(axis=1), minlength=size**2).reshape(size, size).tolist()
    )
    return found
