"""Training, from labelled prompts to a router's folder: the table of contents of what `build` does."""

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
from routers.cascade import CONFIG, EXEMPLARS, FORMAT, NETWORK, TOKENIZER
from routers.encoders import ROUTING_TOKENS, OnnxEncoder
from routers.examples import Example, TrainingSet, build_training_set, prompt_digest
from routers.files import write_json
from routers.heads.lexical import LexicalFeatures, lexical_matrix
from routers.heads.static import distil
from routers.tokens import FAST_CHARACTERS, WordCachedTokenizer, load_tokenizer, truncate_middle
from routers.training.embedding_cache import CachedEncoder, export_once, open_encoder
from routers.training.export import locate_encoder, quantise
from routers.training.fitting import (
    TrainingData,
    choose_regularization,
    cross_fit,
    exemplar_rows,
    held_out_correct,
    write_heads,
)
from routers.training.parallel import TaskRunner
from routers.training.tuning import training_metrics, tune

QUANTISATION_SAMPLE_TEXTS = 2000
"""Most texts on which int8 is compared with fp32."""
MAX_QUANTISATION_LOSS = 0.003
"""Held-out accuracy that int8 may cost."""
COMPARISON_REPEATS = 8
"""Divisions into folds that the comparison is averaged over: what one alone says is off by .005 either way."""

Progress = Callable[[str, float], None]
OpenEncoder = Callable[[Path], OnnxEncoder | CachedEncoder]
"""The encoder of a network."""


class StageTimer:
    """Times the stages of a run, in seconds, and tells `progress` of them."""

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
    """On one BLAS thread: with two, which mostly wait for each other, such a fit takes twenty times as long."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

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
    memory: Path | None,
    work: TaskRunner,
) -> dict[str, Any]:
    """See `routers.build`."""
    stages = StageTimer(progress)
    lessons = build_training_set(examples)
    source = locate_encoder(encoder)
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG).unlink(missing_ok=True)  # written last: a folder without it is not a router
    with stages.stage("export"):
        export_once(source, network=out / NETWORK, tokenizer=out / TOKENIZER, memory=memory)
    opened = partial(open_encoder, tokenizer=out / TOKENIZER, threads=threads, memory=memory, work=work)
    embeddings, quantisation = embed_texts(lessons, out=out, opened=opened, seed=seed, stages=stages)
    with stages.stage("distil") as report:
        data = compute_training_data(lessons, embeddings, out=out, opened=opened, report=report)
    with stages.stage("held-out") as report, single_blas_thread():
        strengths = choose_regularization(data, seed=seed, work=work)
        held_out = cross_fit(data, strengths, seed=seed, work=work, report=report)
        pooling, familiarities = tune(held_out, data.labels)
    with stages.stage("fit"), single_blas_thread():
        write_heads(data, strengths, out=out, seed=seed)
        rows = exemplar_rows(data, np.arange(len(data.labels)), seed=seed)
        write_json(out / EXEMPLARS, {"digests": [prompt_digest(lessons.texts[row]) for row in rows]})
    write_json(
        out / CONFIG,
        {
            "format": FORMAT,
            "kind": "cascade",
            "categories": list(lessons.categories),
            "tokens": ROUTING_TOKENS,
            "pooling": asdict(pooling),
            "familiarities": asdict(familiarities),
        },
    )
    return {
        "examples": len(lessons.texts),
        "dropped": lessons.dropped,
        "quantisation": quantisation,
        "encoder": {"dimensions": data.dimensions, "width": data.embeddings.shape[1]},
        "strengths": asdict(strengths),
        **training_metrics(held_out, data.labels, lessons.categories, pooling, familiarities),
        "bytes": {path.name: path.stat().st_size for path in sorted(out.iterdir())},
        "seconds": stages.seconds,
    }


def embed_texts(
    lessons: TrainingSet, *, out: Path, opened: OpenEncoder, seed: int, stages: StageTimer
) -> tuple[Floats, dict[str, Any]]:
    """Readings of all texts by the int8 network, or by the fp32 one where int8 costs accuracy; `out` keeps that one."""
    full, small = out / NETWORK, out / "encoder.int8.onnx"
    with stages.stage("embed") as report:
        quantise(full, out=small)
        embeddings = opened(small).read(lessons.texts, report)
    with stages.stage("compare") as report:
        found = _compare(lessons, embeddings, opened(full), seed=seed, report=report)
    if found["fp32"] - found["int8"] <= MAX_QUANTISATION_LOSS:
        small.replace(full)
        return embeddings, {"kept": "int8", **found}
    small.unlink()
    with stages.stage("embed in fp32") as report:
        return opened(full).read(lessons.texts, report), {"kept": "fp32", **found}


def _compare(
    lessons: TrainingSet,
    embeddings: Floats,
    precise: OnnxEncoder | CachedEncoder,
    *,
    seed: int,
    report: Callable[[float], None],
) -> dict[str, Any]:
    """Held-out accuracy with the `precise` network and with the one that gave `embeddings`, on a sample."""
    sample = sample_texts(lessons.texts, count=QUANTISATION_SAMPLE_TEXTS)
    exact, labels = precise.read([lessons.texts[i] for i in sample], report), lessons.labels[sample]
    with single_blas_thread():
        fp32, int8 = (_held_out_accuracy(found, labels, seed=seed) for found in (exact, embeddings[sample]))
    return {"compared": len(sample), "fp32": fp32, "int8": int8}


def _held_out_accuracy(embeddings: Floats, labels: NDArray[np.int64], *, seed: int) -> float:
    return float(
        np.mean([held_out_correct(embeddings, labels, seed=seed + i).mean() for i in range(COMPARISON_REPEATS)])
    )


def sample_texts(texts: Sequence[str], *, count: int) -> NDArray[np.int64]:
    """Indices of `count` texts, those of the smallest digests: as good as random, and much the same when some are
    missing, so that trainings with one memory share them."""
    order = sorted(range(len(texts)), key=lambda i: hashlib.blake2b(texts[i].encode()).digest())
    return np.array(order[:count], dtype=np.int64)


def compute_training_data(
    lessons: TrainingSet, embeddings: Floats, *, out: Path, opened: OpenEncoder, report: Callable[[float], None]
) -> TrainingData:
    """Word pieces, static token vectors distilled from the encoder, and the lexical matrix."""
    pieces = WordCachedTokenizer(load_tokenizer(out / TOKENIZER))
    features = LexicalFeatures(pieces)
    texts = [truncate_middle(text, characters=FAST_CHARACTERS) for text in lessons.texts]
    ids = [pieces(text) for text in texts]
    encoder = opened(out / NETWORK)
    frame = load_tokenizer(out / TOKENIZER).encode("").ids
    ends, vectors = len(frame) // 2, slice(encoder.dimensions)
    tokens = distil(
        lambda tokens: encoder.read_ids([[*frame[:ends], int(t), *frame[ends:]] for t in tokens], report)[:, vectors],
        np.bincount(np.concatenate(ids), minlength=pieces.size),
    )
    return TrainingData(
        labels=lessons.labels,
        classes=len(lessons.categories),
        features=features,
        lexical=lexical_matrix(texts, ids, features),
        tokens=tokens,
        static=tokens.vectors(ids),
        embeddings=embeddings,
        dimensions=encoder.dimensions,
    )
