"""The sentence encoder: embeddings, export and graph rewrites."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest

from routers.encoders import OnnxEncoder
from routers.training.export import (
    WORD_STEP,
    export_encoder,
    inner_layers,
    quantise,
)
from tests.routers.conftest import save_bert

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TEXTS = ["bake the stew", "orbit", "a star that a telescope sees " * 8, "", "bake the stew"]


@pytest.fixture
def network(built: tuple[Path, Any, Any], tmp_path: Path) -> Path:
    """A quantised network, which scales its whole input."""
    quantise(built[0] / "encoder.onnx", out=tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


@pytest.mark.parametrize("threads", [1, 2])
def test_an_embedding_does_not_depend_on_other_texts_or_threads(
    built: tuple[Path, Any, Any], network: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr("routers.encoders.TEXTS_PER_BATCH", 2)
    alone = OnnxEncoder(network, built[0] / "tokenizer.json")
    expected = np.concatenate([alone.features([text]) for text in TEXTS])
    progress: list[float] = []
    encoder = OnnxEncoder(network, built[0] / "tokenizer.json", threads=threads)
    np.testing.assert_array_equal(encoder.features(TEXTS, progress.append), expected)
    assert progress == [0.4, 0.8, 1.0]
    np.testing.assert_array_equal(encoder.encode(TEXTS), expected[:, : encoder.dimensions])
    assert encoder.encode([]).shape == (0, encoder.dimensions)
    assert encoder.features([]).shape == (0, encoder.width)


def test_quantised_word_vectors_keep_every_fourth_level(network: Path) -> None:
    tables = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(network).graph.initializer}
    (levels,) = (table for name, table in tables.items() if name.endswith("word_embeddings.weight_quantized"))
    (zero,) = (table for name, table in tables.items() if name.endswith("word_embeddings.weight_zero_point"))
    distance = levels.astype(int) - int(zero)
    inside = distance[(levels > np.iinfo(levels.dtype).min) & (levels < np.iinfo(levels.dtype).max)]
    assert (inside % WORD_STEP == 0).all()
    assert len(np.unique(inside)) > 10


def original_model(source: Path) -> SentenceTransformer:
    """The model as sentence-transformers runs it. Imported here, since each test process collects this file."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(source), device="cpu")


@pytest.mark.parametrize("layers", [1, 3])
def test_an_embedding_is_the_sentence_vector_and_the_means_of_the_inner_layers(layers: int, tmp_path: Path) -> None:
    import torch

    source = save_bert(tmp_path, layers=layers, spread=0.3)  # such that attention matters
    export_encoder(str(source), network=tmp_path / "network", tokenizer=tmp_path / "tokenizer")
    text = "a star that a telescope sees"
    encoder = OnnxEncoder(tmp_path / "network", tmp_path / "tokenizer")
    model = original_model(source)
    with torch.no_grad():
        states = model.transformers_model(**model.tokenizer(text, return_tensors="pt"), output_hidden_states=True)
    means = [states.hidden_states[layer].mean(dim=1) for layer in inner_layers(layers)]
    inner = [torch.nn.functional.normalize(mean, dim=1).numpy()[0] for mean in means]
    expected = np.concatenate([model.encode(text, normalize_embeddings=True), *inner])
    np.testing.assert_allclose(encoder.features([text])[0], expected, atol=1e-4)
    assert (encoder.dimensions, encoder.width) == (32, 96 if layers == 3 else 32)


def test_attention_splits_its_heads(built: tuple[Path, Any, Any]) -> None:
    nodes = onnx.load(built[0] / "encoder.onnx").graph.node
    (first, *_) = attention = [node for node in nodes if node.op_type == "Attention"]
    assert len(attention) == 3
    attributes = {one.name: one.i for one in first.attribute}
    assert (attributes["q_num_heads"], attributes["kv_num_heads"]) == (2, 2)
    assert not [node for node in nodes if node.op_type == "Transpose"]


@pytest.mark.parametrize("causal", [False, True])
def test_masks_are_removed_only_if_they_hide_no_token(tmp_path: Path, causal: bool) -> None:
    source = save_bert(tmp_path, layers=2, spread=0.3, causal=causal)
    export_encoder(str(source), network=tmp_path / "network", tokenizer=tmp_path / "tokenizer")
    text = "a star that a telescope sees and a stew to bake " * 3
    expected = original_model(source).encode(text, normalize_embeddings=True)
    encoder = OnnxEncoder(tmp_path / "network", tmp_path / "tokenizer")
    np.testing.assert_allclose(encoder.encode([text])[0], expected, atol=1e-4)
    attention = [node for node in onnx.load(tmp_path / "network").graph.node if node.op_type == "Attention"]
    assert [len(node.input) > 3 and bool(node.input[3]) for node in attention] == [causal] * 2
    assert sorted(path.name for path in tmp_path.glob("network*")) == ["network"]


def test_a_network_with_fewer_positions_than_configured_is_exported(tmp_path: Path) -> None:
    source = save_bert(tmp_path, layers=1, spread=0.3, family="Roberta", positions=130)
    export_encoder(str(source), network=tmp_path / "network", tokenizer=tmp_path / "tokenizer")
    expected = original_model(source).encode("bake the stew", normalize_embeddings=True)
    encoder = OnnxEncoder(tmp_path / "network", tmp_path / "tokenizer")
    np.testing.assert_allclose(encoder.encode(["bake the stew", "stew " * 200])[0], expected, atol=1e-4)
    assert sorted(path.name for path in tmp_path.glob("network*")) == ["network"]
