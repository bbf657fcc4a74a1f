"""A network's attention, told how many heads it has.

The exporter cuts queries, keys and values into heads, turns them, and turns the result back: eight operators a layer, a
tenth of the time that a line of text takes. ONNX's Attention does so by itself where it is told the heads, and gives
the same to the bit.
"""

from __future__ import annotations

from typing import Any

from onnxscript.rewriter import pattern, rewrite

TURN = [0, 2, 1, 3]
"""(texts, tokens, heads, dimensions) to (texts, heads, tokens, dimensions), and back."""


def leave_heads_to_attention(model: Any) -> Any:
    """The onnx_ir model, rewritten; what is built otherwise stays as it is."""
    return rewrite(model, [pattern.RewriteRule(_exported, _rewritten, _known)])


def _exported(op: Any, queries: Any, keys: Any, values: Any, own: Any, shared: Any, flat: Any) -> Any:
    cut = [(queries, own), (keys, shared), (values, shared)]
    turned = [op.Transpose(op.Reshape(whole, shape), perm=TURN) for whole, shape in cut]
    found = op.Attention(*turned, _allow_other_inputs=True, _outputs=["attention"])
    return op.Reshape(op.Transpose(found, perm=TURN), flat)


def _known(_: Any, queries: Any, keys: Any, values: Any, own: Any, shared: Any, flat: Any, **__: Any) -> bool:
    """Whether all have three dimensions before and after, and the numbers of heads are in the graph."""
    if any(whole.shape is None or len(whole.shape) != 3 for whole in (queries, keys, values)):
        return False
    sizes = [shape.const_value.size if shape.const_value is not None else 0 for shape in (own, shared, flat)]
    return sizes == [4, 4, 3] and all(shape.const_value.numpy()[2] > 0 for shape in (own, shared))


def _rewritten(op: Any, queries: Any, keys: Any, values: Any, own: Any, shared: Any, attention: Any, **_: Any) -> Any:
    heads, kept = (int(shape.const_value.numpy()[2]) for shape in (own, shared))
    before = attention.producer()
    inputs = (queries, keys, values, *before.inputs[3:])
    return op.Attention(*inputs, **before.attributes, q_num_heads=heads, kv_num_heads=kept)
