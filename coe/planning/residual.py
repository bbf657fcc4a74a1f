"""The residual of a plan: what the text of a request says about the experts beyond its category.

It is a mean over measured prompts i, weighted by how similar they are to the text: sum_i w_i e_i / (sum_i w_i +
PSEUDO_COUNT), with w_i = exp(SHARPNESS * (cosine_i - 1)). e_i are the prompt's scores less those that the score table
expects under its posterior, centred over the experts, because only differences between experts decide. The cosine is
that of the encoder's layers, each centred and of unit length.

Rated requests join it as further prompts, each with the rating of the expert that answered (`Residual.with_ratings`).

A residual is used only if it improves decisions on measured prompts that it was not fitted to (`fit_residual`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import orjson
from numpy.typing import NDArray

from coe.errors import ArtifactError
from coe.planning.score_table import select, tabulate_partly, tabulate_softly

Array = NDArray[Any]

SHARPNESS = 8.0
PSEUDO_COUNT = 1.0
"""Both are fixed: the gain hardly depends on them (docs/experiments/plans.md)."""
MAX_AXES = 256
"""Principal axes of the encoder's layers that are kept."""
MIN_PROMPTS = 100
MAX_PROMPTS = 4096
"""Measured prompts that a residual needs, and prompts that it keeps; of more measured ones, a random sample."""
MAX_ID_CHARACTERS = 64
MAX_TEXT_CHARACTERS = 120
MAX_NEAREST = 3
"""Prompts that an explanation shows, and the length of their ids and beginnings."""
FOLDS = 10
TEMPERATURE = 0.02
"""Scale of the noise on utilities under which decisions are tested. A decision between experts of nearly equal utility
may flip with the next price; the test counts it by its probability, which varies less than counting flips."""
LEVEL_ERRORS = 2.0
"""Standard errors by which decisions must improve."""
_NAMES = ("categories", "experts", "encoder", "prompts")
_ROWS = ("labels", "posteriors", "vectors", "scores", "errors", "left_out")
"""Fields of `Residual` in its file: names, and arrays with a row for each prompt."""

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
    """The measured prompts of `coe score`, then rated requests, and what they say about a text.

    - `encoder`: the digest of the encoder whose features `projection` maps to `vectors` (n_prompts, n_axes).
    - `prompts` (n_prompts,): ids, and beginnings of the measured texts; None for those of requests.
    - `labels` (n_prompts,): the index of each measured prompt's category; -1 if it is not among `categories`, and for
      rated requests.
    - `posteriors` (n_prompts, n_categories): the router's. The prices of budgets are fitted to them too.
    - `scores` (n_prompts, n_experts), NaN where missing.
    - `errors` (n_prompts, n_experts): scores less what table and posterior expect; 0 where missing.
    - `left_out` (n_prompts, n_experts): the residual of each measured prompt by the others.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    encoder: str
    prompts: tuple[tuple[str, str | None], ...]
    labels: NDArray[np.int64]
    posteriors: Array
    projection: Projection
    vectors: Array
    scores: Array
    errors: Array
    left_out: Array

    @classmethod
    def of(
        cls,
        read: Read,
        labels: NDArray[np.int64],
        scores: Array,
        *,
        dimensions: int,
        categories: Sequence[str],
        experts: Sequence[str],
        prompts: Sequence[tuple[str, str]],
        encoder: str = "",
    ) -> Residual:
        """Return measured prompts, not fitted yet: they expect nothing of a text beyond its category.

        `dimensions` is the width of a sentence vector. `scores` (n_prompts, n_experts) are NaN where missing. `prompts`
        are their ids and texts.
        """
        rows = np.random.default_rng(0).permutation(len(labels))[:MAX_PROMPTS]
        features, posteriors = read(rows)
        features = features.astype(np.float32)
        projection, nothing = Projection.of(features, dimensions), np.zeros(scores[rows].shape)
        chosen = [prompts[row] for row in rows.tolist()]
        beginnings = tuple((i[:MAX_ID_CHARACTERS], " ".join(text.split())[:MAX_TEXT_CHARACTERS]) for i, text in chosen)
        arrays = labels[rows], posteriors, projection, projection(features), scores[rows], nothing, nothing
        return cls(tuple(categories), tuple(experts), encoder, beginnings, *arrays)

    def with_ratings(self, ids: Sequence[str], vectors: Array, posteriors: Array, scores: Array) -> Residual:
        """Return the measured prompts of known categories with the newest rated requests that MAX_PROMPTS allow, in
        place of earlier ones; not fitted to them yet.

        Requests are given oldest first, with `vectors` (n_rated, n_axes), `posteriors` (n_rated, n_categories) and
        `scores` (n_rated, n_experts), NaN but for the expert that answered.
        """
        measured = np.flatnonzero(self.labels >= 0)
        newest = np.arange(len(ids))[max(len(ids) - MAX_PROMPTS + len(measured), 0) :]
        nothing = np.zeros(scores.shape)
        rated = zip(_ROWS, (np.full(len(ids), -1), posteriors, vectors, scores, nothing, nothing), strict=True)
        rows: dict[str, Any] = {
            name: np.concatenate((getattr(self, name)[measured], one[newest])) for name, one in rated
        }
        rows["prompts"] = (*(self.prompts[row] for row in measured), *((ids[row], None) for row in newest))
        return replace(self, **rows)

    def __call__(self, features: Array) -> Array:
        """Return the expected score of each expert beyond its category, shape (n_experts,), for features (width,)."""
        similarity = self.vectors @ self.projection(features[None])[0]
        return np.asarray(smoothed(similarity[None], self.errors, np.isfinite(self.scores))[0])

    def nearest(self, features: Array, experts: Sequence[str]) -> list[dict[str, Any]]:
        """Return the prompts nearest to features (width,), nearest first: id, category, beginning of the text,
        similarity, share of all weights, and the known scores of `experts`. A rated request has the id alone."""
        similarity = self.vectors @ self.projection(features[None])[0]
        weights = np.exp(SHARPNESS * (similarity - 1.0))
        columns = [(name, self.experts.index(name)) for name in experts if name in self.experts]
        known = np.isfinite(self.scores)
        return [
            {
                "prompt_id": self.prompts[row][0],
                "category": (*self.categories, "")[self.labels[row]],
                "text": self.prompts[row][1],
                "similarity": round(float(similarity[row]), 4),
                "weight": round(float(weights[row] / (weights.sum() + PSEUDO_COUNT)), 4),
                "scores": {name: float(self.scores[row, one]) for name, one in columns if known[row, one]},
            }
            for row in np.argsort(-similarity)[:MAX_NEAREST].tolist()
        ]

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
            name: select(getattr(self, name), self.experts, experts, missing=np.nan if name == "scores" else 0.0)
            for name in ("scores", "errors", "left_out")
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
        """Serialize to a file of numpy; numbers have half precision."""
        file, names = io.BytesIO(), orjson.dumps([getattr(self, name) for name in _NAMES])
        arrays = {name: getattr(self, name) for name in _ROWS}
        arrays |= {"centre": self.projection.centre, "axes": self.projection.axes}
        numbers = {name: array.astype(np.int16 if name == "labels" else np.float16) for name, array in arrays.items()}
        np.savez(file, names=np.frombuffer(names, dtype=np.uint8), **numbers)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Residual:
        """Parse the result of `to_bytes`. Raises ArtifactError."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays: dict[str, Any] = {name: file[name].astype(np.float32) for name in (*_ROWS, "centre", "axes")}
                categories, experts, encoder, prompts = orjson.loads(file["names"].tobytes())
            arrays["labels"] = arrays["labels"].astype(np.int64)
            arrays |= {"encoder": encoder, "prompts": tuple((name, text) for name, text in prompts)}
            projection = Projection(arrays.pop("centre"), arrays.pop("axes"))
            return cls(tuple(categories), tuple(experts), projection=projection, **arrays)
        except (KeyError, TypeError, ValueError, OSError, EOFError, AttributeError, BadZipFile) as error:
            raise ArtifactError(f"residual: cannot be read ({error!r}); make it again with `coe plan`") from error


