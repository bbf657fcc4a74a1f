"""Overlays: a tenant's own linear head on the global router's posterior (matrix and vector scaling, Guo et al. 2017).

`coe retrain` fits them to a tenant's corrections. They are applied with numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.core import Prediction
from coe.errors import ArtifactError

Array = NDArray[np.float64]

OVERLAYS_FILE = "overlays.jsonl"
"""File in an artifact of overlays: one overlay per line."""
MIN_PROBABILITY = 1e-4
"""Lower bound of the posterior before its logarithm."""


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """Maps a posterior p to softmax(log p @ weights + bias), with `weights` of shape (m, m) and `bias` of shape (m,).

    `gain` is the gain in accuracy over the router alone on held-out requests, weighted by how certain their category
    is. `requests` is the number of requests that it was fitted to, `fitted_until` the time of the newest one (Unix
    seconds).
    """

    tenant: str
    categories: tuple[str, ...]
    weights: Array
    bias: Array
    gain: float
    requests: int = 0
    fitted_until: float = 0.0

    def apply(self, posterior: NDArray[np.floating]) -> Array:
        """Return the tenant's posterior for the router's, shape (m,) or (n, m)."""
        return softmax(log_posterior(posterior) @ self.weights + self.bias)

    def to_json(self) -> bytes:
        """Serialize to one line of JSON; equal overlays give equal bytes."""
        fields = {
            "version": 1,
            "tenant": self.tenant,
            "categories": self.categories,
            "weights": self.weights.tolist(),
            "bias": self.bias.tolist(),
            "gain": self.gain,
            "requests": self.requests,
            "fitted_until": self.fitted_until,
        }
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_json(cls, data: bytes) -> Overlay:
        """Parse the result of `to_json`. Raises ArtifactError."""
        try:
            fields = orjson.loads(data)
            if fields["version"] != 1:
                raise ValueError(f"version {fields['version']}, not 1")
            weights, bias = (np.array(fields[name], dtype=np.float64) for name in ("weights", "bias"))
            overlay = cls(
                fields["tenant"],
                tuple(fields["categories"]),
                weights,
                bias,
                float(fields["gain"]),
                int(fields["requests"]),
                float(fields["fitted_until"]),
            )
            size = len(overlay.categories)
            if (weights.shape, bias.shape) != ((size, size), (size,)):
                raise ValueError(f"weights of shape {weights.shape} for {size} categories")
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"overlay: cannot be read ({error!r}); delete it and retrain") from error
        return overlay


@dataclass(frozen=True, slots=True, eq=False)
class Overlays:
    """The overlays in use by tenant, over the router's categories, and the `version` of their artifact."""

    version: str = ""
    by_tenant: Mapping[str, Overlay] = field(default_factory=lambda: MappingProxyType({}))

    def apply(self, prediction: Prediction, tenant: str | None) -> Prediction:
        """Return the tenant's prediction, which includes the router's posterior; unchanged without an overlay."""
        overlay = self.by_tenant.get(tenant) if tenant is not None else None
        if overlay is None:
            return prediction
        posterior = prediction.probabilities
        adapted = overlay.apply(posterior).astype(np.float32)
        return Prediction(adapted, prediction.stage, prediction.in_distribution, self.version, posterior)


def log_posterior(posterior: NDArray[np.floating]) -> Array:
    """Return the logarithm of a posterior, bounded below by that of MIN_PROBABILITY."""
    return np.asarray(np.log(np.maximum(posterior, MIN_PROBABILITY, dtype=np.float64)))


def softmax(logits: Array) -> Array:
    """Return the softmax along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
