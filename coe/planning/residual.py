"""The residual of a plan: what the text of a request says about the experts beyond its category.

It is a mean over measured prompts i, weighted by how similar they are to the text: sum_i w_i e_i / (sum_i w_i +
PSEUDO_COUNT), with w_i = exp(SHARPNESS * (cosine_i - 1)). e_i are the prompt's scores less those that the score table
expects under its posterior, centred over the experts, because only differences between experts decide. The cosine is
that of the encoder's layers, each centred and of unit length.

A residual is used only if it improves decisions on measured prompts that it was not fitted to (`fit_residual`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from coe.errors import ArtifactError
from coe.planning.grid import select
from coe.planning.score_table import fit_pseudo_count, tabulate_partly

Array = NDArray[Any]

SHARPNESS = 8.0
PSEUDO_COUNT = 1.0
"""Both are fixed: the gain hardly depends on them (docs/experiments/plans.md)."""
MAX_AXES = 256
"""Principal axes of the encoder's layers that are kept."""
MIN_PROMPTS = 100
MAX_PROMPTS = 4096
"""Measured prompts that a residual needs, and prompts that it keeps; of more, a random sample."""
FOLDS = 10
TEMPERATURE = 0.02
"""Scale of the noise on utilities under which decisions are tested. A decision between experts of nearly equal utility
may flip with the next price; the test counts it by its probability, which varies less than counting flips."""
LEVEL_ERRORS = 2.0
"""Standard errors by which decisions must improve."""
_TYPES: dict[str, Any] = {"labels": np.int16, "errors": np.float32, "known": np.bool_}
_TYPES |= dict.fromkeys(("posteriors", "left_out", "vectors"), np.float16)
"""Types of the arrays of `Residual` in its file."""

Read = Callable[[NDArray[np.int64]], tuple[Array, Array]]
"""Maps rows of prompts to the encoder's features (n_rows, width), whose sentence vectors come first, and the router's
posteriors (n_rows, n_categories)."""


