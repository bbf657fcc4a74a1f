"""Overlays: a tenant's own light head on top of the global router, kept only while it helps on held-out requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.errors import ArtifactError
from coe.learning.experience import NONE, Experience
from coe.learning.promotion import CHANCE, held_out

Array = NDArray[np.float64]

FEWEST = 60
"""Requests with a known category that a tenant's head takes, and corrections among them below."""
CORRECTED = 10
HELD = 0.3
"""Newest share of them that judges and does not teach."""
PENALTY = 0.02
"""Pull of the head towards doing nothing, against the mean loss of a request."""
LIKED = 0.75
"""Reward from which on a request that nobody corrected counts as classified rightly."""
FLOOR = 1e-4
"""Least probability that a head works with."""


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """A posterior p becomes softmax(log p @ weights + bias): `weights` (m, m), `bias` (m,); the identity and 0 change
    nothing. `gain` is the share of held-out requests that it classified rightly more than the global router."""

    tenant: str
    categories: tuple[str, ...]
    weights: Array
    bias: Array
    gain: float

    def apply(self, posterior: NDArray[np.floating]) -> Array:
        """The tenant's posterior, shape (m,) or (n, m), from the global one."""
        return _softmax(_logs(posterior) @ self.weights + self.bias)

    def to_json(self) -> bytes:
        """The overlay as JSON, the same bytes for the same overlay."""
        fields = {
            "version": 1,
            "tenant": self.tenant,
            "categories": self.categories,
            "weights": self.weights.tolist(),
            "bias": self.bias.tolist(),
            "gain": self.gain,
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
            made = cls(fields["tenant"], tuple(fields["categories"]), weights, bias, float(fields["gain"]))
            size = len(made.categories)
            if (weights.shape, bias.shape) != ((size, size), (size,)):
                raise ValueError(f"weights of shape {weights.shape} for {size} categories")
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"overlay: cannot be read ({error!r}); delete it and retrain") from error
        return made


def overlays(experience: Experience) -> Mapping[str, Overlay]:
    """The heads that help, by tenant. Fitted anew every time, so one that no longer helps is gone.

    A head learns from corrected categories, and to leave alone what was liked and not corrected. It is kept where it
    surely is right more often than the global router on the newest of these requests, which it was not fitted to (a
    randomisation test, corrected for the number of tenants); then it is fitted to all.
    """
    known, label = _labels(experience)
    sizes = np.bincount(experience.tenant[known], minlength=len(experience.tenants))
    corrected = np.bincount(experience.tenant[experience.corrected != NONE], minlength=len(experience.tenants))
    tried = (sizes >= FEWEST) & (corrected >= CORRECTED)
    found = {}
    for _, rows in experience.by_tenant(known & tried[experience.tenant]):
        latest_last = rows[np.argsort(experience.time[rows], kind="stable")]
        overlay = _judged(experience, latest_last, label[latest_last], chance=CHANCE / int(tried.sum()))
        if overlay is not None:
            found[overlay.tenant] = overlay
    return found


def _labels(experience: Experience) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which requests have a known category, and which, shape (n,)."""
    liked = experience.rated & (experience.reward >= LIKED)
    said = experience.corrected != NONE
    label = np.where(said, experience.corrected, experience.posterior.argmax(axis=1)).astype(np.int64)
    return said | liked, label


def _judged(
    experience: Experience, rows: NDArray[np.int64], label: NDArray[np.int64], *, chance: float
) -> Overlay | None:
    posterior = experience.posterior[rows].astype(np.float64)
    said = experience.corrected[rows] != NONE
    wanted = np.where(said[:, None], np.eye(posterior.shape[1])[label], posterior)
    early = len(rows) - round(HELD * len(rows))
    weights, bias = _fit(posterior[:early], wanted[:early])
    late, truth = posterior[early:], label[early:]
    right = [(guess.argmax(axis=1) == truth).astype(np.float64) for guess in (late, _logs(late) @ weights + bias)]
    gain = held_out(right[0], right[1], [""] * len(truth)).overall
    if gain.above >= chance:
        return None
    tenant = experience.tenants[int(experience.tenant[rows[0]])]
    return Overlay(tenant, experience.categories, *_fit(posterior, wanted), gain.value)


def _fit(posterior: Array, wanted: Array) -> tuple[Array, Array]:
    """Multinomial logistic regression from log posteriors to wanted ones, both (n, m), pulled towards the identity."""
    from scipy.optimize import minimize

    logs, size = _logs(posterior), posterior.shape[1]
    neutral = np.append(np.eye(size).ravel(), np.zeros(size))

    def loss(flat: Array) -> tuple[float, Array]:
        guess = _softmax(logs @ flat[:-size].reshape(size, size) + flat[-size:])
        away, wrong = flat - neutral, (guess - wanted) / len(logs)
        value = -float((wanted * np.log(np.maximum(guess, 1e-300))).sum()) / len(logs)
        gradient = np.append((logs.T @ wrong).ravel(), wrong.sum(axis=0)) + PENALTY * away
        return value + PENALTY / 2 * float(away @ away), gradient

    best = minimize(loss, neutral, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return best[:-size].reshape(size, size), best[-size:]


def _logs(posterior: NDArray[np.floating]) -> Array:
    return np.log(np.maximum(np.asarray(posterior, dtype=np.float64), FLOOR))


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
