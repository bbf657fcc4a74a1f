"""A sentence-transformers model to ONNX: found as a folder, an installed package or a hub name; fp32 or int8.

A network's attention, made lean: it cuts its heads itself, its three projections are one, and it needs no mask.

The exporter cuts queries, keys and values into heads, turns them, and turns the result back: eight operators a layer, a
tenth of the time that a line of text takes. ONNX's Attention does so by itself where it is told the heads, and gives
the same to the bit. Projecting once in place of three times, and leaving out a mask that hides nothing, takes as much
again (docs/experiments/encoder-latency.md).
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter import pattern, rewrite

from coe.errors import DataError
from routers.encoders import OnnxEncoder

OPSET = 23
"""The first in which attention is one operator."""
INNER_LAYER_DEPTHS = (2 / 3, 1 / 3)
"""The inner layers that are read, by their depth. The middle of such a network tells topics apart better than its end,
which is made for closeness (docs/experiments/encoder-layers.md; Skean et al. 2025, arXiv 2502.02013, find the same
of many)."""
EXPORT_VERSION = f"{OPSET}-{'-'.join(f'{depth:.2f}' for depth in INNER_LAYER_DEPTHS)}-lean"
"""By which an export kept from before is known to be as this module makes it."""
PROBES = ["how do magnets work", "Prove that there are infinitely many primes, please.", "1 + 1"]
"""Texts of unlike length: the export is traced with the first and checked on all."""
MAX_MASK_TEST_TOKENS = 256
"""Tokens of the text on which masks are found to hide nothing; the most that is read of any text."""
MASK_TOLERANCE = 1e-5
"""By how much readings without masks may differ from those with masks, which is what rounding does."""


def locate_encoder(encoder: str) -> str:
    """A folder for `encoder` where there is one on this machine, else `encoder` itself, taken as a hub name."""
    if Path(encoder).is_dir():
        return encoder
    if encoder.isidentifier():
        found = importlib.util.find_spec(encoder)
        for folder in (found.submodule_search_locations or []) if found else []:
            if (Path(folder) / "model" / "modules.json").is_file():
                return str(Path(folder) / "model")
        raise DataError(
            f"encoder {encoder!r}: neither a folder nor an installed package with a folder model/; install it"
        )
    return encoder


def export_encoder(encoder: str, *, network: Path, tokenizer: Path) -> None:
    """Write `encoder` as fp32 ONNX and its tokenizer.json. The network takes input_ids of one text to its `vectors`
    (1, dimensions) and, where its layers can be seen, to the means of some side by side, `inner`: unit length, each.

    One text at a time is all that OnnxEncoder asks for, and a network that knows so, with attention as one lean
    operator, takes a fifth less time than one for padded batches.
    """
    import torch

    model = _load(encoder)
    fast = getattr(model.tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise DataError(f"encoder {encoder!r}: has no fast tokenizer (tokenizer.json); choose another encoder")
    fast.save(str(tokenizer))
    reader, texts = _as_module(model), [model.tokenizer(probe, return_tensors="pt")["input_ids"] for probe in PROBES]
    with warnings.catch_warnings(), _quiet("torch.onnx"):  # the exporter talks about its own internals
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            reader,
            (texts[0],),
            input_names=["input_ids"],
            output_names=["vectors", "inner"][: len(reader(texts[0]))],
            dynamic_shapes={"input_ids": {1: torch.export.Dim("length")}},
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
        program.model = fuse_projections(fuse_head_transposes(program.model))
        program.save(str(network))
        expected = np.concatenate([torch.cat(reader(text), dim=1).detach().numpy() for text in texts])
    if np.abs(OnnxEncoder.load(network, tokenizer).read(PROBES) - expected).max() > 1e-3:
        raise DataError(f"encoder {encoder!r}: its ONNX export gives other vectors; choose another encoder")
    longest = np.resize(texts[1][0], min(MAX_MASK_TEST_TOKENS, model.max_seq_length or MAX_MASK_TEST_TOKENS))
    tried = [ids.tolist() for ids in (longest, *(text[0] for text in texts))]
    _drop_idle_masks(program, tried, network=network, tokenizer=tokenizer)


def _drop_idle_masks(program: Any, texts: list[list[int]], *, network: Path, tokenizer: Path) -> None:
    """Write the network without masks where that gives the same for `texts` (token ids): no token is hidden there. One
    that cannot read them all, as RoBERTas take two positions off what their files say, keeps its masks."""

    lean = network.with_name(f"{network.name}.lean")
    program.model = remove_masks(program.model)
    program.save(str(lean))
    try:
        before, after = (OnnxEncoder.load(path, tokenizer).read_ids(texts) for path in (network, lean))
        idle = np.abs(after - before).max() < MASK_TOLERANCE
    except Exception:  # onnxruntime's own errors share no base
        idle = False
    if idle:
        lean.replace(network)
    else:
        lean.unlink()


def _load(encoder: str) -> Any:
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar

    disable_progress_bar()  # `progress` is the one that reports
    try:
        return SentenceTransformer(encoder, device="cpu").eval()
    except Exception as error:  # the loader raises whatever its many back ends raise
        raise DataError(f"encoder {encoder!r}: cannot be loaded ({error})") from error
    finally:
        enable_progress_bar()


def _as_module(model: Any) -> Any:
    import torch

    if model.transformers_model is not None:
        model.transformers_model.config.output_hidden_states = True

    class Reader(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any) -> tuple[Any, ...]:
            found = self.model({"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)})
            states = found.get("all_layer_embeddings") or ()  # the embeddings, then each layer's
            inner = [states[layer].mean(dim=1) for layer in inner_layers(len(states) - 1)]
            unit = [torch.nn.functional.normalize(one, dim=1) for one in (found["sentence_embedding"], *inner)]
            return (unit[0], torch.cat(unit[1:], dim=1)) if inner else (unit[0],)

    return Reader().eval()


def inner_layers(layers: int) -> list[int]:
    """Which of so many layers are read besides the last, the deepest first."""
    return sorted({round(depth * layers) for depth in INNER_LAYER_DEPTHS} & set(range(1, layers)), reverse=True)


def quantise(network: Path, *, out: Path) -> None:
    """Write `network` with int8 weights and dynamically quantised activations."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet(None):  # it advises on the root logger
        quantize_dynamic(
            str(network),
            str(out),
            op_types_to_quantize=["MatMul", "Gather"],  # it takes ONNX's Attention for onnxruntime's own
            weight_type=QuantType.QInt8,
            per_channel=True,
        )