class Evidence(NamedTuple):
    """The gain in score that decisions with a residual had on measured prompts that it was not fitted to, with its
    standard error, and the reason why the residual is not used; empty if it is."""

    gain: float
    error: float
    refused: str


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """Maps rows of `Encoder.features` to centred unit layers along principal axes.

    `centre` has shape (layers, dimensions), `axes` (layers * dimensions, n_axes).
    """

    centre: Array
    axes: Array

    @classmethod
    def of(cls, features: Array, dimensions: int) -> Projection:
        """Fit to `features` (n_prompts, width). Layers of another width than the sentence vector are left out."""
        layers = 1 if features.shape[1] % dimensions else features.shape[1] // dimensions
        centre = features[:, : layers * dimensions].mean(axis=0).reshape(layers, dimensions)
        whole = cls(centre, np.eye(centre.size, dtype=np.float32))(features)
        _, axes = np.linalg.eigh(whole.T @ whole)
        return cls(centre, np.ascontiguousarray(axes[:, ::-1][:, :MAX_AXES]))

    def __call__(self, features: Array) -> Array:
        """Return the projected features (n_prompts, n_axes), of at most unit length."""
        layers = features[:, : self.centre.size].reshape(-1, *self.centre.shape) - self.centre
        length = np.maximum(np.linalg.norm(layers, axis=2, keepdims=True), 1e-9) * float(np.sqrt(len(self.centre)))
        return np.asarray((layers / length).reshape(len(features), -1) @ self.axes)


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """The measured prompts of `coe score` and what they say about a text.

    - `encoder`: the digest of the encoder whose features `projection` maps to `vectors` (n_prompts, n_axes).
    - `labels` (n_prompts,): the index of each prompt's category, -1 if it is not among `categories`.
    - `posteriors` (n_prompts, n_categories): the router's. The prices of budgets are fitted to them too.
    - `errors` (n_prompts, n_experts): scores less what table and posterior expect; 0 where not `known`.
    - `left_out` (n_prompts, n_experts): the residual of each prompt by the others.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    encoder: str
    labels: NDArray[np.int64]
    posteriors: Array
    left_out: Array
    projection: Projection
    vectors: Array
    errors: Array
    known: Array

    def __call__(self, features: Array) -> Array:
        """Return the expected score of each expert beyond its category, shape (n_experts,), for features (width,)."""
        similarity = self.vectors @ self.projection(features[None])[0]
        return np.asarray(smoothed(similarity[None], self.errors, self.known)[0])

    def gain(self, utility: Array, eligible: Sequence[int]) -> Array:
        """Return by category, shape (n_categories,), what the residual of a text is expected to gain in utility.

        `utility` (n_categories, n_experts) is that of the categories; only the experts at the indices `eligible` count.
        """
        utility, left_out = utility.take(eligible, axis=1), self.left_out.take(eligible, axis=1)
        gains = np.zeros(len(utility))
        for row in set(self.labels.tolist()) - {-1}:
            total = utility[row] + left_out[self.labels == row]
            gains[row] = total.max(axis=1).mean() - total.mean(axis=0).max()
        return gains

    def mass(self, weights: Array) -> Array:
        """Return the weight of each prompt, (n_prompts,), so that its categories have these `weights`."""
        known = self.labels >= 0
        count = np.bincount(self.labels[known], minlength=len(weights))
        mass = np.where(known, (weights / np.maximum(count, 1))[self.labels], 0.0)
        return np.asarray(mass / mass.sum())

    def over(self, categories: Sequence[str], experts: Sequence[str]) -> Residual:
        """Return the residual over other names. Experts that it lacks have no scores."""
        row = [categories.index(name) if name in categories else -1 for name in self.categories]
        columns: dict[str, Any] = {
            name: select(getattr(self, name), self.experts, experts, missing=0.0)
            for name in ("left_out", "errors", "known")
        }
        return replace(
            self,
            categories=tuple(categories),
            experts=tuple(experts),
            labels=np.array([*row, -1])[self.labels],
            posteriors=select(self.posteriors, self.categories, categories, missing=0.0),
            **columns,
        )

    def to_bytes(self) -> bytes:
        """Serialize to a file of numpy."""
        file, projection = io.BytesIO(), self.projection
        arrays: dict[str, Any] = {name: getattr(self, name).astype(kind) for name, kind in _TYPES.items()}
        arrays |= {name: np.array(getattr(self, name)) for name in ("categories", "experts", "encoder")}
        centre, axes = projection.centre.astype(np.float16), projection.axes.astype(np.float16)
        np.savez(file, **arrays, centre=centre, axes=axes)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Residual:
        """Parse the result of `to_bytes`. Raises ArtifactError."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays: dict[str, Any] = {name: file[name].astype(np.float32) for name in (*_TYPES, "centre", "axes")}
                categories, experts, encoder = (file[name].tolist() for name in ("categories", "experts", "encoder"))
            arrays["labels"] = arrays["labels"].astype(np.int64)
            projection = Projection(arrays.pop("centre"), arrays.pop("axes"))
            return cls(tuple(categories), tuple(experts), encoder, projection=projection, **arrays)
        except (KeyError, TypeError, ValueError, OSError, EOFError, AttributeError, BadZipFile) as error:
            raise ArtifactError(f"residual: cannot be read ({error!r}); make it again with `coe plan`") from error


