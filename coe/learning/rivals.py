"""What CoE is measured against: nearest neighbours and ridge regression on embeddings, tuned on folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Predict = Callable[[Floats, Floats, Floats, float], NDArray[np.float64]]
"""(vectors, scores) to learn from, vectors to predict for, strength -> predicted scores (n_prompts, n_models)."""

NEIGHBOURS = (5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
FOLDS = 4


def nearest(vectors: Floats, scores: Floats, wanted: Floats, strength: float) -> NDArray[np.float64]:
    """Mean scores of the `strength` prompts most similar by cosine; vectors are unit length."""
    neighbours = min(int(strength), len(vectors))
    closest = np.argpartition(-(wanted @ vectors.T), neighbours - 1, axis=1)[:, :neighbours]
    return np.asarray(scores[closest].mean(axis=1), dtype=np.float64)


def ridge(vectors: Floats, scores: Floats, wanted: Floats, strength: float) -> NDArray[np.float64]:
    """One ridge regression a model, with an intercept that is not penalised."""
    centre, level = vectors.mean(axis=0), scores.mean(axis=0)
    inputs = (vectors - centre).astype(np.float64)
    gram = inputs.T @ inputs + strength * np.eye(inputs.shape[1])
    return np.asarray((wanted - centre) @ np.linalg.solve(gram, inputs.T @ (scores - level)) + level)


def tuned(
    predict: Predict, vectors: Floats, scores: Floats, wanted: Floats, *, grid: Sequence[float], seed: int
) -> NDArray[np.float64]:
    """Predictions with the strength of `grid` whose choices score best on held-out folds of what is learnt from."""
    fold = np.random.default_rng(seed).permutation(len(vectors)) % FOLDS
    reached = []
    for strength in grid:
        gained = 0.0
        for held in range(FOLDS):
            rest, away = fold != held, fold == held
            chosen = predict(vectors[rest], scores[rest], vectors[away], strength).argmax(axis=1)
            gained += float(scores[away][np.arange(len(chosen)), chosen].sum())
        reached.append(gained)
    return predict(vectors, scores, wanted, grid[int(np.argmax(reached))])