@contextmanager
def _quiet(name: str | None) -> Iterator[None]:
    """Let the logger `name` and those below it say errors only."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


HEAD_PERMUTATION = [0, 2, 1, 3]
"""(texts, tokens, heads, dimensions) to (texts, heads, tokens, dimensions), and back."""
MASK_INPUT = 3
"""Attention's input that hides tokens from each other, after queries, keys and values."""


def fuse_head_transposes(model: Any) -> Any:
    """The onnx_ir model, rewritten; what is built otherwise stays as it is."""
    return rewrite(model, [pattern.RewriteRule(_exported, _rewritten, _known)])


def fuse_projections(model: Any) -> Any:
    """The same, with one product in place of those that make queries, keys and values of one text."""
    return rewrite(model, [pattern.RewriteRule(_thrice, _once, _constant)])


def remove_masks(model: Any) -> Any:
    """The same without masks. Right where every token of a lone text sees all others, which the caller must know."""
    for node in model.graph:
        if node.op_type == "Attention" and len(node.inputs) > MASK_INPUT:
            node.replace_input_with(MASK_INPUT, None)
    RemoveUnusedNodesPass()(model)
    return model


def _exported(op: Any, queries: Any, keys: Any, values: Any, own: Any, shared: Any, flat: Any) -> Any:
    cut = [(queries, own), (keys, shared), (values, shared)]
    turned = [op.Transpose(op.Reshape(whole, shape), perm=HEAD_PERMUTATION) for whole, shape in cut]
    found = op.Attention(*turned, _allow_other_inputs=True, _outputs=["attention"])
    return op.Reshape(op.Transpose(found, perm=HEAD_PERMUTATION), flat)


def _known(_: Any, queries: Any, keys: Any, values: Any, own: Any, shared: Any, flat: Any, **__: Any) -> bool:
    """Whether all have three dimensions before and after, and the numbers of heads are in the graph."""
    if any(whole.shape is None or len(whole.shape) != 3 for whole in (queries, keys, values)):
        return False
    sizes = [shape.const_value.size if shape.const_value is not None else 0 for shape in (own, shared, flat)]
    return sizes == [4, 4, 3] and all(shape.const_value.numpy()[2] > 0 for shape in (own, shared))


def _rewritten(op: Any, queries: Any, keys: Any, values: Any, own: Any, shared: Any, attention: Any, **_: Any) -> Any:
    heads, kept = (int(shape.const_value.numpy()[2]) for shape in (own, shared))
    before = attention.producer()
    inputs = (queries, keys, values, *before.inputs[MASK_INPUT:])
    return op.Attention(*inputs, **before.attributes, q_num_heads=heads, kv_num_heads=kept)


def _thrice(op: Any, text: Any, wq: Any, bq: Any, wk: Any, bk: Any, wv: Any, bv: Any) -> Any:
    projected = [op.Add(op.MatMul(text, weights), bias) for weights, bias in ((wq, bq), (wk, bk), (wv, bv))]
    return op.Attention(*projected, _allow_other_inputs=True, _outputs=["attention"])


def _constant(_: Any, text: Any, attention: Any, **tables: Any) -> bool:
    """Whether text has three dimensions, heads are attention's to cut, and tables are in the graph, of one dimension
    those that start with a b."""
    if text.shape is None or len(text.shape) != 3 or "q_num_heads" not in attention.producer().attributes:
        return False
    found = {name: table.const_value for name, table in tables.items()}
    return all(table is not None and len(table.shape) == (1 if name[0] == "b" else 2) for name, table in found.items())


def _once(op: Any, text: Any, attention: Any, **tables: Any) -> Any:
    weights, biases = ([tables[kind + which].const_value.numpy() for which in ("q", "k", "v")] for kind in ("w", "b"))
    joined = {
        "weights": np.concatenate(weights, axis=1),
        "biases": np.concatenate(biases),
        "sizes": np.array([bias.size for bias in biases]),
    }
    whole, bias, sizes = (
        op.initializer(ir.tensor(table), f"{attention.name}.{kind}") for kind, table in joined.items()
    )
    found = op.Split(op.Add(op.MatMul(text, whole), bias), sizes, axis=2, _outputs=3)
    before = attention.producer()
    return op.Attention(*found, *before.inputs[MASK_INPUT:], **before.attributes)
