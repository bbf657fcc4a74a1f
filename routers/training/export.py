"""Export a sentence-transformers model to ONNX in int8, with lean attention.

The exported graph is rewritten for latency. Attention splits its heads itself in place of eight reshapes and transposes
a layer (a tenth of the latency of a line of text); masks that hide no token are removed (another tenth;
docs/experiments/cascade-and-encoders.md). Outputs stay the same."""

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

from coe import pinned_weights
from coe.errors import DataError
from routers.cascade import NETWORK, TOKENIZER
from routers.encoders import AnyEncoder, OnnxEncoder

OPSET = 23
"""The first ONNX opset with an Attention operator."""
INNER_LAYER_DEPTHS = (2 / 3, 1 / 3)
"""Relative depths of the inner layers that become outputs. Middle layers separate topics better than the last one,
which is trained for similarity (docs/experiments/cascade-and-encoders.md; Skean et al. 2025, arXiv 2502.02013)."""
PROBE_TEXTS = ["how do magnets work", "Prove that there are infinitely many primes, please.", "1 + 1"]
"""Texts of different lengths: the export is traced with the first and verified on all."""
MAX_MASK_TEST_TOKENS = 256
"""Length of the longest text on which the removal of masks is verified; no longer text is ever embedded."""
WORD_STEP = 4
"""Step between the levels of quantised word vectors. The encoder compresses to 15.3 MB, with a step of 1 to 17.9 MB, at
the same accuracy (docs/experiments/router-training.md)."""
MASK_TOLERANCE = 1e-5
"""Largest difference between embeddings with and without masks: rounding errors."""


def locate_encoder(encoder: str) -> str:
    """Return the folder of `encoder` if it is a folder or an installed package, else `encoder` as a hub name.

    Raises DataError for an identifier that is not such a package, and for pinned weights that changed.
    """
    if Path(encoder).is_dir():
        return encoder
    if encoder.isidentifier():
        found = importlib.util.find_spec(encoder)
        for folder in (found.submodule_search_locations or []) if found else []:
            if (Path(folder) / "model" / "modules.json").is_file():
                pinned_weights.check(encoder, Path(folder) / "model")
                return str(Path(folder) / "model")
        raise DataError(
            f"encoder {encoder!r}: neither a folder nor an installed package with a folder model/; install it"
        )
    return encoder


