"""The sentence encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sentence_transformers import SentenceTransformer

from routers.encoders import OnnxEncoder
from routers.export import export_encoder, inner_layers, quantise

INPUTS = ["input_ids", "attention_mask"]
TEXTS = ["bake the stew", "orbit", "a star that a telescope sees " * 8, "", "bake the stew"]


@pytest.fixture
def network(built: tuple[Path, Any, Any], tmp_path: Path) -> Path:
    """One that scales what it is given."""
    quantise(built[0] / "encoder.onnx", out=tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_vector_depends_neither_on_company_nor_on_threads(
    built: tuple[Path, Any, Any], network: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr("routers.encoders.GROUP", 2)
    alone = OnnxEncoder.load(network, built[0] / "tokenizer.json")
    expected = np.concatenate([alone.read([text]) for text in TEXTS])
    told: list[float] = []
    encoder = OnnxEncoder.load(network, built[0] / "tokenizer.json", threads=threads)
    np.testing.assert_array_equal(encoder.read(TEXTS, told.append), expected)
    assert told == [0.4, 0.8, 1.0]
    np.testing.assert_array_equal(encoder.encode(TEXTS), expected[:, : encoder.dimensions])
    assert encoder.encode([]).shape == (0, encoder.dimensions)
    assert encoder.read([]).shape == (0, encoder.width)


def test_a_reading_is_the_sentence_vector_and_the_means_of_the_inner_layers(tiny_encoder: Path, tmp_path: Path) -> None:
    export_encoder(str(tiny_encoder), network=tmp_path / "network", tokenizer=tmp_path / "tokenizer")
    text = "a star that a telescope sees"
    (reading,) = OnnxEncoder.load(tmp_path / "network", tmp_path / "tokenizer").read([text])
    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    with torch.no_grad():
        states = model.transformers_model(**model.tokenizer(text, return_tensors="pt"), output_hidden_states=True)
    sentence, *inner = np.split(reading, 3)
    np.testing.assert_allclose(sentence, model.encode(text, normalize_embeddings=True), atol=2e-6)
    for layer, found in zip((2, 1), inner, strict=True):
        mean = states.hidden_states[layer].mean(dim=1)
        np.testing.assert_allclose(found, torch.nn.functional.normalize(mean, dim=1).numpy()[0], atol=2e-6)


@pytest.mark.parametrize(("layers", "inner"), [(1, []), (2, [1]), (3, [2, 1]), (6, [4, 2]), (12, [8, 4])])
def test_inner_layers_lie_at_the_thirds(layers: int, inner: list[int]) -> None:
    assert inner_layers(layers) == inner


def test_a_network_that_asks_for_a_mask_as_well_gets_one(built: tuple[Path, Any, Any], tmp_path: Path) -> None:
    """Routers trained with earlier versions hold such networks."""
    encoder = OnnxEncoder.load(padding_network(tmp_path / "padding.onnx"), built[0] / "tokenizer.json")
    ids = [[2, 5, 3], [2, 3], []]
    np.testing.assert_array_equal(encoder.read_ids(ids), [[10, 3], [5, 2], [0, 0]])


def padding_network(path: Path) -> Path:
    """The sum of a text's ids that its mask shows, and how many it shows."""
    shapes = {name: helper.make_tensor_value_info(name, TensorProto.INT64, [1, "n"]) for name in INPUTS}
    nodes = [
        helper.make_node("Mul", INPUTS, ["shown"]),
        helper.make_node("ReduceSum", ["shown", "axis"], ["sum"]),
        helper.make_node("ReduceSum", ["attention_mask", "axis"], ["count"]),
        helper.make_node("Concat", ["sum", "count"], ["both"], axis=1),
        helper.make_node("Cast", ["both"], ["vectors"], to=TensorProto.FLOAT),
    ]
    axis = numpy_helper.from_array(np.array([1]), "axis")
    out = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, [1, 2])
    graph = helper.make_graph(nodes, "padding", list(shapes.values()), [out], [axis])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def test_attention_cuts_its_heads_by_itself(built: tuple[Path, Any, Any]) -> None:
    nodes = onnx.load(built[0] / "encoder.onnx").graph.node
    (first, *_) = attention = [node for node in nodes if node.op_type == "Attention"]
    assert len(attention) == 3
    assert {one.name: one.i for one in first.attribute}["q_num_heads"] == 2
    assert not [node for node in nodes if node.op_type == "Transpose"]
