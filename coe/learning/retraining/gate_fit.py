"""Fits the retrieval gate: from answers with and without passages to one set of weights and shrunk offsets.

Twice the same: for what passages improve and for what they spoil. Shared weights: ridge regression of the mean label
over experts, centred by expert, since how hard a question is for one tells most of how hard it is for another. Then one
logistic regression over all answers calibrates them and finds the offsets of experts, categories and their pairs, pairs
pulled to nothing harder than categories, these harder than experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.core import Encoder, Router
from coe.errors import DataError
from coe.registry.retrieval import RetrievalPrice
from coe.retrieval.gate import (
    CUES,
    Array,
    Gate,
    GateEstimate,
    GateThresholds,
    LogOddsModel,
    RetrievalCost,
    cues,
    posterior_features,
    temper,
)

FOLDS = 5
PENALTIES = (10.0, 30.0, 100.0, 300.0)
FEATURE_SCALES = (0.15, 0.2, 0.05)
"""Of the posterior, its entropy and the cues, each brought to unit spread, beside a unit vector."""
PAIR_SCALE, CATEGORY_SCALE = 0.03, 0.1
"""Scales of the offsets of pairs and of categories, beside 1 for experts."""
MIN_QUESTIONS = 50
"""Questions that a gate takes, so that four fifths of them, without which it is judged on the rest, are LEAST."""
MIN_TRAINING_QUESTIONS = MIN_QUESTIONS * (FOLDS - 1) // FOLDS


@dataclass(frozen=True, slots=True, eq=False)
class GateExamples:
    """n questions, m categories, k experts: what was asked and what passages changed.

    `posterior` (n, m) and `vectors` (n, dimensions) are the served router's and encoder's, `full` (n, m) the router's
    posterior given these vectors; `without` and `with_` (n, k) are scores 0 to 1, NaN where missing; `cosine` (n,) of
    the best passage, NaN where none was looked for; `tokens` and `seconds` (n,) what the passages took.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    texts: tuple[str, ...]
    posterior: Array
    full: Array
    vectors: Array
    without: Array
    with_: Array
    cosine: Array
    tokens: Array
    seconds: Array

    @classmethod
    def seen(cls, texts: Sequence[str], router: Router, encoder: Encoder, **rest: Any) -> GateExamples:
        """With what serving has of the texts: the router's answers, before and after the encoder has read them."""
        embeddings = encoder.features(texts)
        posterior, full = (
            np.stack([found.probabilities for found in router.predict(texts, embeddings=known)]).astype(np.float64)
            for known in (None, embeddings)
        )
        vectors = embeddings[:, : encoder.dimensions].astype(np.float64)
        return cls(router.categories, texts=tuple(texts), posterior=posterior, full=full, vectors=vectors, **rest)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def delta(self) -> Array:
        """What passages changed, shape (n, k), -1 to 1."""
        return np.asarray(self.with_ - self.without)

    def part(self, rows: NDArray[np.int64]) -> GateExamples:
        names = ("posterior", "full", "vectors", "without", "with_", "cosine", "tokens", "seconds")
        arrays: dict[str, Any] = {name: getattr(self, name)[rows] for name in names}
        return replace(self, texts=tuple(self.texts[row] for row in rows), **arrays)


def fit_gate(trials: GateExamples, *, seed: int = 0) -> Gate:
    """Raises DataError where too few questions were answered both ways, or passages never or always helped."""
    delta = trials.delta
    known = np.isfinite(delta)
    if known.any(axis=1).sum() < MIN_TRAINING_QUESTIONS:
        raise DataError(f"a gate needs {MIN_QUESTIONS} questions or more that were answered with and without passages")
    if len(np.unique(delta[known] > 0)) < 2:
        raise DataError("passages always or never improved the answers: there is nothing for a gate to learn")
    folds = _folds(len(trials), seed=seed)
    gate = Gate(
        categories=trials.categories,
        experts=trials.experts,
        helps=_fit_odds(trials, np.where(known, np.maximum(delta, 0.0), np.nan), folds),
        harms=_fit_odds(trials, np.where(known, np.maximum(-delta, 0.0), np.nan), folds),
        measured=np.asarray(known.any(axis=0), dtype=np.float64),
        shift=np.zeros((len(trials.categories), len(trials.experts))),
        spread=np.zeros(len(trials.experts)),
        cost=RetrievalCost(_finite_mean(trials.tokens), _finite_mean(trials.seconds)),
    )
    return replace(
        gate, spread=np.sqrt(np.mean((gate_estimates(gate, trials).gain - _fast_gains(gate, trials)) ** 2, axis=0))
    )


