"""The residual of a plan: what the text of a request says about the experts beyond its category.

It is a mean over measured prompts i, weighted by how similar they are to the text: sum_i w_i e_i / (sum_i w_i +
PSEUDO_COUNT), with w_i = exp(SHARPNESS * (cosine_i - 1)). e_i are the prompt's scores less those that the score table
expects under its posterior, centred over the experts, because only differences between experts decide. The cosine is
that of the encoder's layers, each centred and of unit length.

A residual is used only if it improves decisions on prompts that it was not fitted to (`fit_residual`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.errors import ArtifactError
from coe.mapping.score_table import fit_pseudo_count, tabulate_partly

Array = NDArray[Any]

VERSION = 1
"""Version of the file that `Residual.to_bytes` makes."""
SHARPNESS = 8.0
PSEUDO_COUNT = 1.0
"""Both are fixed: the gain hardly depends on them (docs/experiments/residual-models.md)."""
MAX_AXES = 256
"""Principal axes of the encoder's layers that are kept."""
MIN_PROMPTS = 100
MAX_PROMPTS = 4096
"""Measured prompts that a residual needs and keeps; of more, a random sample."""
MAX_BYTES = 5_000_000
"""Size of the file. With very many experts fewer prompts are kept."""
MAX_ID_CHARACTERS = 64
FOLDS = 10
TEMPERATURE = 0.02
"""Scale of the noise on utilities under which decisions are tested. A decision between experts of nearly equal utility
may flip with the next price; the test counts it by its probability, which varies less than counting flips."""
LEVEL_ERRORS = 2.0
"""Standard errors by which decisions must improve."""


class Evidence(NamedTuple):
    """The gain in score that decisions with a residual had on prompts that it was not fitted to, with its standard
    error, and the reason why the residual is not used; empty if it is."""

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
    """Measured prompts, and what they say about a text.

    - `encoder`: the digest of the encoder whose features `projection` maps to `vectors` (n_prompts, n_axes).
    - `labels` (n_prompts,): the index of each prompt's category, -1 if it is not among `categories`.
    - `posteriors` (n_prompts, n_categories): the router's. The prices of budgets are fitted to them too.
    - `scores` (n_prompts, n_experts), NaN where missing, and `expected`, of the same shape, by table and posterior.
    - `left_out`, of the same shape: the residual of each prompt by the others.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    encoder: str
    prompt_ids: tuple[str, ...]
    labels: NDArray[np.int64]
    posteriors: Array
    scores: Array
    expected: Array
    left_out: Array
    projection: Projection
    vectors: Array
    _known: Array = field(init=False, repr=False)
    _errors: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        known, errors = centred_errors(self.scores, self.expected)
        object.__setattr__(self, "_known", known.astype(np.float32))
        object.__setattr__(self, "_errors", errors.astype(np.float32))

    def __call__(self, features: Array) -> Array:
        """Return the expected score of each expert beyond its category, shape (n_experts,), for features (width,)."""
        return np.asarray(smoothed(self._similarity(features)[None], self._errors, self._known)[0])

    def nearest(self, features: Array, *, limit: int) -> list[dict[str, Any]]:
        """Return the measured prompts that are nearest to features (width,), nearest first: id, category, similarity
        and the known scores by expert."""
        similarity, names = self._similarity(features), (*self.categories, "")
        return [
            {
                "prompt_id": self.prompt_ids[row],
                "category": names[self.labels[row]],
                "similarity": round(float(similarity[row]), 4),
                "scores": {
                    name: one
                    for name, one in zip(self.experts, self.scores[row].tolist(), strict=True)
                    if np.isfinite(one)
                },
            }
            for row in np.argsort(-similarity)[:limit].tolist()
        ]

    def _similarity(self, features: Array) -> Array:
        return np.asarray(self.vectors @ self.projection(features[None])[0])

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
        column = [self.experts.index(name) if name in self.experts else -1 for name in experts]
        shown = [self.categories.index(name) if name in self.categories else -1 for name in categories]

        def columns(values: Array, missing: float, column: list[int] = column) -> Array:
            return np.asarray(np.pad(values, ((0, 0), (0, 1)), constant_values=missing)[:, column])

        return replace(
            self,
            categories=tuple(categories),
            experts=tuple(experts),
            labels=np.array([*row, -1])[self.labels],
            posteriors=columns(self.posteriors, 0.0, shown),
            scores=columns(self.scores, np.nan),
            expected=columns(self.expected, 0.0),
            left_out=columns(self.left_out, 0.0),
        )

    def to_bytes(self) -> bytes:
        """Serialize; at most MAX_BYTES for a residual that `fit_residual` made."""
        names = {name: getattr(self, name) for name in ("categories", "experts", "encoder", "prompt_ids")}
        arrays = {name: getattr(self, name) for name in ("posteriors", "scores", "expected", "left_out", "vectors")}
        arrays |= {"centre": self.projection.centre, "axes": self.projection.axes}
        file = io.BytesIO()
        np.savez(
            file,
            names=np.frombuffer(orjson.dumps({"version": VERSION, **names}), dtype=np.uint8),
            labels=self.labels.astype(np.int16),
            **{name: array.astype(np.float16) for name, array in arrays.items()},
        )
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Residual:
        """Parse the result of `to_bytes`. Raises ArtifactError."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                names = orjson.loads(file["names"].tobytes())
                arrays = {name: file[name].astype(np.float32) for name in file.files if name not in ("names", "labels")}
                labels = file["labels"].astype(np.int64)
            if names.pop("version") != VERSION:
                raise ValueError(f"not of version {VERSION}")
            projection = Projection(arrays.pop("centre"), arrays.pop("axes"))
            found = cls(
                tuple(names["categories"]),
                tuple(names["experts"]),
                str(names["encoder"]),
                tuple(names["prompt_ids"]),
                labels,
                projection=projection,
                **arrays,
            )
            shape = (len(labels), len(found.experts))
            if {found.scores.shape, found.expected.shape, found.left_out.shape} != {shape}:
                raise ValueError(f"scores of shape {found.scores.shape}, not {shape}")
            if found.posteriors.shape != (len(labels), len(found.categories)):
                raise ValueError(f"posteriors of shape {found.posteriors.shape}")
            if found.vectors.shape != (len(labels), projection.axes.shape[1]) or len(found.prompt_ids) != len(labels):
                raise ValueError(f"vectors of shape {found.vectors.shape} for {len(labels)} prompts")
            if not -1 <= labels.min(initial=0) <= labels.max(initial=-1) < len(found.categories):
                raise ValueError("a label is of no category")
        except (KeyError, TypeError, ValueError, OSError, EOFError, AttributeError, BadZipFile) as error:
            raise ArtifactError(f"residual: cannot be read ({error!r}); make it again with `coe plan`") from error
        return found


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


