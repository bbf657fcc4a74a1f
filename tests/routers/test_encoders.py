"""The sentence encoder: embeddings, export and graph rewrites."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from routers.encoders import OnnxEncoder
from routers.training.export import (
    WORD_STEP,
    export_encoder,
    fuse_head_transposes,
    fuse_projections,
    inner_layers,
    quantise,
    remove_masks,
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
    monkeypatch.setattr("routers.encoders.TEXTS_PER_TASK", 2)
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


@pytest.mark.parametrize(("layers", "inner"), [(1, []), (2, [1]), (3, [2, 1]), (6, [4, 2]), (12, [8, 4])])
def test_inner_layers_lie_at_the_thirds(layers: int, inner: list[int]) -> None:
    assert inner_layers(layers) == inner


def test_attention_splits_its_heads(built: tuple[Path, Any, Any]) -> None:
    nodes = onnx.load(built[0] / "encoder.onnx").graph.node
    (first, *_) = attention = [node for node in nodes if node.op_type == "Attention"]
    assert len(attention) == 3
    attributes = {one.name: one.i for one in first.attribute}
    assert (attributes["q_num_heads"], attributes["kv_num_heads"]) == (2, 2)
    assert not [node for node in nodes if node.op_type == "Transpose"]


@pytest.mark.parametrize(
    ("shape", "flat", "rewritten"),
    [([1, "n", 32], [1, -1, 32], True), (["n", 32], [1, -1, 32], False), ([1, "n", 32], [-1, 32], False)],
)
def test_head_transposes_are_fused_only_for_three_dimensions(
    tmp_path: Path, shape: list[int | str], flat: list[int], rewritten: bool
) -> None:
    """Grouped-query attention: four query heads, two key and value heads."""
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
def test_projections_are_fused_if_their_weights_are_constants(tmp_path: Path, given: tuple[str, ...]) -> None:
    random = np.random.default_rng(0)
    tables = {name: random.normal(size=size).astype(np.float32) for name, size in SIZES.items()}
    declared = {name: f"float[{', '.join(map(str, size))}] {name}" for name, size in SIZES.items()}
    kept = ", ".join(
        f"{declared[name]} = {{{', '.join(map(str, table.ravel()))}}}"
        for name, table in tables.items()
        if name not in given
    )
    text = PROJECTED.format(tables=kept, given="".join(f", {declared[name]}" for name in given))
    before = ir.from_proto(onnx.parser.parse_model(text))
    feed = {"x": random.normal(size=(1, 5, 8)), "mask": random.normal(size=(5, 5))} | {n: tables[n] for n in given}
    feed = {name: value.astype(np.float32) for name, value in feed.items()}
    after = fuse_projections(before.clone())
    np.testing.assert_allclose(_run(after, feed, tmp_path), _run(before, feed, tmp_path), atol=1e-5)
    assert [node.op_type for node in after.graph].count("MatMul") == (3 if given else 1)


def test_nodes_that_compute_a_removed_mask_are_removed() -> None:
    zeros = ", ".join(
        f"float[{', '.join(map(str, size))}] {name} = {{{', '.join(['0.0'] * int(np.prod(size)))}}}"
        for name, size in SIZES.items()
    )
    model = remove_masks(ir.from_proto(onnx.parser.parse_model(PROJECTED.format(tables=zeros, given=""))))
    assert {node.op_type for node in model.graph} == {"MatMul", "Add", "Attention"}


def _run(model: Any, feed: dict[str, Any], folder: Path) -> Any:
    ir.save(model, folder / "one.onnx")
    return onnxruntime.InferenceSession(folder / "one.onnx").run(None, feed)[0]