def _fit_odds(trials: GateExamples, label: Array, folds: Sequence[NDArray[np.int64]]) -> LogOddsModel:
    """Of a label (n, k), 0 to 1, NaN where it is not known."""
    target, m = _target(label), len(trials.categories)
    parts = []
    glanced, looked = temper(trials.posterior), temper(trials.full)
    for seen, posterior in ((posterior_features(glanced), glanced), (_features(trials, looked), looked)):
        weights, held_out = _ridge(seen, _scale(seen, m), target, folds)
        slope, offset = _fit_offsets(held_out, posterior, label)
        parts.append((weights * slope, offset, slope * held_out[:, None] + posterior @ offset))
    (glance, first, _), (look, second, odds) = parts
    return LogOddsModel(glance, look, np.stack([first, second]), _evidence_weights(odds, trials.cosine, label))


def held_out(trials: GateExamples, *, seed: int = 0) -> Iterator[tuple[NDArray[np.int64], Gate]]:
    """Every question once: rows of them, and a gate that was fitted without these."""
    for fold in _folds(len(trials), seed=seed):
        yield fold, fit_gate(trials.part(np.setdiff1d(np.arange(len(trials)), fold)), seed=seed)


def gate_estimates(gate: Gate, trials: GateExamples, *, evidence: bool = False) -> GateEstimate:
    """What the gate expects of all trials (n, k), looked at as it serves them."""
    rows = zip(trials.full, trials.texts, trials.vectors, trials.cosine, strict=True)
    found = [
        gate.estimate(p, text, vector, cosine=float(cosine) if evidence and np.isfinite(cosine) else None)
        for p, text, vector, cosine in rows
    ]
    return GateEstimate(np.stack([one.helps for one in found]), np.stack([one.gain for one in found]))


def gate_decisions(gate: Gate, trials: GateExamples, price: RetrievalPrice) -> NDArray[np.bool_]:
    """For which questions and experts (n, k) passages are given, as `Consultant` decides it."""
    bars = GateThresholds.of(gate.cost, price)
    hopes = _fast_gains(gate, trials)
    promises = np.array([[gate.expected_improvement(g, k, bars.search) for k, g in enumerate(row)] for row in hopes])
    before, after = gate_estimates(gate, trials), gate_estimates(gate, trials, evidence=True)
    found = np.isfinite(trials.cosine)[:, None]
    return (promises > bars.encode) & (before.gain > bars.search) & found & (after.gain > bars.insert)


def _fast_gains(gate: Gate, trials: GateExamples) -> Array:
    """Gains (n, k)."""
    return np.stack([gate.estimate_fast(row).gain for row in trials.posterior])


def _target(label: Array) -> Array:
    known = np.isfinite(label)
    filled = np.where(known, label, 0.0)
    centre = filled.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, filled - centre, 0.0)
    return np.asarray(centred.sum(axis=1) / np.maximum(known.sum(axis=1), 1))


def _folds(count: int, *, seed: int) -> Sequence[NDArray[np.int64]]:
    return np.array_split(np.random.default_rng(seed).permutation(count), FOLDS)


def _features(trials: GateExamples, looked: Array) -> Array:
    """As the gate reads them: (n, m + 1 + CUES + dimensions)."""
    said = np.stack([cues(text) for text in trials.texts])
    return np.hstack([posterior_features(looked), said, trials.vectors]).astype(np.float64)