Read = Callable[[NDArray[np.int64]], tuple[Array, Array]]
"""Maps rows of prompts to the encoder's features (n_rows, width), whose sentence vectors come first, and the router's
posteriors (n_rows, n_categories)."""


def fit_residual(
    read: Read,
    labels: NDArray[np.int64],
    scores: Array,
    *,
    dimensions: int,
    charge: Array,
    categories: Sequence[str],
    experts: Sequence[str],
    prompt_ids: Sequence[str],
    encoder: str = "",
) -> tuple[Residual | None, Evidence]:
    """Fit the residual of measured prompts, and test on other prompts whether decisions improve.

    `dimensions` is the width of a sentence vector. `scores` (n_prompts, n_experts) are NaN where missing. `charge`
    (n_categories, n_experts) is the plan's price, infinite where an expert may not serve a category. Returns None, with
    the reason, unless decisions improve by two standard errors.

    On each fold, table and residual are those of the other folds. Every pair of prompts tests each other, so that the
    variance of their gains is twice that of independent ones: without this factor the test would accept three times as
    many residuals of pools where nothing but the category matters.
    """
    rows = np.random.default_rng(0).permutation(len(labels))[:MAX_PROMPTS]
    if len(rows) < MIN_PROMPTS:
        return None, Evidence(0.0, 0.0, f"{len(rows)} prompts are measured; it needs {MIN_PROMPTS}")
    features, posteriors = read(rows)
    bytes_left = MAX_BYTES - 2 * features.shape[1] * (MAX_AXES + 1) - 20_000
    rows = rows[: bytes_left // (2 * (MAX_AXES + 3 * len(experts) + len(categories)) + MAX_ID_CHARACTERS + 8)]
    labels, scores, features = labels[rows], scores[rows], features[: len(rows)].astype(np.float32)
    projection = Projection.of(features, dimensions)
    vectors = projection(features)
    similarity = vectors @ vectors.T
    fold = np.random.default_rng(0).permutation(len(rows)) % FOLDS
    price, posteriors = np.where(np.isfinite(charge), charge, 0.0), posteriors[: len(rows)]
    before = np.where(np.isfinite(charge), 0.0, -np.inf)[posteriors.argmax(axis=1)] - posteriors @ price
    left_out = np.zeros(scores.shape)
    for held in range(FOLDS):
        tested, others = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
        quality = _quality(labels[others], scores[others], len(categories))
        known, errors = centred_errors(scores[others], posteriors[others] @ quality)
        left_out[tested] = smoothed(similarity[np.ix_(tested, others)], errors, known)
        before[tested] += posteriors[tested] @ quality
    quality = _quality(labels, scores, len(categories))
    residual = Residual(
        tuple(categories),
        tuple(experts),
        encoder,
        tuple(prompt_ids[row][:MAX_ID_CHARACTERS] for row in rows.tolist()),
        labels,
        posteriors,
        scores,
        posteriors @ quality,
        left_out,
        projection,
        vectors,
    )
    evidence = _evidence(before, before + left_out, scores)
    return (None if evidence.refused else residual), evidence


def _quality(labels: NDArray[np.int64], scores: Array, categories: int) -> Array:
    names = [str(row) for row in range(categories)]
    experts = [str(column) for column in range(scores.shape[1])]
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
