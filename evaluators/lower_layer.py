"""Which layers of an ONNX graph can be lowered: their weights, shapes and neighbours, or why they cannot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from evaluators.errors import EvaluationError

Array = NDArray[Any]

#: Follow a layer in the same kernel, or nearly so: a layer is measured together with these.
_TAIL = frozenset({"BatchNormalization", "Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "Tanh", "Add"})
#: Weights at least this large are left out of shape inference, which would copy them.
_LARGE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvShape:
    """The attributes of a convolution, resolved: one number per spatial dimension."""

    groups: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    """Zeros put before each dimension; `ends`: after it."""
    ends: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One node with a constant weight of its own. Shapes are those at the batch that was asked for."""

    name: str
    node: onnx.NodeProto
    weight: Array
    """Conv: [filters, channels / groups, *kernel]; Gemm and MatMul: [inputs, outputs]."""
    bias: str | None
    """Name of a convolution's bias in the graph; those of linear layers are never touched."""
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    conv: ConvShape | None
    tail: tuple[onnx.NodeProto, ...]
    """The nodes behind it that ONNX Runtime may fuse with it, each the only reader of the one before."""

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        """Columns with any weight. Conv: [groups, channels / groups, *kernel]; linear: [inputs]."""
        if self.conv is None:
            return np.asarray((self.weight != 0).any(axis=1))
        groups = self.conv.groups
        per_group = (self.weight != 0).reshape(groups, -1, *self.weight.shape[1:])
        return np.asarray(per_group.any(axis=1))

    @cached_property
    def positions(self) -> int:
        """Places of one sample at which the weight is applied."""
        if self.conv is None:
            return math.prod(self.output_shape[1:-1])
        return math.prod(self.output_shape[2:])

    @cached_property
    def geometry(self) -> str:
        """What decides the time of the dense layer: layers that agree in this take the same time."""

        def sizes(values: Sequence[int]) -> str:
            return "x".join(map(str, values))

        tail = "+".join(node.op_type for node in self.tail)
        text = f"{self.node.op_type} {self.weight.dtype} {sizes(self.input_shape)} w{sizes(self.weight.shape)}"
        if (conv := self.conv) is not None:
            text += f" g{conv.groups} s{sizes(conv.strides)} d{sizes(conv.dilations)}"
            text += f" p{sizes(conv.begins)}-{sizes(conv.ends)}"
        return f"{text} +{tail}" if tail else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A node of a layer's kind that is left as it is, and why."""

    name: str
    reason: str


def find_layers(proto: onnx.ModelProto, batch: int) -> list[Layer | Skipped]:
    """Every Conv, ConvTranspose, Gemm and MatMul of the main graph in its order.

    Raises `EvaluationError` for a graph whose shapes contradict each other or the batch.
    """
    graph = proto.graph
    shapes = _shapes(proto, batch)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for value in graph.input:
        weights.pop(value.name, None)  # the caller of the graph may put another in its place
    readers = _readers(graph)
    found: list[Layer | Skipped] = []
    named: set[str] = set()
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
            continue
        # Nodes may share a name, outputs may not.
        name = _name(node, weights)
        name = name if name not in named else node.output[0]
        named.add(name)
        layer = _layer(node, name, weights, shapes, readers)
        if isinstance(layer, str):
            found.append(Skipped(name=name, reason=layer))
            continue
        found.append(Layer(**layer, name=name, node=node, tail=_tail(graph, node, weights, readers)))
    return found


def _layer(
    node: onnx.NodeProto,
    name: str,
    weights: Mapping[str, onnx.TensorProto],
    shapes: Mapping[str, tuple[int, ...] | None],
    readers: Counter[str],
) -> dict[str, Any] | str:
    """The fields of a `Layer`, or the reason why it is none."""
    if node.op_type == "ConvTranspose":
        return "transposed convolutions are not lowered"
    weight_name = node.input[1]
    if weight_name not in weights:
        return "its weight is not a constant initializer"
    if any(other and other not in weights for other in node.input[2:]):
        return "its bias is not a constant initializer"
    if readers[weight_name] > 1:
        return "its weight is shared by several nodes"
    tensor = weights[weight_name]
    if tensor.data_type != onnx.TensorProto.FLOAT:
        return f"its weight is {onnx.TensorProto.DataType.Name(tensor.data_type)}: only FLOAT is lowered"
    source, target = shapes.get(node.input[0]), shapes.get(node.output[0])
    if source is None or target is None:
        return "the size of its input is not known"
    if 0 in source or 0 in target:
        return "its input or output is empty"
    try:
        weight = numpy_helper.to_array(tensor)
    except Exception:
        raise EvaluationError(f"the weight of {name!r} cannot be read: its data are not in the file") from None
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    conv, bias = None, None
    if node.op_type == "Conv":
        conv = _conv_shape(attributes, weight.shape[2:], source[2:], target[2:])
        if conv.groups > 1 and weight.shape[1] == 1:
            return "depthwise: it has one channel per group"
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    elif weight.ndim != 2 or attributes.get("transA"):
        return "its weight is not a matrix or its input is transposed"
    elif attributes.get("transB"):
        weight = weight.T
    return {"weight": weight, "bias": bias, "input_shape": source, "output_shape": target, "conv": conv}


