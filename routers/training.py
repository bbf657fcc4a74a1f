"""Training, from labelled prompts to a router's folder: the table of contents of what `build` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from routers import Example
from routers.calibration import (
    Floats,
    choose_threshold,
    expected_calibration_error,
    fit_pool,
    fit_slope,
    pooled,
    softmax,
)
from routers.cascade import CONFIG, FORMAT, NETWORK, TOKENIZER, Pooling
from routers.distill import distil
from routers.encoders import OnnxEncoder
from routers.examples import Lessons, prepare
from routers.export import export_encoder, locate_encoder, quantise
from routers.files import write_json
from routers.fitting import Data, HeldOut, Labels, choose_strengths, cross_fit, held_out_right, write_heads
from routers.lexical import LexicalFeatures, lexical_matrix
from routers.pieces import CHARACTERS, WordPieces, cut, load_tokenizer

QUANTISATION_SAMPLE = 1000
"""Texts on which int8 is compared with fp32."""
QUANTISATION_LOSS = 0.003
"""Held-out accuracy that int8 may cost, or two standard errors of the difference where the sample tells no finer."""
MOST_ESCALATED = 0.45
ESCALATION_LOSS = 0.005
"""The cheap stage keeps as much as it can within this loss of accuracy, and at least 1 - MOST_ESCALATED."""

Progress = Callable[[str, float], None]


class Stages:
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


def train(
    examples: Sequence[Example], *, encoder: str, out: Path, seed: int, progress: Progress | None, threads: int
) -> dict[str, Any]:
    """See `routers.build`. The small fits run on one BLAS thread: more only wait for each other."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    stages = Stages(progress)
    lessons = prepare(examples)
    source = locate_encoder(encoder)
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG).unlink(missing_ok=True)  # written last: a folder without it is not a router
    with stages.stage("export"):
        export_encoder(source, network=out / NETWORK, tokenizer=out / TOKENIZER)
    with stages.stage("embed") as report:
        vectors, quantisation = embed(lessons, out=out, threads=threads, seed=seed, report=report)
    with stages.stage("distil") as report:
        data = represent(lessons, vectors, out=out, threads=threads, report=report)
    with stages.stage("held-out") as report, threadpool_limits(1, user_api="blas"):
        strengths = choose_strengths(data, seed=seed)
        held_out = cross_fit(data, strengths, seed=seed, report=report)
        pooling = fit_pooling(held_out, data.labels)
    with stages.stage("fit"), threadpool_limits(1, user_api="blas"):
        write_heads(data, strengths, out=out, seed=seed)
    write_json(
        out / CONFIG,
        {
            "format": FORMAT,
            "kind": "cascade",
            "categories": list(lessons.categories),
            "pooling": asdict(pooling),
        },
    )
    return {
        "examples": len(lessons.texts),
        "dropped": lessons.dropped,
        "quantisation": quantisation,
        "strengths": asdict(strengths),
        **measure(held_out, data.labels, lessons.categories, pooling),
        "bytes": {path.name: path.stat().st_size for path in sorted(out.iterdir())},
        "seconds": stages.seconds,
    }


def embed(
    lessons: Lessons, *, out: Path, threads: int, seed: int, report: Callable[[float], None]
) -> tuple[Floats, dict[str, Any]]:
    """Vectors of all texts by the int8 network, or by the fp32 one where int8 costs accuracy; `out` keeps that one."""
    full, small = out / NETWORK, out / "encoder.int8.onnx"
    quantise(full, out=small)
    vectors = OnnxEncoder.load(small, out / TOKENIZER, threads=threads).encode(lessons.texts, report)
    rng = np.random.default_rng(seed)
    sample = rng.permutation(len(lessons.texts))[:QUANTISATION_SAMPLE]
    precise = OnnxEncoder.load(full, out / TOKENIZER, threads=threads)
    exact = precise.encode([lessons.texts[i] for i in sample], report)
    labels = lessons.labels[sample]
    right = {"fp32": held_out_right(exact, labels, seed=seed)}
    right["int8"] = held_out_right(vectors[sample], labels, seed=seed)
    accuracy = {name: float(hits.mean()) for name, hits in right.items()}
    chance = 2 * float(np.std(right["fp32"].astype(float) - right["int8"])) / len(labels) ** 0.5
    if accuracy["fp32"] - accuracy["int8"] <= max(QUANTISATION_LOSS, chance):
        small.replace(full)
        return vectors, {"kept": "int8", **accuracy}
    small.unlink()
    return precise.encode(lessons.texts, report), {"kept": "fp32", **accuracy}


