"""Small ONNX graphs with zero columns, and a rig for them that counts instead of timing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from evaluators.measurement import DeviceStamp, Measurement
from evaluators.ort_session import open_session

Array = NDArray[Any]


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Array],
    shape: Sequence[int | str],
    *,
    opset: int = 20,
    ir_version: int = 10,
) -> onnx.ModelProto:
    """A graph from `x` to the last node's output."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info(nodes[-1].output[0])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    helper.set_model_props(proto, {"prunefront.batch": "dynamic"})
    return onnx.shape_inference.infer_shapes(proto)


def conv_model(
    weight: Array,
    size: Sequence[int],
    *,
    bias: bool = True,
    relu: bool = True,
    batch: int | str = "n",
    **attributes: Any,
) -> bytes:
    """One convolution called `conv` with random bias, then a Relu; `size` is the spatial size of the input."""
    channels = weight.shape[1] * attributes.get("group", 1)
    constants = {"conv.weight": weight}
    if bias:
        constants["conv.bias"] = np.random.default_rng(1).standard_normal(len(weight)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", *constants], ["y"], name="node_conv", **attributes)]
    if relu:
        nodes.append(helper.make_node("Relu", ["y"], ["z"], name="node_relu"))
    return bytes(model(nodes, constants, [batch, channels, *size]).SerializeToString())


def random_weight(shape: Sequence[int], live: Array, groups: int = 1, seed: int = 0) -> Array:
    """Normal weights of `shape` [filters, channels / groups, *kernel], zero outside `live` [groups, ...]."""
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    split = weight.reshape(groups, -1, *shape[1:])
    return np.asarray((split * live[:, None]).reshape(shape), dtype=np.float32)


def run(content: bytes, x: Array) -> Array:
    """The graph's only output in ONNX Runtime."""
    session = open_session(content)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def work(content: bytes) -> float:
    """Multiply-accumulates of the graph's convolutions and products at batch 1, and a hundred for any other node."""
    proto = onnx.load_model_from_string(content)
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output, *graph.input)
    }
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    total = 0.0
    for node in graph.node:
        if node.op_type == "Conv":
            total += math.prod(weights[node.input[1]]) * math.prod(shapes[node.output[0]][2:])
        elif node.op_type in ("Gemm", "MatMul"):
            total += math.prod(weights[node.input[1]])
        else:
            total += 100.0
    return total


class CountingRig:
    """Measures a model by its `work`; keeps what it was asked, the candidate first."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes]] = []

    def speedup(self, candidate: bytes, reference: bytes) -> float:
        return work(reference) / work(candidate)

    def __call__(self, candidate: bytes, reference: bytes) -> Measurement:
        self.asked.append((candidate, reference))
        return measurement(self.speedup(candidate, reference))


def measurement(speedup: float, *, low: float | None = None) -> Measurement:
    stamp = DeviceStamp(
        rig="fake",
        device="none",
        isa="none",
        runtime="none",
        provider="none",
        threads=1,
        batch=1,
        clock="thread_cpu",
        platform="none",
    )
    return Measurement(
        latency_ms=1.0 / speedup,
        latency_low_ms=1.0 / speedup,
        latency_high_ms=1.0 / speedup,
        dense_latency_ms=1.0,
        speedup=speedup,
        speedup_low=speedup if low is None else low,
        speedup_high=speedup,
        wall_p50_ms=None,
        wall_p95_ms=None,
        wall_min_ms=None,
        pairs=9,
        rejected=0,
        converged=True,
        seconds=0.1,
        stamp=stamp,
    )