def _conv_shape(
    attributes: Mapping[str, Any], kernel: tuple[int, ...], source: tuple[int, ...], target: tuple[int, ...]
) -> ConvShape:
    ones = (1,) * len(kernel)
    strides, dilations = (tuple(attributes.get(key, ones)) for key in ("strides", "dilations"))
    pads = tuple(attributes.get("pads", (0,) * 2 * len(kernel)))
    mode = attributes.get("auto_pad", b"NOTSET")
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        # As the operator's definition has it: the odd zero goes behind (UPPER) or before (LOWER).
        totals = [
            max(0, (out - 1) * s + d * (k - 1) + 1 - size)
            for size, out, k, s, d in zip(source, target, kernel, strides, dilations, strict=True)
        ]
        begins = tuple(t // 2 if mode == b"SAME_UPPER" else t - t // 2 for t in totals)
        pads = (*begins, *(t - b for t, b in zip(totals, begins, strict=True)))
    elif mode == b"VALID":
        pads = (0,) * 2 * len(kernel)
    return ConvShape(
        groups=attributes.get("group", 1),
        strides=strides,
        dilations=dilations,
        begins=pads[: len(kernel)],
        ends=pads[len(kernel) :],
    )


def _name(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> str:
    """The layer's name in the network where the exporter kept it, otherwise the node's."""
    weight = str(node.input[1])
    if weight in weights and weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    return str(node.name or node.output[0])


def _readers(graph: onnx.GraphProto) -> Counter[str]:
    """How often each name is read: by nodes, by those of inner graphs, and as an output of the graph."""
    count: Counter[str] = Counter()
    graphs = [graph]
    while graphs:
        inner = graphs.pop()
        count.update(value.name for value in inner.output)
        for node in inner.node:
            count.update(node.input)
            graphs.extend(a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
            graphs.extend(g for a in node.attribute if a.type == onnx.AttributeProto.GRAPHS for g in a.graphs)
    return count


def _tail(
    graph: onnx.GraphProto, node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto], readers: Counter[str]
) -> tuple[onnx.NodeProto, ...]:
    tail: list[onnx.NodeProto] = []
    last = node.output[0]
    while readers[last] == 1:
        after = next((n for n in graph.node if last in n.input), None)
        if after is None or after.op_type not in _TAIL or len(after.output) != 1:
            break
        if any(name and name != last and name not in weights for name in after.input):
            break
        tail.append(after)
        last = after.output[0]
    return tuple(tail)


def _shapes(proto: onnx.ModelProto, batch: int) -> dict[str, tuple[int, ...] | None]:
    """Shape of every value of the main graph at this batch; `None` where a size stays unknown."""
    shell = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    graph = shell.graph
    graph.name = "shapes"
    graph.node.extend(proto.graph.node)
    given = {value.name for value in proto.graph.input}
    for value in proto.graph.input:
        graph.input.append(value)
        sizes = graph.input[-1].type.tensor_type.shape.dim
        if sizes and value.name not in {tensor.name for tensor in proto.graph.initializer}:
            if sizes[0].HasField("dim_value") and sizes[0].dim_value != batch:
                raise EvaluationError(
                    f"input {value.name!r} has its batch fixed at {sizes[0].dim_value}, {batch} was asked for"
                )
            sizes[0].dim_value = batch
    for tensor in proto.graph.initializer:
        if math.prod(tensor.dims) < _LARGE:
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for value in proto.graph.output:
        # Without its shape, which may be written in terms of a free batch.
        graph.output.add(name=value.name).type.tensor_type.elem_type = value.type.tensor_type.elem_type
    try:
        inferred = onnx.shape_inference.infer_shapes(shell, data_prop=True).graph
    except Exception as error:
        raise EvaluationError(f"the shapes of the graph cannot be inferred: {type(error).__name__}") from None
    return {
        value.name: _sizes(value.type.tensor_type)
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
        if value.type.HasField("tensor_type")
    }


def _sizes(kind: onnx.TypeProto.Tensor) -> tuple[int, ...] | None:
    if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return None
    return tuple(dim.dim_value for dim in kind.shape.dim)