def fit_residual(prompts: Residual, charge: Array) -> tuple[Residual | None, Evidence]:
    """Fit a residual to its prompts. Returns None, with the reason, unless decisions on measured prompts that it was
    not fitted to improve by two standard errors over those with the residual before (`left_out`).

    `charge` (n_categories, n_experts) is the plan's price, infinite where an expert may not serve a category.

    On each fold of the measured prompts, table and residual are those of the other folds and of all rated requests.
    Every pair of prompts tests each other, so that the variance of their gains is twice that of independent ones:
    without this factor the test would accept three times as many residuals of pools where nothing but the category
    matters.
    """
    posteriors, measured = prompts.posteriors, np.flatnonzero(prompts.labels >= 0)
    if len(measured) < MIN_PROMPTS:
        return None, Evidence(0.0, 0.0, f"{len(measured)} prompts are measured; it needs {MIN_PROMPTS}")
    similarity = (prompts.vectors @ prompts.vectors.T).astype(np.float64)
    known, fold = np.isfinite(prompts.scores), np.full(len(prompts.labels), -1)
    fold[measured] = np.random.default_rng(0).permutation(len(measured)) % FOLDS
    price = np.where(np.isfinite(charge), charge, 0.0)
    before = np.where(np.isfinite(charge), 0.0, -np.inf)[posteriors.argmax(axis=1)] - posteriors @ price
    left_out = np.zeros(known.shape)
    for held in range(FOLDS):
        tested, others = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
        quality, errors = _errors(prompts, others, similarity)
        left_out[tested] = smoothed(similarity[np.ix_(tested, others)], errors, known[others])
        before[tested] += posteriors[tested] @ quality
    cells = np.ix_(measured, np.isfinite(charge).any(axis=0))
    evidence = _evidence((before + prompts.left_out)[cells], (before + left_out)[cells], prompts.scores[cells])
    if evidence.refused:
        return None, evidence
    errors = _errors(prompts, np.arange(len(known)), similarity)[1]
    return replace(prompts, errors=errors.astype(np.float32), left_out=left_out), evidence


