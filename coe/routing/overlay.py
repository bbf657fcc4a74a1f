"""Overlays: a tenant's own light head on top of the global router. Applied to a posterior, in numpy alone."""

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

FILE = "overlays.jsonl"
"""The file of an artifact of overlays: one a line."""
FLOOR = 1e-4
"""Least probability that a head works with."""


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """A posterior p becomes softmax(log p @ weights + bias): `weights` (m, m), `bias` (m,); the identity and 0 change
    nothing.

    `gain` is the share of held-out requests that it classified rightly more than the router alone, each counted as
    surely as its category is known; `requests` and `deadline` (Unix seconds) are how many it was fitted to, and the
    time of the newest of them."""

    tenant: str
    categories: tuple[str, ...]
    weights: Array
    bias: Array
    gain: float
    requests: int = 0
    deadline: float = 0.0

    def apply(self, posterior: NDArray[np.floating]) -> Array:
        """The tenant's posterior, shape (m,) or (n, m), from the global one."""
        return softmax(logs(posterior) @ self.weights + self.bias)

    def to_json(self) -> bytes:
        """The overlay as one line of JSON, the same bytes for the same overlay."""
        fields = {
            "version": 1,
            "tenant": self.tenant,
            "categories": self.categories,
            "weights": self.weights.tolist(),
            "bias": self.bias.tolist(),
            "gain": self.gain,
            "requests": self.requests,
            "deadline": self.deadline,
        }
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_json(cls, data: bytes) -> Overlay:
        """Reads what `to_json` wrote. Raises ArtifactError where it is something else."""
        try:
            fields = orjson.loads(data)
            if fields["version"] != 1:
                raise ValueError(f"version {fields['version']}, not 1")
            weights, bias = (np.array(fields[name], dtype=np.float64) for name in ("weights", "bias"))
            made = cls(
                fields["tenant"],
                tuple(fields["categories"]),
                weights,
                bias,
                float(fields["gain"]),
                int(fields["requests"]),
                float(fields["deadline"]),
            )
            size = len(made.categories)
            if (weights.shape, bias.shape) != ((size, size), (size,)):
                raise ValueError(f"weights of shape {weights.shape} for {size} categories")
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"overlay: cannot be read ({error!r}); delete it and retrain") from error
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Overlays:
    """Those in use, by tenant, over the router's categories; `version` is that of their artifact."""

    version: str = ""
    by_tenant: Mapping[str, Overlay] = field(default_factory=lambda: MappingProxyType({}))

    def applied(self, prediction: Prediction, tenant: str | None) -> Prediction:
        """The tenant's prediction, which remembers the router's own; the same where the tenant has no overlay."""
        overlay = self.by_tenant.get(tenant) if tenant is not None else None
        if overlay is None:
            return prediction
        plain = prediction.probabilities
        return Prediction(
            overlay.apply(plain).astype(np.float32), prediction.stage, prediction.in_distribution, self.version, plain
        )


def logs(posterior: NDArray[np.floating]) -> Array:
    """The log posterior, bounded below by that of FLOOR."""
    return np.asarray(np.log(np.maximum(posterior, FLOOR, dtype=np.float64)))


def softmax(logits: Array) -> Array:
    """Probabilities along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
