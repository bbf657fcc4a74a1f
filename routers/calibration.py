"""Calibration: temperature, pooling of heads, expected error, risk and coverage, and when to escalate. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def softmax(logits: Floats) -> Floats:
    """Over the last axis."""
    largest: Floats = np.maximum.reduce(logits, axis=-1, keepdims=True)
    shifted = np.exp(logits - largest)
    total: Floats = np.add.reduce(shifted, axis=-1, keepdims=True)
    result: Floats = shifted / total
    return result


def logarithmic_pool(heads: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """The logarithmic pool of `heads`: their logits, each (n_texts, n_categories), summed with `weights`."""
    total = np.zeros_like(heads[0])
    for weight, head in zip(weights, heads, strict=True):
        total += np.float32(weight) * head
    return total


def log_loss(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood of `labels` under `logits` (n_texts, n_categories), in nats."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]))


def fit_temperature(logits: Floats, labels: NDArray[np.int64]) -> float:
    """The temperature to divide `logits` by that makes `labels` likeliest, between 1/20 and 20."""
    return 1.0 / fit_pool_weights([logits], labels)[0]


def fit_pool_weights(heads: Sequence[Floats], labels: NDArray[np.int64], *, rounds: int = 4) -> tuple[float, ...]:
    """Non-negative weights of a logarithmic pool, sum of weight times logits, that make `labels` likeliest.

    The loss is convex in the weights; each is searched in turn over a shrinking geometric grid, which needs no solver
    and cannot diverge.
    """
    weights = [1.0 / len(heads)] * len(heads)
    width = 4.5  # in powers of two around the present value, so 1/20 to 20 at first
    for _ in range(rounds):
        for _sweep in range(3 if len(heads) > 1 else 1):
            for index, head in enumerate(heads):
                rest = logarithmic_pool(heads, [0.0 if i == index else w for i, w in enumerate(weights)])
                choices = weights[index] * 2.0 ** np.linspace(-width, width, 13)
                losses = [log_loss(rest + choice * head, labels) for choice in choices]
                weights[index] = float(choices[int(np.argmin(losses))])
        width /= 4
    return tuple(weights)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Predictions of like confidence: how many, their mean confidence and their accuracy."""

    count: int
    confidence: float
    accuracy: float


def reliability(confidence: Floats, correct: NDArray[np.bool_], *, bins: int = 10) -> list[ReliabilityBin]:
    """Non-empty bins of equal width over [0, 1]."""
    where = np.minimum((confidence * bins).astype(int), bins - 1)
    groups = [where == index for index in range(bins)]
    return [
        ReliabilityBin(count=int(g.sum()), confidence=float(confidence[g].mean()), accuracy=float(correct[g].mean()))
        for g in groups
        if g.any()
    ]


def expected_calibration_error(confidence: Floats, correct: NDArray[np.bool_], *, bins: int = 10) -> float:
    """Mean distance between confidence and accuracy over reliability bins, weighted by count (Guo et al. 2017)."""
    found = reliability(confidence, correct, bins=bins)
    total = sum(b.count for b in found)
    return sum(b.count * abs(b.confidence - b.accuracy) for b in found) / total if total else 0.0


def risk_coverage(confidence: Floats, correct: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Coverage (share answered, rising) and risk (error rate among those) when the surest are answered first."""
    order = np.argsort(-confidence, kind="stable")
    count = np.arange(1, len(order) + 1)
    risk = np.cumsum(~correct[order]) / count
    return (count / max(1, len(order))).astype(np.float32), risk.astype(np.float32)


def choose_escalation_threshold(
    confidence: Floats,
    cheap: NDArray[np.bool_],
    full: NDArray[np.bool_],
    *,
    most: float,
    loss: float,
) -> float:
    """The lowest confidence at which the cheap answer is kept.

    Escalates as few texts as keep accuracy within `loss` of the best reachable with at most the share `most` escalated.
    `cheap` and `full` say which texts each stage gets right.
    """
    order = np.argsort(confidence, kind="stable")
    gain = np.concatenate(([0.0], np.cumsum(full[order].astype(float) - cheap[order].astype(float))))
    accuracy = cheap.mean() + gain / len(order)
    allowed = accuracy[: int(most * len(order)) + 1]
    escalated = int(np.argmax(allowed >= allowed.max() - loss))
    return float(np.nextafter(confidence[order[escalated - 1]], np.float32(2))) if escalated else 0.0


def auroc(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative (ties count half); 0.5 where one of the two is missing."""
    negatives = int((~positive).sum())
    if not 0 < negatives < len(positive):
        return 0.5
    values, index = np.unique(score, return_inverse=True)
    below = np.bincount(index, weights=~positive, minlength=len(values))
    return float((np.cumsum(below) - below / 2)[index[positive]].mean() / negatives)


def choose_separation_threshold(
    cheap: Floats,
    full: Floats,
    known: NDArray[np.bool_],
    *,
    most: float,
    loss: float,
) -> float:
    """The lowest confidence at which the cheap answer is kept, by how well confidence tells `known` texts from others.

    Escalates as few known texts, at most the share `most` of them, as keep that AUROC within `loss` of the best
    reachable. `cheap` and `full` are the confidences of the two stages.
    """
    steps = [float(np.quantile(cheap[known], share)) for share in np.linspace(0, most, 15)]
    told = np.array([auroc(np.where(cheap < step, full, cheap), known) for step in steps])
    return steps[int(np.argmax(told >= told.max() - loss))]


def choose_confidence_threshold(
    confidence: Floats, right: NDArray[np.bool_], known: NDArray[np.bool_], *, most: float
) -> float:
    """The confidence below which an answer is in doubt, read off risk and coverage.

    Turns texts away, the least sure first, as long as more of them are wrong than right, and no more than the share
    `most` of the `known` ones.
    """
    order = np.argsort(confidence, kind="stable")
    gain = np.concatenate(([0], np.cumsum(np.where(right[order], -1, 1))))
    turned = np.concatenate(([0], np.cumsum(known[order])))
    allowed = gain[turned <= most * max(1, int(known.sum()))]
    count = int(np.argmax(allowed))
    return float(confidence[order[count]]) if count < len(order) else 1.0
