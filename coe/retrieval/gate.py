"""The retrieval gate: the probability that passages improve an expert's response, and the expected gain in quality.

After ExpertRAG (arXiv 2504.08744), retrieval and the choice of expert are decided together: gains are in the unit of
`decide()`. One set of weights, shared by all experts, models how much a question needs documents; experts and
categories differ by offsets, which are shrunk to zero. The gate has two models: `fast` uses the router's posterior
alone (about 10 µs), `encoder` also uses the sentence vector of the question. Gates are fitted by
`coe.measuring.gate_fit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from coe.errors import ArtifactError
from coe.registry.sections import RetrievalPrice

GATE_FILE = "gate.npz"
FORMAT = 7
Array = NDArray[np.float64]


def temper(posterior: NDArray[np.floating]) -> Array:
    """Halve the logits of a posterior (..., m).

    On questions unlike its training data the router is overconfident, and the second category is informative
    (docs/experiments/retrieval.md).
    """
    soft = np.sqrt(posterior, dtype=np.float64)
    return np.asarray(soft / soft.sum(axis=-1, keepdims=True))


def posterior_features(posterior: NDArray[np.floating]) -> Array:
    """Return the posterior (..., m) and its entropy in nats, shape (..., m + 1)."""
    entropy = -(posterior * np.log(np.maximum(posterior, 1e-9))).sum(axis=-1, keepdims=True)
    return np.concatenate((posterior, entropy), axis=-1, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class RetrievalCost:
    """Measured mean cost of one retrieval: tokens of passages, and seconds."""

    tokens: float
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class LogOddsModel:
    """Log-odds that passages change the response of each expert; m categories, k experts.

    Weights: `fast` (m + 1,) for the tempered posterior and its entropy, `encoder` (m + 1 + dimensions,) for these and
    the sentence vector. `offset` (2, m, k) is averaged under the posterior, [0] for fast and [1]
    for encoder. `evidence` (3,) weighs the log-odds, the cosine of the best passage and a constant, once that is known.
    """

    fast: Array
    encoder: Array
    offset: Array
    evidence: Array

    def fast_probabilities(self, posterior: NDArray[np.floating], features: Array) -> Array:
        """Return probabilities (k,) from the posterior (m,) and its features (m + 1,)."""
        return _sigmoid(features @ self.fast + posterior @ self.offset[0])

    def encoder_probabilities(self, posterior: NDArray[np.floating], features: Array, cosine: float | None) -> Array:
        """Return probabilities (k,) from all features of the question, and the best passage's cosine if known."""
        log_odds = features @ self.encoder + posterior @ self.offset[1]
        if cosine is not None:
            log_odds = self.evidence[0] * log_odds + self.evidence[1] * cosine + self.evidence[2]
        return _sigmoid(log_odds)

    def select(self, order: list[int], columns: list[int]) -> LogOddsModel:
        """Return the model of the categories and experts at these indices."""
        m = len(order)
        return LogOddsModel(
            fast=np.append(self.fast[order], self.fast[-1:]),
            encoder=np.concatenate((self.encoder[order], self.encoder[m:])),
            offset=self.offset[:, order][:, :, columns],
            evidence=self.evidence,
        )


@dataclass(frozen=True, slots=True, eq=False)
class GateEstimate:
    """Expected effect of passages for each expert (k,): `helps`, the probability that they improve the response, and
    `gain`, the change in quality (-1 to 1). For graded scores, `helps` is the expected improvement."""

    helps: Array
    gain: Array


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """An immutable gate over `categories` (m) and `experts` (k).

    Separate models estimate the probability that passages help and that they harm: a question that an expert cannot
    answer alone has nothing to lose. `measured` (k,) is 0 for an expert without measurements, whose gain is always 0.
    `spread` (k,) is the root mean square difference between the gains of the encoder and the fast model: the encoder
    model runs if the fast gain and the spread together exceed the price of a search.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    helps: LogOddsModel
    harms: LogOddsModel
    measured: Array
    spread: Array
    cost: RetrievalCost

    @property
    def dimensions(self) -> int:
        """Dimensions of the sentence vectors."""
        return len(self.helps.encoder) - len(self.helps.fast)

    def prices(self, price: RetrievalPrice) -> tuple[float, float]:
        """Return the gain above which the store is searched, and the one above which found passages are inserted, once
        the search is paid for; both in quality."""
        insert = price.per_thousand_tokens * self.cost.tokens / 1000
        return insert + price.per_second * self.cost.seconds, insert

    def estimate_fast(self, posterior: NDArray[np.floating]) -> GateEstimate:
        """Estimate from the router's posterior (m,) of any stage alone."""
        soft = temper(posterior)
        features = posterior_features(soft)
        helps, harms = (model.fast_probabilities(soft, features) for model in (self.helps, self.harms))
        return self._estimate(helps, harms)

    def estimate(
        self, posterior: NDArray[np.floating], vector: NDArray[np.floating], *, cosine: float | None = None
    ) -> GateEstimate:
        """Estimate from the question's vector and the router's posterior given that vector; after a search also from
        the cosine of the best passage."""
        soft = temper(posterior)
        features = np.concatenate((posterior_features(soft), vector))
        helps, harms = (model.encoder_probabilities(soft, features, cosine) for model in (self.helps, self.harms))
        return self._estimate(helps, harms)

    def _estimate(self, helps: Array, harms: Array) -> GateEstimate:
        return GateEstimate(helps * self.measured, (helps - harms) * self.measured)

    def align(self, categories: tuple[str, ...], experts: tuple[str, ...]) -> Gate:
        """Return the gate with its categories in another order and over other experts; unknown experts have gain 0."""
        order = [self.categories.index(name) for name in categories]
        index = {name: column for column, name in enumerate(self.experts)}
        columns = [index.get(name, -1) for name in experts]
        known = np.array(columns) >= 0
        return Gate(
            categories=categories,
            experts=experts,
            helps=self.helps.select(order, columns),
            harms=self.harms.select(order, columns),
            measured=np.where(known, self.measured[columns], 0.0),
            spread=np.where(known, self.spread[columns], 0.0),
            cost=self.cost,
        )

    def save(self, path: Path) -> None:
        """Write the gate to one .npz file."""
        models = {f"{side}.{name}": getattr(getattr(self, side), name) for side in _MODELS for name in _WEIGHTS}
        names = {"categories": np.array(self.categories), "experts": np.array(self.experts)}
        own = {"measured": self.measured, "spread": self.spread}
        cost = np.array([self.cost.tokens, self.cost.seconds])
        everything: dict[str, Any] = {"format": np.array(FORMAT), "cost": cost, **own}
        np.savez(path, **everything | names | models)

    @classmethod
    def load(cls, path: Path) -> Gate:
        """Read a gate. Raises ArtifactError for a file of another format."""
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            if arrays["format"] != FORMAT:
                raise ValueError(f"format {arrays['format']}, not {FORMAT}")
            helps, harms = (LogOddsModel(*(arrays[f"{side}.{name}"] for name in _WEIGHTS)) for side in _MODELS)
            categories, experts = (tuple(map(str, arrays[name])) for name in ("categories", "experts"))
            cost = RetrievalCost(*map(float, arrays["cost"]))
            return cls(categories, experts, helps, harms, arrays["measured"], arrays["spread"], cost)
        except (OSError, EOFError, BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path}: not a gate ({error!r}); fit it again with `coe plan`") from error


_MODELS, _WEIGHTS = ("helps", "harms"), ("fast", "encoder", "offset", "evidence")


def _sigmoid(log_odds: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(log_odds, -30, 30))))
