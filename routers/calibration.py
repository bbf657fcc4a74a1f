"""Calibration and selective classification: from logits and similarities to probabilities, and thresholds for them.

Training fits temperatures and weights of the pool of the heads (a logarithmic opinion pool), measures calibration (ECE,
Guo et al. 2017), AUROC, risk and coverage (Geifman and El-Yaniv 2017), and chooses the thresholds for escalation and
for the general expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def logarithmic_pool(heads: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Return the weighted sum of the heads' logits, each (n_texts, n_categories)."""
    total = np.zeros_like(heads[0])
    for weight, head in zip(weights, heads, strict=True):
        total += np.float32(weight) * head
    return total


def log_loss(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood of `labels` under `logits` (n_texts, n_categories), in nats."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]))


def fit_temperature(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Return the temperature (1/20 to 20) that minimises the log loss of `logits` divided by it."""
    return 1.0 / fit_pool_weights([logits], labels)[0]


def fit_pool_weights(heads: Sequence[Floats], labels: NDArray[np.int64]) -> tuple[float, ...]:
    """Return the non-negative weights of a logarithmic pool that minimise its log loss.

    The loss is convex in the weights. Coordinate descent over a shrinking geometric grid needs no solver and cannot
    diverge.
    """
    weights = [1.0 / len(heads)] * len(heads)
    width = 4.5  # in powers of two around the current weight, so 1/20 to 20 at first
    for _ in range(4):
        for _sweep in range(3 if len(heads) > 1 else 1):
            for index, head in enumerate(heads):
                others = logarithmic_pool(heads, [0.0 if i == index else w for i, w in enumerate(weights)])
                choices = weights[index] * 2.0 ** np.linspace(-width, width, 13)
                losses = [log_loss(others + choice * head, labels) for choice in choices]
                weights[index] = float(choices[int(np.argmin(losses))])
        width /= 4
    return tuple(weights)


def reliability(confidence: Floats, correct: NDArray[np.bool_], *, bins: int = 10) -> list[dict[str, float]]:
    """Return count, mean confidence and accuracy of the non-empty bins of equal width over [0, 1]."""
    where = np.minimum((confidence * bins).astype(int), bins - 1)
    groups = [where == index for index in range(bins)]
    return [
        {"count": int(g.sum()), "confidence": float(confidence[g].mean()), "accuracy": float(correct[g].mean())}
        for g in groups
        if g.any()
    ]


def expected_calibration_error(confidence: Floats, correct: NDArray[np.bool_]) -> float:
    """Mean distance between confidence and accuracy over reliability bins, weighted by count."""
    bins = reliability(confidence, correct)
    return sum(one["count"] * abs(one["confidence"] - one["accuracy"]) for one in bins) / max(len(confidence), 1)


def risk_coverage(confidence: Floats, correct: NDArray[np.bool_], *, points: int = 20) -> list[dict[str, float]]:
    """Return points of rising coverage (share of texts accepted, most confident first), each with the risk (their error
    rate) and the lowest confidence accepted."""
    order = np.argsort(-confidence, kind="stable")
    counts = np.unique(np.linspace(1, len(order), points + 1).astype(int)[1:])
    risk = np.cumsum(~correct[order])[counts - 1] / counts
    rows = np.column_stack((counts / len(order), risk, confidence[order][counts - 1])).tolist()
    return [dict(zip(("coverage", "risk", "confidence"), row, strict=True)) for row in rows]


def auroc(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative (ties count half); 0.5 if either class is empty."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, score)) if 0 < positive.sum() < len(positive) else 0.5


def choose_escalation_threshold(
    confidence: Floats,
    fast_correct: NDArray[np.bool_],
    encoder_correct: NDArray[np.bool_],
    *,
    max_escalated: float,
    max_loss: float,
) -> float:
    """Return the lowest confidence at which the fast prediction is kept.

    Escalates the fewest texts that keep accuracy within `max_loss` of the best accuracy reachable with at most the
    share `max_escalated` escalated. `fast_correct` and `encoder_correct` mark the texts each stage classifies
    correctly."""
    order = np.argsort(confidence, kind="stable")
    gain = np.concatenate(([0.0], np.cumsum(encoder_correct[order].astype(float) - fast_correct[order].astype(float))))
    accuracy = fast_correct.mean() + gain / len(order)
    allowed = accuracy[: int(max_escalated * len(order)) + 1]
    escalated = int(np.argmax(allowed >= allowed.max() - max_loss))
    return float(np.nextafter(confidence[order[escalated - 1]], np.float32(2))) if escalated else 0.0


def choose_separation_threshold(
    fast: Floats, encoder: Floats, in_scope: NDArray[np.bool_], *, max_escalated: float, max_loss: float
) -> float:
    """Return the lowest confidence at which the fast prediction is kept, judged by out-of-scope detection.

    Escalates the fewest in-scope texts, at most the share `max_escalated`, that keep the AUROC of confidence (in-scope
    against out-of-scope) within `max_loss` of the best reachable. `fast` and `encoder` are the stages' confidences.
    """
    thresholds = [float(np.quantile(fast[in_scope], share)) for share in np.linspace(0, max_escalated, 15)]
    scores = np.array([auroc(np.where(fast < threshold, encoder, fast), in_scope) for threshold in thresholds])
    return thresholds[int(np.argmax(scores >= scores.max() - max_loss))]


def choose_confidence_threshold(
    confidence: Floats, correct: NDArray[np.bool_], in_scope: NDArray[np.bool_], *, max_rejected: float
) -> float:
    """Return the confidence below which a prediction is rejected (sent to the general expert).

    Rejects texts, least confident first, as long as most of the rejected ones are wrong, and at most the share
    `max_rejected` of the `in_scope` ones.
    """
    order = np.argsort(confidence, kind="stable")
    gain = np.concatenate(([0], np.cumsum(np.where(correct[order], -1, 1))))
    rejected_in_scope = np.concatenate(([0], np.cumsum(in_scope[order])))
    allowed = gain[rejected_in_scope <= max_rejected * max(1, int(in_scope.sum()))]
    count = int(np.argmax(allowed))
    return float(confidence[order[count]]) if count < len(order) else 1.0
