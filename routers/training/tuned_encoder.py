"""Decide whether a router serves an encoder that was tuned on its prompts, and keep the prompts apart for that.

An encoder that was tuned on all prompts would leave none to measure on, since held-out folds hold prompts that it has
seen. So a fifth of the prompts is held out of the tuning, and one topic of each category. Pool weights, thresholds and
metrics come from the fifth, temperatures from the topics. The tuned encoder is kept if the cascade is more accurate
with it on the fifth, by more than a standard error.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coe.errors import ArtifactError, DataError
from routers.cascade import NETWORK, TOKENIZER, TUNED_ON, UNTUNED_NETWORK
from routers.encoders import OnnxEncoder, TaskRunner
from routers.examples import TrainingSet, prompt_digest
from routers.files import read_json, write_json
from routers.training.contrastive import tune_network
from routers.training.embedding_cache import CachedEncoder
from routers.training.export import export_encoder, quantise
from routers.training.fitting import (
    HeldOutTexts,
    Labels,
    Regularization,
    TrainingData,
    choose_regularization,
    cross_fit,
    folds,
    single_blas_thread,
    topic_folds,
)
from routers.training.tuning import simulate_cascade, tune

MIN_PROMPTS = 20
"""Prompts of each category that tuning needs. Four are held out of it."""
MIN_GAIN = 0.0
"""Accuracy of the cascade by which the tuned encoder must exceed the untuned one, beside a standard error."""

Progress = Callable[[float], None]
Scored = tuple[Regularization, HeldOutTexts]


@dataclass(frozen=True, slots=True)
class Division:
    """Rows of a training set: those that the encoder was `tuned` on, whole `topics` that it has not seen, and other
    `held` rows that it has not seen."""

    tuned: Labels
    topics: Labels
    held: Labels

    @classmethod
    def of(cls, data: TrainingData, *, seed: int) -> Self:
        """Hold out a fifth of each category and the smallest of the folds of topics among the others."""
        rest, held = folds(data.labels, seed=seed)[0]
        parts = topic_folds(data.vectors[rest], data.labels[rest], seed=seed)
        tuned, topics = min(parts, key=lambda part: len(part[1]))
        return cls(rest[tuned], rest[topics], held)

    @classmethod
    def read(cls, folder: Path, training_set: TrainingSet) -> Self:
        """Return the division of these texts by what the tuned encoder in `folder` has seen. Raises ArtifactError, and
        DataError if it was tuned on too few of the texts, or on too many."""
        found = read_json(folder / TUNED_ON)
        digests = np.array([prompt_digest(text) for text in training_set.texts])
        tuned, topics = (np.isin(digests, found.get(name, [])) for name in ("tuned", "topics"))
        held = ~tuned & ~topics
        for part in (tuned, held):
            if min(np.bincount(training_set.labels[part], minlength=len(training_set.categories))) < 2:
                raise DataError(f"{folder}: its encoder was tuned on other prompts; train again with --tune-encoder")
        return cls(*(np.flatnonzero(part) for part in (tuned, topics if topics.any() else held, held)))

    def write(self, folder: Path, training_set: TrainingSet) -> None:
        rows = {"tuned": self.tuned, "topics": self.topics}
        write_json(
            folder / TUNED_ON,
            {name: sorted(prompt_digest(training_set.texts[i]) for i in part) for name, part in rows.items()},
        )

    def score(self, data: TrainingData, *, seed: int, runner: TaskRunner, report: Progress) -> Scored:
        """Score the held rows, and those of the topics, by heads that were fitted without them."""
        rest = np.setdiff1d(np.arange(len(data.labels)), self.held)
        regularization = choose_regularization(data, (rest, self.held), runner=runner)
        held_out, new_topics = (
            cross_fit(
                data,
                regularization,
                [(fitted, scored)],
                seed=seed,
                runner=runner,
                report=lambda share, done=done: report((done + share) / 2),  # type: ignore[misc]
            )
            for done, (fitted, scored) in enumerate([(rest, self.held), (self.tuned, self.topics)])
        )
        return regularization, HeldOutTexts(
            held_out, data.labels[self.held], new_topics.in_scope, data.labels[self.topics]
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """Held-out accuracy of the cascade with both encoders: the `difference` and its standard `error`, in pairs."""

    tested: int
    untuned: float
    tuned: float
    difference: float
    error: float

    @property
    def gains(self) -> bool:
        """True if the difference is above one standard error."""
        return self.difference - self.error > MIN_GAIN


def compare(untuned: HeldOutTexts, tuned: HeldOutTexts, *, seed: int) -> Comparison:
    """Compare the cascades on the same held-out texts. Each half is tested with weights and thresholds of the other."""
    before, after = (_correct_by_halves(texts, seed=seed).astype(float) for texts in (untuned, tuned))
    gain = after - before
    error = float(gain.std(ddof=1) / math.sqrt(len(gain)))
    return Comparison(len(gain), float(before.mean()), float(after.mean()), float(gain.mean()), error)


def _correct_by_halves(texts: HeldOutTexts, *, seed: int) -> NDArray[np.bool_]:
    """Return which held-out texts the cascade classifies correctly."""
    order = np.random.default_rng(seed).permutation(len(texts.labels))
    order = order[np.argsort(texts.labels[order], kind="stable")]
    halves, correct = (np.sort(order[::2]), np.sort(order[1::2])), np.zeros(len(order), dtype=bool)
    for fitted, tested in (halves, halves[::-1]):
        ensemble, in_distribution = tune(texts.part(fitted))
        outputs = simulate_cascade(texts.scores.in_scope.part(tested), ensemble, in_distribution)
        correct[tested] = outputs.correct(texts.labels[tested])
    return correct


def require_prompts(training_set: TrainingSet) -> None:
    """Raise DataError if a category has too few prompts to tune an encoder."""
    counts = np.bincount(training_set.labels, minlength=len(training_set.categories))
    few = [f"{name} ({n})" for name, n in zip(training_set.categories, counts.tolist(), strict=True) if n < MIN_PROMPTS]
    if few:
        raise DataError(
            f"--tune-encoder needs {MIN_PROMPTS} English prompts of each category; too few: {', '.join(few)}; "
            "add prompts, or train without it"
        )


def copy_encoder(source: Path, *, out: Path) -> None:
    """Copy the tuned encoder of the router in `source`, and the record of what it has seen."""
    for name in (NETWORK, UNTUNED_NETWORK, TOKENIZER, TUNED_ON):
        try:
            (out / name).write_bytes((source / name).read_bytes())
        except OSError as error:
            raise ArtifactError(f"{source / name}: unreadable ({error}); train the router again") from error


def write_tuned_network(
    source: str,
    training_set: TrainingSet,
    rows: Labels,
    *,
    network: Path,
    seed: int,
    threads: int,
    report: Progress,
) -> None:
    """Tune the encoder `source` on these rows and write it to `network` in int8."""
    texts, labels = [training_set.texts[row] for row in rows], training_set.labels[rows]
    with tempfile.TemporaryDirectory(dir=network.parent) as draft:
        tuned, exported = Path(draft) / "tuned", Path(draft) / "encoder.onnx"
        tune_network(source, texts, labels, out=tuned, seed=seed, threads=threads, report=report)
        export_encoder(str(tuned), network=exported, tokenizer=Path(draft) / TOKENIZER)
        quantise(exported, out=network)


def try_tuning(
    source: str,
    training_set: TrainingSet,
    data: TrainingData,
    *,
    out: Path,
    open_network: Callable[[Path], OnnxEncoder | CachedEncoder],
    seed: int,
    threads: int,
    runner: TaskRunner,
    stage: Callable[[str], Any],
) -> tuple[TrainingData, Scored | None, dict[str, Any]]:
    """Tune the encoder, and put it in `out` if it makes the cascade more accurate.

    Returns the training data with the chosen encoder, the held-out scores if that is the tuned one, and the metrics.
    """
    division, network = Division.of(data, seed=seed), out / "encoder.tuned.onnx"
    with stage("tune encoder") as report:
        write_tuned_network(
            source, training_set, division.tuned, network=network, seed=seed, threads=threads, report=report
        )
    with stage("embed by the tuned encoder") as report:
        tuned = replace(data, embeddings=open_network(network).features(training_set.texts, report))
    with stage("compare encoders") as report, single_blas_thread():
        before, after = (division.score(one, seed=seed, runner=runner, report=report) for one in (data, tuned))
        found = compare(before[1], after[1], seed=seed)
    metrics: dict[str, Any] = {"in_use": found.gains, "tuned_on": len(division.tuned), "held_out": found.tested}
    metrics |= {"untuned": found.untuned, "tuned": found.tuned}
    metrics |= {"difference": found.difference, "standard_error": found.error}
    if not found.gains:
        network.unlink()
        return data, None, metrics
    (out / NETWORK).replace(out / UNTUNED_NETWORK)
    network.replace(out / NETWORK)
    division.write(out, training_set)
    return tuned, after, metrics | {"encoder": hashlib.sha256((out / NETWORK).read_bytes()).hexdigest()[:16]}