def _scale(seen: Array, categories: int) -> Array:
    """What each column is multiplied with before the one penalty: its group's scale over its spread, 1 for vectors."""
    sizes = (categories, 1, CUES)[: 3 if seen.shape[1] > categories + 1 else 2]
    wanted = np.repeat(FEATURE_SCALES[: len(sizes)], sizes)
    spread = seen[:, : len(wanted)].std(axis=0)
    scaled = np.divide(wanted, spread, out=np.zeros_like(wanted), where=spread > 1e-6)
    return np.concatenate((scaled, np.ones(seen.shape[1] - len(wanted))))


def _ridge(seen: Array, scale: Array, target: Array, folds: Sequence[NDArray[np.int64]]) -> tuple[Array, Array]:
    """Weights for the columns as they are, and predictions held out by fold, with the penalty that does best there."""
    scaled = seen * scale
    errors, held_out = [], []
    for penalty in PENALTIES:
        found = np.zeros(len(target))
        for fold in folds:
            rest = np.setdiff1d(np.arange(len(target)), fold)
            found[fold] = scaled[fold] @ _solve(scaled[rest], target[rest], penalty)
        errors.append(float(np.var(found - target)))
        held_out.append(found)
    best = int(np.argmin(errors))
    return scale * _solve(scaled, target, PENALTIES[best]), held_out[best]


def _solve(seen: Array, target: Array, penalty: float) -> Array:
    centred = seen - seen.mean(axis=0)
    gram = centred @ centred.T + penalty * np.eye(len(target))
    return np.asarray(centred.T @ np.linalg.solve(gram, target - target.mean()))


def _fit_offsets(need: Array, posterior: Array, label: Array) -> tuple[float, Array]:
    """The slope of the shared need and the offsets (m, k), by one logistic regression over all answers."""
    m, k = posterior.shape[1], label.shape[1]
    rows, columns = np.nonzero(np.isfinite(label))
    spread = max(float(need.std()), 1e-9)
    design = np.zeros((len(rows), 1 + k + m + m * k))
    design[:, 0] = need[rows] / spread
    design[np.arange(len(rows)), 1 + columns] = 1.0
    design[:, 1 + k : 1 + k + m] = CATEGORY_SCALE * posterior[rows]
    pairs = 1 + k + m + columns[:, None] * m + np.arange(m)
    design[np.arange(len(rows))[:, None], pairs] = PAIR_SCALE * posterior[rows]
    found, constant = _logistic(design, label[rows, columns])
    expert, category = found[1 : 1 + k], CATEGORY_SCALE * found[1 + k : 1 + k + m]
    pair = PAIR_SCALE * found[1 + k + m :].reshape(k, m).T
    offset = constant + expert[None, :] + category[:, None] + pair
    return max(float(found[0]), 0.0) / spread, offset


def _evidence_weights(odds: Array, cosine: Array, label: Array) -> Array:
    """Weights of log-odds (n, k), cosine and a constant; nothing changes where no cosine is known."""
    known = np.isfinite(label) & np.isfinite(cosine)[:, None]
    if known.sum() < MIN_TRAINING_QUESTIONS:
        return np.array([1.0, 0.0, 0.0])
    rows, columns = np.nonzero(known)
    found, constant = _logistic(np.stack([odds[rows, columns], 5 * cosine[rows]], axis=1), label[rows, columns])
    return np.array([max(found[0], 0.0), 5 * found[1], constant])


def _logistic(design: Array, label: Array) -> tuple[Array, float]:
    """Weights and constant for labels 0 to 1; where all are alike the constant alone, by their number."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(label)) < 2:
        rate = (label.sum() + 0.5) / (len(label) + 1)
        return np.zeros(design.shape[1]), float(np.log(rate / (1 - rate)))
    model = LogisticRegression(C=1.0, max_iter=500)
    model.fit(np.vstack([design, design]), np.repeat([1, 0], len(label)), np.concatenate([label, 1 - label]))
    return model.coef_[0], float(model.intercept_[0])


def _finite_mean(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else 0.0
