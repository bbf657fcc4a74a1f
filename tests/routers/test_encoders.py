"""The sentence encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sentence_transformers import SentenceTransformer

from routers.encoders import OnnxEncoder
from routers.training.export import (
    export_encoder,
    fuse_head_transposes,
    fuse_projections,
    inner_layers,
    quantise,
    remove_masks,
)
from tests.routers.conftest import save_bert

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
    monkeypatch.setattr("routers.encoders.TEXTS_PER_TASK", 2)
    alone = OnnxEncoder.load(network, built[0] / "tokenizer.json")
    expected = np.concatenate([alone.read([text]) for text in TEXTS])
    told: list[float] = []
    encoder = OnnxEncoder.load(network, built[0] / "tokenizer.json", threads=threads)
    np.testing.assert_array_equal(encoder.read(TEXTS, told.append), expected)
    assert told == [0.4, 0.8, 1.0]
    np.testing.assert_array_equal(encoder.encode(TEXTS), expected[:, : encoder.dimensions])
    assert encoder.encode([]).shape == (0, encoder.dimensions)
    assert encoder.read([]).shape == (0, encoder.width)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_reading_is_the_sentence_vector_and_the_means_of_the_inner_layers(layers: int, tmp_path: Path) -> None:
    source = save_bert(tmp_path, layers=layers, spread=0.3)  # such that attention matters
    export_encoder(str(source), network=tmp_path / "network", tokenizer=tmp_path / "tokenizer")
    text = "a star that a telescope sees"
    encoder = OnnxEncoder.load(tmp_path / "network", tmp_path / "tokenizer")
    model = SentenceTransformer(str(source), device="cpu")
    with torch.no_grad():
        states = model.transformers_model(**model.tokenizer(text, return_tensors="pt"), output_hidden_states=True)
    means = [states.hidden_states[layer].mean(dim=1) for layer in inner_layers(layers)]
    inner = [torch.nn.functional.normalize(mean, dim=1).numpy()[0] for mean in means]
    expected = np.concatenate([model.encode(text, normalize_embeddings=True), *inner])
    np.testing.assert_allclose(encoder.read([text])[0], expected, atol=1e-4)
    assert (encoder.dimensions, encoder.width) == (32, 96 if layers == 3 else 32)


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
    told = {one.name: one.i for one in first.attribute}
    assert (told["q_num_heads"], told["kv_num_heads"]) == (2, 2)
    assert not [node for node in nodes if node.op_type == "Transpose"]


@pytest.mark.parametrize(
    ("shape", "flat", "rewritten"),
    [([1, "n", 32], [1, -1, 32], True), (["n", 32], [1, -1, 32], False), ([1, "n", 32], [-1, 32], False)],
)
def test_attention_is_told_its_heads_only_where_three_dimensions_come_and_go(
    tmp_path: Path, shape: list[int | str], flat: list[int], rewritten: bool
) -> None:
    """Four heads that share two of keys and values."""
    text = f"""<ir_version: 10, opset_import: ["": 23]>
    g (float[{", ".join(map(str, shape))}] q, float[{", ".join(map(str, [*shape[:-1], 16]))}] k) => (float[m, p, r] y)
    <int64[4] own = {{1, -1, 4, 8}}, int64[4] shared = {{1, -1, 2, 8}}, int64[{len(flat)}] flat = {{{str(flat)[1:-1]}}}>
    {{
        a = Reshape(q, own)
        b = Transpose<perm=[0, 2, 1, 3]>(a)
        c = Reshape(k, shared)
        d = Transpose<perm=[0, 2, 1, 3]>(c)
        e = Transpose<perm=[0, 2, 1, 3]>(c)
        f = Attention<scale=3.0>(b, d, e)
        h = Transpose<perm=[0, 2, 1, 3]>(f)
        i = Reshape(h, flat)
        y = Unsqueeze(i, z)
    }}"""
    text = text if len(flat) == 2 else text.replace("y = Unsqueeze(i, z)", "y = Identity(i)")
    text = text.replace("<int64[4] own", "<int64[1] z = {0}, int64[4] own")
    before = ir.from_proto(onnx.parser.parse_model(text))
    random = np.random.default_rng(0)
    sizes = [1, 5] if len(shape) == 3 else [5]
    feed = {name: random.normal(size=(*sizes, width)).astype(np.float32) for name, width in (("q", 32), ("k", 16))}
    expected, found = (_run(model, feed, tmp_path) for model in (before, fuse_head_transposes(before.clone())))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    kept = [node.op_type for node in fuse_head_transposes(before.clone()).graph]
    assert ("Transpose" not in kept) == rewritten


@pytest.mark.parametrize("causal", [False, True])
def test_masks_are_left_out_only_where_they_hide_nothing(tmp_path: Path, causal: bool) -> None:
    source = save_bert(tmp_path, layers=2, spread=0.3, causal=causal)
    export_encoder(str(source), network=tmp_path / "network", tokenizer=tmp_path / "tokenizer")
    text = "a star that a telescope sees and a stew to bake " * 3
    expected = SentenceTransformer(str(source), device="cpu").encode(text, normalize_embeddings=True)
    encoder = OnnxEncoder.load(tmp_path / "network", tmp_path / "tokenizer")
    np.testing.assert_allclose(encoder.encode([text])[0], expected, atol=1e-4)
    attention = [node for node in onnx.load(tmp_path / "network").graph.node if node.op_type == "Attention"]
    assert [len(node.input) > 3 and bool(node.input[3]) for node in attention] == [causal] * 2
    assert sorted(path.name for path in tmp_path.glob("network*")) == ["network"]


def test_a_network_that_reads_less_than_it_says_is_exported_all_the_same(tmp_path: Path) -> None:
    source = save_bert(tmp_path, layers=1, spread=0.3, family="Roberta", positions=130)
    export_encoder(str(source), network=tmp_path / "network", tokenizer=tmp_path / "tokenizer")
    expected = SentenceTransformer(str(source), device="cpu").encode("bake the stew", normalize_embeddings=True)
    encoder = OnnxEncoder.load(tmp_path / "network", tmp_path / "tokenizer")
    np.testing.assert_allclose(encoder.encode(["bake the stew", "stew " * 200])[0], expected, atol=1e-4)
    assert sorted(path.name for path in tmp_path.glob("network*")) == ["network"]


PROJECTED = """<ir_version: 10, opset_import: ["": 23]>
    g (float[1, "n", 8] x, float["n", "n"] mask{given}) => (float[m, p, r] y) <{tables}>
    {{
        a = MatMul(x, wq)
        b = Add(a, bq)
        c = MatMul(x, wk)
        d = Add(c, bk)
        e = MatMul(x, wv)
        f = Add(e, bv)
        hidden = Neg(mask)
        y = Attention<q_num_heads=4, kv_num_heads=2>(b, d, f, hidden)
    }}"""
SIZES = {"wq": (8, 16), "wk": (8, 8), "wv": (8, 8), "bq": (16,), "bk": (8,), "bv": (8,)}


@pytest.mark.parametrize("given", [(), ("wk",), ("bv",)])
def test_queries_keys_and_values_are_one_product_where_their_tables_are_in_the_network(
    tmp_path: Path, given: tuple[str, ...]
) -> None:
    random = np.random.default_rng(0)
    tables = {name: random.normal(size=size).astype(np.float32) for name, size in SIZES.items()}
    told = {name: f"float[{', '.join(map(str, size))}] {name}" for name, size in SIZES.items()}
    kept = ", ".join(
        f"{told[name]} = {{{', '.join(map(str, table.ravel()))}}}"
        for name, table in tables.items()
        if name not in given
    )
    text = PROJECTED.format(tables=kept, given="".join(f", {told[name]}" for name in given))
    before = ir.from_proto(onnx.parser.parse_model(text))
    feed = {"x": random.normal(size=(1, 5, 8)), "mask": random.normal(size=(5, 5))} | {n: tables[n] for n in given}
    feed = {name: value.astype(np.float32) for name, value in feed.items()}
    after = fuse_projections(before.clone())
    np.testing.assert_allclose(_run(after, feed, tmp_path), _run(before, feed, tmp_path), atol=1e-5)
    assert [node.op_type for node in after.graph].count("MatMul") == (3 if given else 1)


def test_what_makes_a_mask_goes_with_it() -> None:
    zeros = ", ".join(
        f"float[{', '.join(map(str, size))}] {name} = {{{', '.join(['0.0'] * int(np.prod(size)))}}}"
        for name, size in SIZES.items()
    )
    model = remove_masks(ir.from_proto(onnx.parser.parse_model(PROJECTED.format(tables=zeros, given=""))))
    assert {node.op_type for node in model.graph} == {"MatMul", "Add", "Attention"}


def _run(model: Any, feed: dict[str, Any], folder: Path) -> Any:
    ir.save(model, folder / "one.onnx")
    return onnxruntime.InferenceSession(folder / "one.onnx").run(None, feed)[0]