def fit_residual(
    read: Read,
    labels: NDArray[np.int64],
    scores: Array,
    charge: Array,
    *,
    dimensions: int,
    categories: Sequence[str],
    experts: Sequence[str],
    encoder: str = "",
) -> tuple[Residual | None, Evidence]:
    """Fit a residual to measured prompts. Returns None, with the reason, unless decisions on prompts that it was not
    fitted to improve by two standard errors.

    `dimensions` is the width of a sentence vector. `scores` (n_prompts, n_experts) are NaN where missing. `charge`
    (n_categories, n_experts) is the plan's price, infinite where an expert may not serve a category.

    On each fold, table and residual are those of the other folds. Every pair of prompts tests each other, so that the
    variance of their gains is twice that of independent ones: without this factor the test would accept three times as
    many residuals of pools where nothing but the category matters.
    """
    rows = np.random.default_rng(0).permutation(len(labels))[:MAX_PROMPTS]
    labels, scores, count = labels[rows], scores[rows], len(rows)
    if count < MIN_PROMPTS:
        return None, Evidence(0.0, 0.0, f"{count} prompts are measured; it needs {MIN_PROMPTS}")
    features, posteriors = read(rows)
    features = features.astype(np.float32)
    projection = Projection.of(features, dimensions)
    vectors = projection(features)
    similarity = (vectors @ vectors.T).astype(np.float64)
    fold = np.random.default_rng(0).permutation(count) % FOLDS
    price = np.where(np.isfinite(charge), charge, 0.0)
    before = np.where(np.isfinite(charge), 0.0, -np.inf)[posteriors.argmax(axis=1)] - posteriors @ price
    left_out = np.zeros(scores.shape)
    for held in range(FOLDS):
        tested, others = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
        quality = _quality(labels[others], scores[others], len(categories))
        known, errors = centred_errors(scores[others], posteriors[others] @ quality)
        left_out[tested] = smoothed(similarity[np.ix_(tested, others)], errors, known)
        before[tested] += posteriors[tested] @ quality
    may = np.isfinite(charge).any(axis=0)
    evidence = _evidence(before[:, may], (before + left_out)[:, may], scores[:, may])
    if evidence.refused:
        return None, evidence
    known, errors = centred_errors(scores, posteriors @ _quality(labels, scores, len(categories)))
    errors, known = errors.astype(np.float32), known.astype(np.float32)
    names = tuple(categories), tuple(experts), encoder
    return Residual(*names, labels, posteriors, left_out, projection, vectors, errors, known), evidence


def centred_errors(scores: Array, expected: Array) -> tuple[Array, Array]:
    """Return which scores are known, and the scores less the expected ones, centred over a prompt's known ones."""
    known = np.isfinite(scores)
    errors = np.where(known, scores - expected, 0.0)
    mean = errors.sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    return known, np.where(known, errors - mean, 0.0)


def smoothed(similarity: Array, errors: Array, known: Array) -> Array:
    """Return the mean errors (n_texts, n_experts), weighted by similarity (n_texts, n_prompts)."""
    weights = np.exp(SHARPNESS * (similarity - 1.0))
    return np.asarray((weights @ errors) / (weights @ known + PSEUDO_COUNT))


def _quality(labels: NDArray[np.int64], scores: Array, categories: int) -> Array:
    names, experts = ([str(number) for number in range(count)] for count in (categories, scores.shape[1]))
    table = tabulate_partly(names, experts, np.eye(categories)[labels], scores)
    return table.shrunk(pseudo_count=fit_pseudo_count([names[label] for label in labels], scores))


def _evidence(before: Array, after: Array, scores: Array) -> Evidence:
    """Test the gain of decisions by the utilities `after` over those `before`, where all scores are known."""
    whole = np.isfinite(scores).all(axis=1)
    if whole.sum() < MIN_PROMPTS:
        return Evidence(0.0, 0.0, f"{whole.sum()} prompts have scores of all experts; it needs {MIN_PROMPTS}")
    gains = ((_policy(after[whole]) - _policy(before[whole])) * scores[whole]).sum(axis=1)
    gain, error = float(gains.mean()), float(np.sqrt(2.0 / len(gains)) * gains.std())
    accepted = gain > LEVEL_ERRORS * error
    return Evidence(gain, error, "" if accepted else "decisions on other prompts do not improve by two standard errors")


def _policy(utility: Array) -> Array:
    """Return the probabilities with which each expert has the highest utility under noise of scale TEMPERATURE."""
    weights = np.exp((utility - utility.max(axis=1, keepdims=True)) / TEMPERATURE)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
