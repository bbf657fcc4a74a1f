"""Fits the retrieval gate: from answers with and without passages to one set of weights and shrunk offsets.

Shared weights: ridge regression of the mean label over experts, centred by expert, since how hard a question is for one
tells most of how hard it is for another. Then one logistic regression over all answers calibrates them and finds the
offsets of experts, categories and their pairs, pairs pulled to nothing harder than categories, these harder than
experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import DataError
from coe.retrieval.cues import CUES, cues
from coe.retrieval.gate import Array, Gate, Use, shape

FOLDS = 5
PENALTIES = (10.0, 30.0, 100.0, 300.0)
SCALES = (0.15, 0.2, 0.05)
"""Of the posterior, its entropy and the cues, each brought to unit spread, beside a unit vector."""
PAIRS, CATEGORIES = 0.03, 0.1
"""Scales of the offsets of pairs and of categories, beside 1 for experts."""
FEWEST = 40
PSEUDO_COUNT = 10.0
"""Answers for which the mean of all experts stands in the gain of each."""


@dataclass(frozen=True, slots=True, eq=False)
class Trials:
    """n questions, m categories, k experts: what was asked and what passages changed.

    `posterior` (n, m) and `vectors` (n, dimensions) are the served router's and encoder's; `without` and `with_` (n, k)
    are scores 0 to 1, NaN where missing; `cosine` (n,) of the best passage, NaN where none was looked for; `tokens` and
    `seconds` (n,) what the passages took.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    texts: tuple[str, ...]
    posterior: Array
    vectors: Array
    without: Array
    with_: Array
    cosine: Array
    tokens: Array
    seconds: Array

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def delta(self) -> Array:
        """What passages changed, shape (n, k), -1 to 1."""
        return np.asarray(self.with_ - self.without)

    def part(self, rows: NDArray[np.int64]) -> Trials:
        names = ("posterior", "vectors", "without", "with_", "cosine", "tokens", "seconds")
        arrays: dict[str, Any] = {name: getattr(self, name)[rows] for name in names}
        return replace(self, texts=tuple(self.texts[row] for row in rows), **arrays)


def fit_gate(trials: Trials, *, seed: int = 0) -> Gate:
    """Raises DataError where too few questions were answered both ways, or passages never or always helped."""
    improved = _improved(trials)
    known = np.isfinite(improved)
    if known.any(axis=1).sum() < FEWEST:
        raise DataError(f"a gate needs {FEWEST} questions or more that were answered with and without passages")
    if len(np.unique(improved[known] > 0)) < 2:
        raise DataError("passages always or never improved the answers: there is nothing for a gate to learn")
    target = _target(improved, known)
    folds = _folds(len(trials), seed=seed)
    seen = _features(trials)
    parts = []
    for columns in (slice(0, len(trials.categories) + 1), slice(None)):
        scale = _scale(seen[:, columns], len(trials.categories))
        weights, held_out = _ridge(seen[:, columns], scale, target, folds)
        slope, offset = _offsets(held_out, trials.posterior, improved)
        parts.append((weights * slope, offset, slope * held_out[:, None] + trials.posterior @ offset))
    (glance, first, _), (look, second, odds) = parts
    up, down = _gains(trials.delta, improved)
    return Gate(
        categories=trials.categories,
        experts=trials.experts,
        glance=glance,
        look=look,
        offset=np.stack([first, second]),
        evidence=_evidence(odds, trials.cosine, improved),
        up=up,
        down=down,
        use=Use(_known_mean(trials.tokens), _known_mean(trials.seconds)),
    )


def cross_fitted(trials: Trials, *, seed: int = 0, evidence: bool = False) -> Array:
    """Probabilities (n, k), each by a gate fitted without that question; with `evidence`, after the look-up."""
    found = np.full(trials.without.shape, np.nan)
    for fold in _folds(len(trials), seed=seed):
        rest = np.setdiff1d(np.arange(len(trials)), fold)
        found[fold] = chances(fit_gate(trials.part(rest), seed=seed), trials.part(fold), evidence=evidence)
    return found


def chances(gate: Gate, trials: Trials, *, evidence: bool = False) -> Array:
    """The gate's probabilities (n, k) as it serves them."""
    rows = zip(trials.posterior, trials.texts, trials.vectors, trials.cosine, strict=True)
    return np.stack(
        [
            gate.looked(p, text, vector, cosine=float(cosine) if evidence and np.isfinite(cosine) else None)
            for p, text, vector, cosine in rows
        ]
    )


