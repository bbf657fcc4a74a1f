"""The residual of a plan: what the text of a request says about the experts beyond its category.

It is a mean over measured prompts i, weighted by how similar they are to the text: sum_i w_i e_i / (sum_i w_i +
PSEUDO_COUNT), with w_i = exp(SHARPNESS * (cosine_i - 1)). e_i are the prompt's scores less those that the score table
expects under its posterior, centred over the experts, because only differences between experts decide. The cosine is
that of the encoder's layers, each centred and of unit length.

Rated requests join it as further prompts, each with the reward of the expert that answered (`Ratings`).

A residual is used only if it improves decisions on measured prompts that it was not fitted to (`Residual.fitted`).
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
from coe.planning.grid import select
from coe.planning.score_table import fit_pseudo_count, tabulate_partly, tabulate_softly

Array = NDArray[Any]

VERSION = 1
"""Version of the file that `Residual.to_bytes` makes."""
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
"""Prompts that an explanation shows, and the length of their beginnings."""
FOLDS = 10
TEMPERATURE = 0.02
"""Scale of the noise on utilities under which decisions are tested. A decision between experts of nearly equal utility
may flip with the next price; the test counts it by its probability, which varies less than counting flips."""
LEVEL_ERRORS = 2.0
"""Standard errors by which decisions must improve."""
_NAMES = ("categories", "experts", "encoder", "prompt_ids", "texts")
_MEASURED = ("labels", "posteriors", "left_out")
_ALL = ("scores", "expected", "vectors")
"""Fields of `Residual` in its file: names, arrays with a row for each measured prompt, and for every prompt."""


Read = Callable[[NDArray[np.int64]], tuple[Array, Array]]
"""Maps rows of prompts to the encoder's features (n_rows, width), whose sentence vectors come first, and the router's
posteriors (n_rows, n_categories)."""


class Ratings(NamedTuple):
    """Rated requests, oldest first: their ids, the `vectors` (n_rated, n_axes) of their texts, the router's
    `posteriors` (n_rated, n_categories), the index of the expert that answered, and its `reward`, 0 to 1."""

    request_ids: tuple[str, ...]
    vectors: Array
    posteriors: Array
    expert: NDArray[np.int64]
    reward: Array


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
    """The n_measured prompts of `coe score`, then rated requests, n_prompts together, and what they say about a text.

    - `encoder`: the digest of the encoder whose features `projection` maps to `vectors` (n_prompts, n_axes).
    - `prompt_ids` (n_prompts,); `texts` (n_measured,): beginnings of the measured prompts. Those of requests are not
      kept.
    - `labels` (n_measured,): the index of each prompt's category, -1 if it is not among `categories`.
    - `posteriors` (n_measured, n_categories): the router's. The prices of budgets are fitted to them too.
    - `scores` (n_prompts, n_experts), NaN where missing, and `expected`, of the same shape, by table and posterior.
    - `left_out` (n_measured, n_experts): the residual of each measured prompt by the others.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    encoder: str
    prompt_ids: tuple[str, ...]
    texts: tuple[str, ...]
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
        count, known = len(self.labels), np.isfinite(self.scores)
        rated = np.where(known, self.scores - self.expected, 0.0)[count:]  # one score each, so there is no mean
        errors = np.vstack((centred_errors(self.scores[:count], self.expected[:count])[1], rated))
        object.__setattr__(self, "_known", known.astype(np.float32))
        object.__setattr__(self, "_errors", errors.astype(np.float32))

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
        features, scores = features.astype(np.float32), scores[rows]
        projection = Projection.of(features, dimensions)
        return cls(
            tuple(categories),
            tuple(experts),
            encoder,
            tuple(prompts[row][0][:MAX_ID_CHARACTERS] for row in rows.tolist()),
            tuple(_beginning(prompts[row][1]) for row in rows.tolist()),
            labels[rows],
            posteriors,
            scores,
            np.nan_to_num(scores),
            np.zeros(scores.shape),
            projection,
            projection(features),
        )

    def fitted(self, charge: Array, ratings: Ratings | None = None) -> tuple[Residual | None, Evidence]:
        """Fit to the measured prompts and to the newest of `ratings` that MAX_PROMPTS allow, in place of earlier ones.

        `charge` (n_categories, n_experts) is the plan's price, infinite where an expert may not serve a category.
        Returns None, with the reason, unless decisions on measured prompts improve by two standard errors over those
        with the residual before (`left_out`).

        On each fold, table and residual are those of the other folds. Every pair of prompts tests each other, so that
        the variance of their gains is twice that of independent ones: without this factor the test would accept three
        times as many residuals of pools where nothing but the category matters.
        """
        base = self._measured()
        labels, posteriors, scores, count = base.labels, base.posteriors, base.scores, len(base.labels)
        if count < MIN_PROMPTS:
            return None, Evidence(0.0, 0.0, f"{count} prompts are measured; it needs {MIN_PROMPTS}")
        rated = _Rated(base, ratings)
        similarity = np.hstack((base.vectors @ base.vectors.T, rated.nearby.T))
        fold = np.random.default_rng(0).permutation(count) % FOLDS
        price = np.where(np.isfinite(charge), charge, 0.0)
        before = np.where(np.isfinite(charge), 0.0, -np.inf)[posteriors.argmax(axis=1)] - posteriors @ price
        left_out = np.zeros(scores.shape)
        for held in range(FOLDS):
            tested, others = np.flatnonzero(fold == held), np.flatnonzero(fold != held)
            quality = _quality(labels[others], scores[others], len(base.categories))
            known, errors = rated.joined(others, *centred_errors(scores[others], posteriors[others] @ quality))
            left_out[tested] = smoothed(np.delete(similarity[tested], tested, axis=1), errors, known)
            before[tested] += posteriors[tested] @ quality
        may = np.isfinite(charge).any(axis=0)
        utility = before[:, may] + base.left_out[:, may], before[:, may] + left_out[:, may]
        evidence = _evidence(*utility, scores[:, may])
        expected = posteriors @ _quality(labels, scores, len(base.categories))
        _, errors = rated.joined(np.arange(count), *centred_errors(scores, expected))
        rewards = np.where(rated.answered, rated.ratings.reward[:, None], np.nan)
        fitted = replace(
            base,
            prompt_ids=(*base.prompt_ids, *(one[:MAX_ID_CHARACTERS] for one in rated.ratings.request_ids)),
            scores=np.vstack((scores, rewards)),
            expected=np.vstack((expected, np.nan_to_num(rewards) - errors[count:])),
            left_out=left_out,
            vectors=np.vstack((base.vectors, rated.ratings.vectors)),
        )
        return (None if evidence.refused else fitted), evidence

    def _measured(self) -> Residual:
        """Return the measured prompts of known categories alone."""
        rows = np.flatnonzero(self.labels >= 0)
        found: dict[str, Any] = {name: getattr(self, name)[rows] for name in (*_MEASURED, *_ALL)}
        for name in ("prompt_ids", "texts"):
            found[name] = tuple(getattr(self, name)[row] for row in rows.tolist())
        return replace(self, **found)

    def __call__(self, features: Array) -> Array:
        """Return the expected score of each expert beyond its category, shape (n_experts,), for features (width,)."""
        return np.asarray(smoothed(self._similarity(features)[None], self._errors, self._known)[0])

    def nearest(self, features: Array, experts: Sequence[str]) -> list[dict[str, Any]]:
        """Return the prompts nearest to features (width,), nearest first: id, category, beginning of the text,
        similarity, share of all weights, and the known scores of `experts`. A rated request has the id alone."""
        similarity, count = self._similarity(features), len(self.labels)
        weights = np.exp(SHARPNESS * (similarity - 1.0))
        columns = [(name, self.experts.index(name)) for name in experts if name in self.experts]
        return [
            {
                "prompt_id": self.prompt_ids[row],
                "category": (*self.categories, "")[self.labels[row]] if row < count else "",
                "text": self.texts[row] if row < count else None,
                "similarity": round(float(similarity[row]), 4),
                "weight": round(float(weights[row] / (weights.sum() + PSEUDO_COUNT)), 4),
                "scores": {name: float(self.scores[row, one]) for name, one in columns if self._known[row, one]},
            }
            for row in np.argsort(-similarity)[:MAX_NEAREST].tolist()
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
        missing = {"scores": np.nan, "expected": 0.0, "left_out": 0.0}
        columns: dict[str, Any] = {
            name: select(getattr(self, name), self.experts, experts, missing=one) for name, one in missing.items()
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
        names = {name: getattr(self, name) for name in _NAMES}
        arrays = {name: getattr(self, name) for name in (*_MEASURED, *_ALL)}
        arrays |= {"centre": self.projection.centre, "axes": self.projection.axes}
        file = io.BytesIO()
        np.savez(
            file,
            names=np.frombuffer(orjson.dumps({"version": VERSION, **names}), dtype=np.uint8),
            **{name: array.astype(np.int16 if name == "labels" else np.float16) for name, array in arrays.items()},
        )
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Residual:
        """Parse the result of `to_bytes`. Raises ArtifactError."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                names = orjson.loads(file["names"].tobytes())
                arrays = {name: file[name].astype(np.float32) for name in (*_MEASURED, *_ALL, "centre", "axes")}
            if names["version"] != VERSION:
                raise ValueError(f"not of version {VERSION}")
            projection = Projection(arrays.pop("centre"), arrays.pop("axes"))
            fields: dict[str, Any] = {name: tuple(names[name]) for name in _NAMES} | {"encoder": str(names["encoder"])}
            return cls(**fields, **arrays | {"labels": arrays["labels"].astype(np.int64)}, projection=projection)
        except (KeyError, TypeError, ValueError, OSError, EOFError, AttributeError, BadZipFile) as error:
            raise ArtifactError(f"residual: cannot be read ({error!r}); make it again with `coe plan`") from error


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


def _beginning(text: str) -> str:
    return " ".join(text[: 4 * MAX_TEXT_CHARACTERS].split())[:MAX_TEXT_CHARACTERS]


class _Rated:
    """The newest ratings as rows beside measured prompts. `answered` (n_rated, n_experts) marks the expert that
    answered, and `nearby` (n_rated, n_measured) is their similarity."""

    def __init__(self, measured: Residual, ratings: Ratings | None) -> None:
        axes, count = measured.vectors.shape[1], len(measured.categories)
        found = ratings or Ratings((), np.zeros((0, axes)), np.zeros((0, count)), np.zeros(0, np.int64), np.zeros(0))
        newest = slice(max(len(found.reward) - (MAX_PROMPTS - len(measured.labels)), 0), None)
        self.ratings = Ratings(*(values[newest] for values in tuple[Any, ...](found)))
        self.answered = np.eye(len(measured.experts), dtype=np.bool_)[self.ratings.expert]
        self.nearby = self.ratings.vectors @ measured.vectors.T
        self._weights = np.exp(SHARPNESS * (self.ratings.vectors @ self.ratings.vectors.T - 1.0))
        np.fill_diagonal(self._weights, 0.0)

    def joined(self, rows: NDArray[np.int64], known: Array, errors: Array) -> tuple[Array, Array]:
        """Return the known scores and the errors of the measured prompts in `rows`, followed by those of the ratings.

        What the measured prompts do not explain of the rewards is compared with its mean by category and expert, since
        ratings have their own level. Then the mean of the other ratings near it is subtracted, whichever expert they
        are of, because only differences between experts decide.
        """
        posteriors, reward = self.ratings.posteriors, self.ratings.reward
        if not len(reward):
            return known, errors
        rest = np.where(self.answered, reward[:, None] - smoothed(self.nearby[:, rows], errors, known), np.nan)
        names = _numbered(posteriors.shape[1]), _numbered(self.answered.shape[1])
        error = reward - (posteriors @ tabulate_softly(*names, posteriors, rest).shrunk())[self.answered]
        error -= self._weights @ error / (self._weights.sum(axis=1) + PSEUDO_COUNT)
        own = np.where(self.answered, error[:, None], 0.0)
        return np.vstack((known, self.answered)), np.vstack((errors, own))


def _numbered(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def _quality(labels: NDArray[np.int64], scores: Array, categories: int) -> Array:
    names = _numbered(categories)
    table = tabulate_partly(names, _numbered(scores.shape[1]), np.eye(categories)[labels], scores)
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
