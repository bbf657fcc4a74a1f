"""Build the ONNX graph of multilingual-e5-small without its weights, which `routers.e5` attaches when it is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np

from routers.e5 import DIMENSIONS, LAYERS, Product, products

OPSET = 23
"""The first ONNX opset with an Attention operator."""
IR_VERSION = 10
HEADS = 12
EPSILON = 1e-12
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
        return self.add("LayerNormalization", text, scale, bias, axis=-1, epsilon=EPSILON)[0]


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