def _errors(prompts: Residual, rows: NDArray[np.int64], similarity: Array) -> tuple[Array, Array]:
    """Return the quality that the measured prompts in `rows` show (n_categories, n_experts), and the errors of all
    prompts in `rows`, of which the rated ones come last.

    What the measured prompts do not explain of the ratings is compared with its mean by category and expert, since
    ratings have their own level. Then the mean of the other ratings near it is subtracted, whichever expert they are
    of, because only differences between experts decide.
    """
    categories, experts, is_own = prompts.categories, prompts.experts, prompts.labels[rows] >= 0
    own, rated = rows[is_own], rows[~is_own]
    labels, scores = prompts.labels[own], prompts.scores[own]
    table = tabulate_partly(categories, experts, np.eye(len(categories))[labels], scores)
    quality = table.posterior().mean
    known, errors = centred_errors(scores, prompts.posteriors[own] @ quality)
    posteriors, ratings = prompts.posteriors[rated], prompts.scores[rated]
    rest = ratings - smoothed(similarity[np.ix_(rated, own)], errors, known)
    level = posteriors @ tabulate_softly(categories, experts, posteriors, rest).shrunk()
    answered, near = np.isfinite(ratings), similarity[np.ix_(rated, rated)]
    error = (ratings - level)[answered][:, None]
    np.fill_diagonal(near, -np.inf)
    return quality, np.vstack((errors, np.where(answered, error - smoothed(near, error, np.ones_like(error)), 0.0)))


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