def export_encoder(encoder: str, *, network: Path, tokenizer: Path) -> None:
    """Write `encoder` as fp32 ONNX and its tokenizer.json.

    The network maps input_ids of one text to `vectors` (1, dimensions) and, if the model exposes its layers, to
    `inner`: the means of some inner layers side by side. Each has unit length. A network for single texts takes a fifth
    less time than one for padded batches. Raises DataError if the model cannot be exported faithfully."""
    import torch

    model = _load(encoder)
    fast = getattr(model.tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise DataError(f"encoder {encoder!r}: has no fast tokenizer (tokenizer.json); choose another encoder")
    fast.save(str(tokenizer))
    module = _as_module(model)
    texts = [model.tokenizer(probe, return_tensors="pt")["input_ids"] for probe in PROBE_TEXTS]
    with warnings.catch_warnings(), _quiet("torch.onnx"):  # it warns about its own internals
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (texts[0],),
            input_names=["input_ids"],
            output_names=["vectors", "inner"][: len(module(texts[0]))],
            dynamic_shapes={"input_ids": {1: torch.export.Dim("length")}},
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
        program.model = fuse_head_transposes(program.model)
        program.save(str(network))
        expected = np.concatenate([torch.cat(module(text), dim=1).detach().numpy() for text in texts])
    if np.abs(OnnxEncoder(network, tokenizer).features(PROBE_TEXTS) - expected).max() > 1e-3:
        raise DataError(f"encoder {encoder!r}: its ONNX export gives other vectors; choose another encoder")
    longest = np.resize(texts[1][0], min(MAX_MASK_TEST_TOKENS, model.max_seq_length or MAX_MASK_TEST_TOKENS))
    token_ids = [ids.tolist() for ids in (longest, *(text[0] for text in texts))]
    _remove_idle_masks(program, token_ids, network=network, tokenizer=tokenizer)


def _remove_idle_masks(program: Any, token_ids: list[list[int]], *, network: Path, tokenizer: Path) -> None:
    """Write the network without masks if the embeddings of these texts stay the same.

    A network that cannot embed all of them keeps its masks; RoBERTa, for example, has two positions fewer than its
    configuration says.
    """
    lean = network.with_name(f"{network.name}.lean")
    program.model = remove_masks(program.model)
    program.save(str(lean))
    try:
        before, after = (OnnxEncoder(path, tokenizer).embed_ids(token_ids) for path in (network, lean))
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

    disable_progress_bar()  # `progress` reports instead
    try:
        return SentenceTransformer(encoder, device="cpu").eval()
    except Exception as error:  # its back ends raise errors of many types
        raise DataError(f"encoder {encoder!r}: cannot be loaded ({error})") from error
    finally:
        enable_progress_bar()


def _as_module(model: Any) -> Any:
    import torch

    if model.transformers_model is not None:
        model.transformers_model.config.output_hidden_states = True

    class EmbeddingModule(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any) -> tuple[Any, ...]:
            outputs = self.model({"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)})
            states = outputs.get("all_layer_embeddings") or ()  # token embeddings, then each layer's output
            inner = [states[layer].mean(dim=1) for layer in inner_layers(len(states) - 1)]
            unit = [torch.nn.functional.normalize(one, dim=1) for one in (outputs["sentence_embedding"], *inner)]
            return (unit[0], torch.cat(unit[1:], dim=1)) if inner else (unit[0],)

    return EmbeddingModule().eval()


def inner_layers(layers: int) -> list[int]:
    """Return the inner layers, of `layers` in all, that become outputs; the deepest first."""
    return sorted({round(depth * layers) for depth in INNER_LAYER_DEPTHS} & set(range(1, layers)), reverse=True)


def export_quantised(encoder: AnyEncoder, *, out: Path, threads: int) -> OnnxEncoder:
    """Export `encoder` to NETWORK and TOKENIZER in the folder `out`, in int8, and open it. Raises as `locate_encoder`
    and `export_encoder`."""
    if not isinstance(encoder, str):
        return encoder(out)
    source = locate_encoder(encoder)
    out.mkdir(parents=True, exist_ok=True)
    exported, network, tokenizer = out / "encoder.fp32.onnx", out / NETWORK, out / TOKENIZER
    export_encoder(source, network=exported, tokenizer=tokenizer)
    quantise(exported, out=network)
    exported.unlink()
    return OnnxEncoder(network, tokenizer, threads=threads)


def quantise(network: Path, *, out: Path) -> None:
    """Write `network` with int8 weights and dynamic quantisation of activations.

    Word vectors are rounded to every WORD_STEPth level, which compresses better.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet(None):  # it logs advice on the root logger
        quantize_dynamic(
            str(network),
            str(out),
            op_types_to_quantize=["MatMul", "Gather"],  # it mistakes ONNX's Attention for onnxruntime's own
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
    model = ir.load(out)
    round_word_vectors(model)
    ir.save(model, out)


def round_word_vectors(model: Any, *, step: int = WORD_STEP) -> None:
    """Round the quantised table that is indexed by token ids to multiples of `step` around its zero point."""
    for node in model.graph:
        if node.op_type != "Gather" or node.inputs[1].name != "input_ids":
            continue
        (dequantise,) = node.outputs[0].consumers()
        levels, zero = node.inputs[0].const_value.numpy(), dequantise.inputs[2].const_value.numpy()
        limits = np.iinfo(levels.dtype)
        rounded = zero + np.rint((levels.astype(np.int64) - zero) / step) * step
        node.inputs[0].const_value = ir.tensor(
            rounded.clip(limits.min, limits.max).astype(levels.dtype), name=node.inputs[0].name
        )


@contextmanager
def _quiet(name: str | None) -> Iterator[None]:
    """Limit the logger `name` and its children to errors."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


HEAD_PERMUTATION = [0, 2, 1, 3]
"""Permutation between (texts, tokens, heads, dimensions) and (texts, heads, tokens, dimensions)."""
MASK_INPUT = 3
"""Index of Attention's mask among its inputs, after queries, keys and values."""


def fuse_head_transposes(model: Any) -> Any:
    """Let Attention split its heads in an onnx_ir model. Graphs of another structure stay unchanged."""
    return rewrite(model, [pattern.RewriteRule(_transposed_attention, _attention_with_heads, _has_constant_heads)])


def remove_masks(model: Any) -> Any:
    """Remove the masks of all Attention operators. Only correct if no mask hides a token of a single text."""
    for node in model.graph:
        if node.op_type == "Attention" and len(node.inputs) > MASK_INPUT:
            node.replace_input_with(MASK_INPUT, None)
    RemoveUnusedNodesPass()(model)
    return model


def _transposed_attention(
    op: Any, queries: Any, keys: Any, values: Any, query_shape: Any, key_shape: Any, flat_shape: Any
) -> Any:
    """The pattern that torch exports: reshape and transpose to heads, attention, and back."""
    inputs = [(queries, query_shape), (keys, key_shape), (values, key_shape)]
    heads = [op.Transpose(op.Reshape(value, shape), perm=HEAD_PERMUTATION) for value, shape in inputs]
    attention = op.Attention(*heads, _allow_other_inputs=True, _outputs=["attention"])
    return op.Reshape(op.Transpose(attention, perm=HEAD_PERMUTATION), flat_shape)


def _has_constant_heads(
    _: Any, queries: Any, keys: Any, values: Any, query_shape: Any, key_shape: Any, flat_shape: Any, **__: Any
) -> bool:
    """True if inputs and output have three dimensions, and the numbers of heads are constants."""
    if any(value.shape is None or len(value.shape) != 3 for value in (queries, keys, values)):
        return False
    shapes = (query_shape, key_shape, flat_shape)
    sizes = [shape.const_value.size if shape.const_value is not None else 0 for shape in shapes]
    return sizes == [4, 4, 3] and all(shape.const_value.numpy()[2] > 0 for shape in (query_shape, key_shape))


def _attention_with_heads(
    op: Any, queries: Any, keys: Any, values: Any, query_shape: Any, key_shape: Any, attention: Any, **_: Any
) -> Any:
    query_heads, key_heads = (int(shape.const_value.numpy()[2]) for shape in (query_shape, key_shape))
    original = attention.producer()
    inputs = (queries, keys, values, *original.inputs[MASK_INPUT:])
    return op.Attention(*inputs, **original.attributes, q_num_heads=query_heads, kv_num_heads=key_heads)