def _improved(trials: Trials) -> Array:
    """1 where passages made an answer better, 0 where not, NaN where that is not known."""
    delta = trials.delta
    return np.where(np.isfinite(delta), np.maximum(delta, 0.0), np.nan)


def _target(improved: Array, known: NDArray[np.bool_]) -> Array:
    filled = np.where(known, improved, 0.0)
    centre = filled.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, filled - centre, 0.0)
    return np.asarray(centred.sum(axis=1) / np.maximum(known.sum(axis=1), 1))


def _folds(count: int, *, seed: int) -> Sequence[NDArray[np.int64]]:
    return np.array_split(np.random.default_rng(seed).permutation(count), FOLDS)


def _features(trials: Trials) -> Array:
    """As the gate reads them: (n, m + 1 + CUES + dimensions)."""
    said = np.stack([cues(text) for text in trials.texts])
    return np.hstack([shape(trials.posterior), said, trials.vectors]).astype(np.float64)


def _scale(seen: Array, categories: int) -> Array:
    """What each column is multiplied with before the one penalty: its group's scale over its spread, 1 for vectors."""
    sizes = (categories, 1, CUES)[: 3 if seen.shape[1] > categories + 1 else 2]
    wanted = np.repeat(SCALES[: len(sizes)], sizes)
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


def _offsets(need: Array, posterior: Array, improved: Array) -> tuple[float, Array]:
    """The slope of the shared need and the offsets (m, k), by one logistic regression over all answers."""
    from sklearn.linear_model import LogisticRegression

    m, k = posterior.shape[1], improved.shape[1]
    rows, columns = np.nonzero(np.isfinite(improved))
    spread = max(float(need.std()), 1e-9)
    design = np.zeros((len(rows), 1 + k + m + m * k))
    design[:, 0] = need[rows] / spread
    design[np.arange(len(rows)), 1 + columns] = 1.0
    design[:, 1 + k : 1 + k + m] = CATEGORIES * posterior[rows]
    pairs = 1 + k + m + columns[:, None] * m + np.arange(m)
    design[np.arange(len(rows))[:, None], pairs] = PAIRS * posterior[rows]
    label = improved[rows, columns]
    model = LogisticRegression(C=1.0, max_iter=500)
    model.fit(np.vstack([design, design]), np.repeat([1, 0], len(rows)), np.concatenate([label, 1 - label]))
    found = model.coef_[0]
    expert, category = found[1 : 1 + k], CATEGORIES * found[1 + k : 1 + k + m]
    pair = PAIRS * found[1 + k + m :].reshape(k, m).T
    offset = model.intercept_[0] + expert[None, :] + category[:, None] + pair
    return max(float(found[0]), 0.0) / spread, offset


def _evidence(odds: Array, cosine: Array, improved: Array) -> Array:
    """Weights of log-odds (n, k), cosine and a constant; nothing changes where no cosine is known."""
    from sklearn.linear_model import LogisticRegression

    known = np.isfinite(improved) & np.isfinite(cosine)[:, None]
    if known.sum() < FEWEST:
        return np.array([1.0, 0.0, 0.0])
    rows, columns = np.nonzero(known)
    label = improved[rows, columns]
    design = np.stack([odds[rows, columns], 5 * cosine[rows]], axis=1)
    model = LogisticRegression(C=1.0, max_iter=500)
    model.fit(np.vstack([design, design]), np.repeat([1, 0], len(rows)), np.concatenate([label, 1 - label]))
    return np.array([max(model.coef_[0][0], 0.0), 5 * model.coef_[0][1], model.intercept_[0]])


def _gains(delta: Array, improved: Array) -> tuple[Array, Array]:
    """Mean gain of the improved and mean loss of the others, shape (k,) each, pulled to those of all experts."""
    ups = _shrunk(delta, improved > 0)
    downs = _shrunk(-delta, improved == 0)
    return np.clip(ups, 0.0, 1.0), np.clip(downs, 0.0, 1.0)


def _shrunk(delta: Array, among: NDArray[np.bool_]) -> Array:
    values = np.where(among, delta, 0.0)
    common = values.sum() / max(among.sum(), 1)
    return np.asarray((values.sum(axis=0) + PSEUDO_COUNT * common) / (among.sum(axis=0) + PSEUDO_COUNT))


def _known_mean(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else 0.0