def represent(lessons: Lessons, vectors: Floats, *, out: Path, threads: int, report: Callable[[float], None]) -> Data:
    """Word pieces, static token vectors distilled from the encoder, and the lexical matrix."""
    pieces = WordPieces(load_tokenizer(out / TOKENIZER))
    features = LexicalFeatures(pieces)
    texts = [cut(text, characters=CHARACTERS) for text in lessons.texts]
    ids = [np.array(pieces(text), dtype=np.int64) for text in texts]
    encoder = OnnxEncoder.load(out / NETWORK, out / TOKENIZER, threads=threads)
    frame = load_tokenizer(out / TOKENIZER).encode("").ids
    ends = len(frame) // 2
    tokens = distil(
        lambda tokens: encoder.encode_ids([[*frame[:ends], int(t), *frame[ends:]] for t in tokens], report),
        np.bincount(np.concatenate(ids), minlength=pieces.size),
    )
    return Data(
        labels=lessons.labels,
        classes=len(lessons.categories),
        features=features,
        lexical=lexical_matrix(texts, ids, features),
        tokens=tokens,
        static=tokens.vectors(ids),
        vectors=vectors,
    )


def fit_pooling(held_out: HeldOut, labels: Labels) -> Pooling:
    """Weights and threshold that the held-out logits ask for; the full stage is calibrated on what reaches it."""
    cheap, full = fit_pool(held_out.heads[:2], labels), fit_pool(held_out.heads, labels)
    posterior = softmax(pooled(held_out.heads[:2], cheap))
    logits = pooled(held_out.heads, full)
    threshold = choose_threshold(
        posterior.max(axis=1),
        posterior.argmax(axis=1) == labels,
        logits.argmax(axis=1) == labels,
        most=MOST_ESCALATED,
        loss=ESCALATION_LOSS,
    )
    unsure = posterior.max(axis=1) < threshold
    if not unsure.any():
        unsure[:] = True
    usual = float(held_out.familiarity[unsure].mean())
    slope = fit_slope(logits[unsure], held_out.familiarity[unsure], labels[unsure], usual=usual)
    return Pooling(cheap=cheap, full=full, threshold=threshold, slope=slope, usual=usual)


def measure(held_out: HeldOut, labels: Labels, categories: Sequence[str], pooling: Pooling) -> dict[str, Any]:
    """Held-out accuracy, calibration and escalation of the cascade and its parts."""
    cheap = pooling.join_cheap(held_out.lexical, held_out.static)
    full = pooling.join_full(held_out.heads, held_out.familiarity)
    unsure = cheap.max(axis=1) < pooling.threshold
    posterior = np.where(unsure[:, None], full, cheap)
    right = posterior.argmax(axis=1) == labels
    plain = (pooled(heads, [1 / len(heads)] * len(heads)) for heads in (held_out.heads, held_out.heads[:2]))
    before = softmax(np.where(unsure[:, None], *plain))
    parts = dict(zip(("lexical", "static", "linear", "knn"), held_out.heads, strict=True))
    return {
        "accuracy": float(right.mean()),
        "accuracy_by_category": {name: float(right[labels == i].mean()) for i, name in enumerate(categories)},
        "accuracy_by_head": {
            name: float((logits.argmax(axis=1) == labels).mean())
            for name, logits in {**parts, "cheap": cheap, "full": full}.items()
        },
        "escalated": float(unsure.mean()),
        "threshold": pooling.threshold,
        "ece_before": _ece(before, labels),
        "ece": _ece(posterior, labels),
    }


def _ece(posterior: Floats, labels: Labels) -> float:
    return expected_calibration_error(posterior.max(axis=1), posterior.argmax(axis=1) == labels)
