"""Train a router: export the encoder, embed the texts, fit the heads out of fold, choose thresholds, write the folder.

`train` runs these stages in order and returns the held-out metrics. The encoder is served as int8 unless that costs
held-out accuracy.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.calibration import Floats
from routers.cascade import CONFIG, EXEMPLARS, FORMAT, MULTILINGUAL_HEAD, NETWORK, TOKENIZER
from routers.encoders import ROUTING_TOKENS, OnnxEncoder
from routers.examples import Example, TrainingSet, build_training_set, prompt_digest
from routers.files import write_arrays, write_json
from routers.heads.fast import distil
from routers.heads.lexical import LexicalFeatures, lexical_matrix
from routers.multilingual import is_installed
from routers.tokens import FAST_CHARACTERS, WordCachedTokenizer, load_tokenizer, truncate_middle
from routers.training.embedding_cache import CachedEncoder, export_with_cache, open_encoder
from routers.training.export import locate_encoder, quantise
from routers.training.fitting import (
    TrainingData,
    choose_regularization,
    cross_fit,
    exemplar_rows,
    folds,
    held_out_correct,
    topic_folds,
    write_heads,
)
from routers.training.multilingual import english_part, foreign_texts, train_multilingual
from routers.training.tuning import training_metrics, tune

QUANTISATION_SAMPLE_TEXTS = 2000
"""Texts on which int8 is compared with fp32, at most."""
MAX_QUANTISATION_LOSS = 0.006
"""Held-out accuracy of the linear head that int8 may cost. The cascade loses less: it has three more heads, and most
texts do not need the encoder (docs/experiments/cascade-and-encoders.md)."""
COMPARISON_REPEATS = 8
"""Random divisions into folds that the comparison averages over. One division alone is off by up to .005."""

Progress = Callable[[str, float], None]
OpenEncoder = Callable[[Path], OnnxEncoder | CachedEncoder]
"""Opens the encoder of a network file."""


class StageTimer:
    """Measures the stages of a run in seconds and reports them to `progress`."""

    def __init__(self, progress: Progress | None) -> None:
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
    examples: Sequence[Example],
    *,
    encoder: str,
    out: Path,
    seed: int,
    progress: Progress | None,
    threads: int,
    cache: Path | None,
) -> dict[str, Any]:
    """Train a router. Parameters and errors as in `routers.build`."""
    timer = StageTimer(progress)
    training_set = build_training_set(examples)
    source = locate_encoder(encoder)
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG).unlink(missing_ok=True)  # written last: a folder without it is not a router
    with timer.stage("export"):
        export_with_cache(source, network=out / NETWORK, tokenizer=out / TOKENIZER, cache=cache)
    count = len(training_set.texts)
    training_set, multilingual = write_multilingual_head(
        training_set, out=out, seed=seed, threads=threads, cache=cache, timer=timer
    )
    open_network = partial(open_encoder, tokenizer=out / TOKENIZER, threads=threads, cache=cache)
    embeddings, quantisation = embed_texts(training_set, out=out, open_network=open_network, seed=seed, timer=timer)
    with timer.stage("distil") as report:
        data = compute_training_data(training_set, embeddings, out=out, open_network=open_network, report=report)
    with timer.stage("held-out") as report, single_blas_thread():
        regularization = choose_regularization(data, seed=seed)
        fit = partial(cross_fit, data, regularization, seed=seed)
        held_out = fit(folds(data.labels, seed=seed), report=lambda share: report(share / 2))
        topics = topic_folds(data.vectors, data.labels, seed=seed)
        new_topics = fit(topics, report=lambda share: report((1 + share) / 2)).in_scope
        ensemble, in_distribution = tune(held_out, new_topics, data.labels)
    with timer.stage("fit"), single_blas_thread():
        write_heads(data, regularization, out=out, seed=seed)
        rows = exemplar_rows(data, np.arange(len(data.labels)), seed=seed)
        write_json(out / EXEMPLARS, {"digests": [prompt_digest(training_set.texts[row]) for row in rows]})
    config = {"format": FORMAT, "kind": "cascade", "categories": list(training_set.categories)}
    config |= {"tokens": ROUTING_TOKENS, "multilingual": multilingual is not None}
    config |= {"ensemble": asdict(ensemble), "in_distribution": asdict(in_distribution)}
    write_json(out / CONFIG, config)
    return {
        "examples": count,
        "dropped": training_set.dropped,
        "quantisation": quantisation,
        "encoder": {"dimensions": data.dimensions, "width": data.embeddings.shape[1]},
        "regularization": asdict(regularization),
        "multilingual": multilingual,
        **training_metrics(held_out, new_topics, data.labels, training_set.categories, ensemble, in_distribution),
        "bytes": {path.name: path.stat().st_size for path in sorted(out.iterdir())},
        "seconds": timer.seconds,
    }


def write_multilingual_head(
    training_set: TrainingSet, *, out: Path, seed: int, threads: int, cache: Path | None, timer: StageTimer
) -> tuple[TrainingSet, dict[str, Any] | None]:
    """Train the head for texts that are not English, if the extra `multilingual` can be used here.

    Returns the texts for the English heads, and the held-out metrics of the written head; all texts and None without
    one.
    """
    (out / MULTILINGUAL_HEAD).unlink(missing_ok=True)
    if not is_installed():
        return training_set, None
    foreign = foreign_texts(training_set.texts, out / TOKENIZER)
    with timer.stage("multilingual") as report, single_blas_thread():
        head, metrics = train_multilingual(
            training_set, foreign, tokenizer=out / TOKENIZER, seed=seed, threads=threads, cache=cache, report=report
        )
        write_arrays(out / MULTILINGUAL_HEAD, head.arrays())
    return english_part(training_set, foreign) or training_set, metrics


def embed_texts(
    training_set: TrainingSet, *, out: Path, open_network: OpenEncoder, seed: int, timer: StageTimer
) -> tuple[Floats, dict[str, Any]]:
    """Embed all texts with the int8 network, or with fp32 if int8 costs accuracy; `out` keeps the network used.

    Returns the embeddings (n_texts, width) and the figures of the comparison.
    """
    fp32_network, int8_network = out / NETWORK, out / "encoder.int8.onnx"
    with timer.stage("embed") as report:
        quantise(fp32_network, out=int8_network)
        embeddings = open_network(int8_network).features(training_set.texts, report)
    with timer.stage("compare") as report:
        fp32_encoder = open_network(fp32_network)
        compared = _compare_networks(training_set, embeddings, fp32_encoder, seed=seed, report=report)
    if compared["fp32"] - compared["int8"] <= MAX_QUANTISATION_LOSS:
        int8_network.replace(fp32_network)
        return embeddings, {"kept": "int8", **compared}
    int8_network.unlink()
    with timer.stage("embed in fp32") as report:
        return open_network(fp32_network).features(training_set.texts, report), {"kept": "fp32", **compared}


def _compare_networks(
    training_set: TrainingSet,
    int8_embeddings: Floats,
    fp32_encoder: OnnxEncoder | CachedEncoder,
    *,
    seed: int,
    report: Callable[[float], None],
) -> dict[str, Any]:
    """Return the held-out accuracy with each network on a sample of the texts."""
    sample = sample_texts(training_set.texts, count=QUANTISATION_SAMPLE_TEXTS)
    fp32_embeddings = fp32_encoder.features([training_set.texts[i] for i in sample], report)
    labels = training_set.labels[sample]
    with single_blas_thread():
        fp32, int8 = (
            float(np.mean([held_out_correct(one, labels, seed=seed + i).mean() for i in range(COMPARISON_REPEATS)]))
            for one in (fp32_embeddings, int8_embeddings[sample])
        )
    return {"compared": len(sample), "fp32": fp32, "int8": int8}


def sample_texts(texts: Sequence[str], *, count: int) -> NDArray[np.int64]:
    """Return the indices of the `count` texts with the smallest digests.

    As good as a random sample, but nearly the same if some texts are missing, so that trainings share cached
    embeddings.
    """
    order = sorted(range(len(texts)), key=lambda i: hashlib.blake2b(texts[i].encode()).digest())
    return np.array(order[:count], dtype=np.int64)


def compute_training_data(
    training_set: TrainingSet,
    embeddings: Floats,
    *,
    out: Path,
    open_network: OpenEncoder,
    report: Callable[[float], None],
) -> TrainingData:
    """Tokenize the texts, distil static vectors from the encoder, and compute the lexical matrix."""
    tokenizer = WordCachedTokenizer(load_tokenizer(out / TOKENIZER))
    features = LexicalFeatures(tokenizer)
    texts = [truncate_middle(text, characters=FAST_CHARACTERS) for text in training_set.texts]
    ids = [tokenizer(text) for text in texts]
    encoder = open_network(out / NETWORK)
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
