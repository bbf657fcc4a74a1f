"""Train a router: export the encoder, embed the texts, fit the heads out of fold, choose thresholds, write the folder.

`train` runs these stages in order and returns the held-out metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coe.errors import DataError, pip_install
from routers.calibration import Floats
from routers.cascade import CONFIG, EXEMPLARS, HELD_OUT, MULTILINGUAL_HEAD, TOKENIZER, RouterConfig
from routers.encoders import ROUTING_TOKENS, AnyEncoder, OnnxEncoder, Support
from routers.examples import Example, TrainingSet, build_training_set, prompt_digest, write_arrays, write_json
from routers.heads import LexicalFeatures, distil, lexical_matrix
from routers.multilingual import IS_AVAILABLE, is_installed
from routers.tokens import FAST_CHARACTERS, WordCachedTokenizer, load_tokenizer, truncate_middle
from routers.training.export import export_quantised
from routers.training.fitting import (
    Labels,
    TrainingData,
    choose_regularization,
    cross_fit,
    folds,
    simulate_cascade,
    topic_folds,
    training_metrics,
    tune,
    write_heads,
)
from routers.training.multilingual import english_part, foreign_texts, train_multilingual

Progress = Callable[[str, float], None] | None


class StageTimer:
    """Measures the stages of a run in seconds and reports them to `progress`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress or (lambda stage, share: None)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[float], None]]:
        began = time.perf_counter()
        self._progress(name, 0.0)
        yield lambda share: self._progress(name, share)
        self._progress(name, 1.0)
        self.seconds[name] = round(time.perf_counter() - began, 2)


@contextmanager
def single_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread. With two, which mostly wait for each other, small fits take twenty times as long."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def train(
    examples: Sequence[Example], support: Support, *, encoder: AnyEncoder, out: Path, progress: Progress, threads: int
) -> dict[str, Any]:
    """Train a router. Parameters and errors as in `routers.build`."""
    timer = StageTimer(progress)
    training_set = build_training_set(examples)
    count = len(training_set.texts)
    (out / CONFIG).unlink(missing_ok=True)  # written last: a folder without it is not a router
    with timer.stage("export"):
        network = export_quantised(encoder, out=out, threads=threads)
    with timer.stage("support"), single_blas_thread():
        training_set = support(training_set, network)
    training_set, multilingual = write_multilingual_head(training_set, out=out, threads=threads, timer=timer)
    with timer.stage("embed") as report:
        embeddings = network.features(training_set.texts, report)
    with timer.stage("distil") as report:
        data = compute_training_data(training_set, embeddings, out=out, encoder=network, report=report)
    with timer.stage("held-out") as report, single_blas_thread():
        regularization = choose_regularization(data)
        fit = partial(cross_fit, data, regularization)
        held_out = fit(folds(data.labels), report=lambda share: report(share / 2))
        topics = topic_folds(data.vectors, data.labels)
        new_topics = fit(topics, report=lambda share: report((1 + share) / 2)).in_scope
        declared = np.flatnonzero(training_set.declared)
        rows = declared if len(declared) == len(data.labels) else balanced_rows(declared, data.labels)
        ensemble, in_distribution = tune(held_out.part(rows), new_topics.part(rows), data.labels[rows])
        held_out, new_topics = held_out.part(declared), new_topics.part(declared)
    with timer.stage("fit"), single_blas_thread():
        exemplars = write_heads(data, regularization, out=out)
    categories, has_head = training_set.categories, multilingual is not None
    config = RouterConfig(categories, ROUTING_TOKENS, has_head, ensemble, in_distribution)
    digests = list(map(prompt_digest, training_set.texts))
    best = simulate_cascade(held_out.in_scope, ensemble, in_distribution).best
    write_json(out / EXEMPLARS, {"digests": [digests[row] for row in exemplars]})
    write_json(out / HELD_OUT, {digests[row]: categories[i] for row, i in zip(declared, best, strict=True)})
    write_json(out / CONFIG, asdict(config))
    return {
        "examples": count,
        "dropped": training_set.dropped,
        "encoder": {"dimensions": data.dimensions, "width": data.embeddings.shape[1]},
        "regularization": regularization,
        "multilingual": multilingual,
        **training_metrics(held_out, new_topics, data.labels[declared], categories, ensemble, in_distribution),
        "bytes": {path.name: path.stat().st_size for path in sorted(out.iterdir())},
        "seconds": timer.seconds,
    }


def write_multilingual_head(
    training_set: TrainingSet, *, out: Path, threads: int, timer: StageTimer
) -> tuple[TrainingSet, dict[str, Any] | None]:
    """Train the head for texts that are not English, where the packages of the extra `multilingual` exist.

    Returns the texts for the English heads, and the held-out metrics of the written head; all texts and None on other
    platforms. Raises DataError if the extra is missing.
    """
    (out / MULTILINGUAL_HEAD).unlink(missing_ok=True)
    if not is_installed():
        if IS_AVAILABLE:
            remedy = f"run `{pip_install('multilingual')}`"
            raise DataError(f"training needs the extra `multilingual`, for prompts in other languages; {remedy}")
        return training_set, None
    foreign = foreign_texts(training_set.texts, out / TOKENIZER)
    with timer.stage("multilingual") as report, single_blas_thread():
        head, metrics = train_multilingual(
            training_set, foreign, tokenizer=out / TOKENIZER, threads=threads, report=report
        )
        write_arrays(out / MULTILINGUAL_HEAD, head.arrays())
    return english_part(training_set, foreign) or training_set, metrics


def balanced_rows(rows: Labels, labels: Labels) -> Labels:
    """Repeat the rows of small categories, so that each category has as many as the largest one."""
    parts = [rows[labels[rows] == label] for label in np.unique(labels[rows])]
    return np.concatenate([np.resize(part, max(map(len, parts))) for part in parts])


def compute_training_data(
    training_set: TrainingSet,
    embeddings: Floats,
    *,
    out: Path,
    encoder: OnnxEncoder,
    report: Callable[[float], None],
) -> TrainingData:
    """Tokenize the texts, distil static vectors from the encoder, and compute the lexical matrix."""
    tokenizer = WordCachedTokenizer(load_tokenizer(out / TOKENIZER))
    features = LexicalFeatures(tokenizer)
    texts = [truncate_middle(text, characters=FAST_CHARACTERS) for text in training_set.texts]
    ids = [tokenizer(text) for text in texts]
    special = load_tokenizer(out / TOKENIZER).encode("").ids
    start, end = special[: len(special) // 2], special[len(special) // 2 :]
    tokens = distil(
        lambda ids: encoder.embed_ids([[*start, int(i), *end] for i in ids], report),  # with the inner layers
        np.bincount(np.concatenate(ids), minlength=tokenizer.vocabulary_size),
    )
    return TrainingData(
        labels=training_set.labels,
        classes=len(training_set.categories),
        features=features,
        lexical=lexical_matrix(texts, ids, features),
        tokens=tokens,
        static=tokens.vectors(ids),
        embeddings=embeddings,
        dimensions=encoder.dimensions,
    )
