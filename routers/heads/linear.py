"""Linear head: multinomial logistic regression on vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from routers.files import Arrays

ABSENT_CATEGORY_LOGIT = -100.0
"""Logit of a category without training texts."""


@dataclass(frozen=True, slots=True)
class LinearHead:
    """`weights` of shape (dimensions, n_categories) and `bias` (n_categories,), float32."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits (n_texts, n_categories), or (n_categories,) for one vector."""
        return vectors @ self.weights + self.bias

    def arrays(self) -> Arrays:
        return {"weights": self.weights, "bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        return cls(weights=arrays["weights"], bias=arrays["bias"])


def fit_linear(vectors: NDArray[np.float32], labels: NDArray[np.int64], *, c: float, classes: int) -> LinearHead:
    """Fit the head on `vectors` (n_texts, dimensions), classes balanced; `c` is scikit-learn's C.

    `labels` are 0 to classes - 1. A label that does not occur is never predicted.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, class_weight="balanced", max_iter=1000, tol=1e-3).fit(vectors, labels)
    weights, bias = model.coef_.T, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn returns one column for two classes
        weights, bias = np.hstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    head = LinearHead(
        weights=np.zeros((vectors.shape[1], classes), dtype=np.float32),
        bias=np.full(classes, ABSENT_CATEGORY_LOGIT, dtype=np.float32),
    )
    head.weights[:, model.classes_] = weights
    head.bias[model.classes_] = bias
    return head
