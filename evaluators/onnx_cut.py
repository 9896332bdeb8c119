"""A dense network's ONNX file cut down to what remains of its tensors: milliseconds, where an export takes seconds.

For latency only. The exporter fuses and renames, so a cut may be wrong or impossible: whoever cuts compares the result
with the small module, and exports where the two differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from evaluators.errors import ExportError, one_line

#: What the exporter adds to a weight's name for the bias of a convolution that it fused a norm into.
_FUSED = "_bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What is left of one tensor of the dense network."""

    axes: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Axis -> ascending dense indices that remain; axes that keep all are left out."""
    filter_axis: int = 0
    """The axis that counts what a bias has one value for."""
    living: np.ndarray | None = None
    """Bool, in the cut tensor's shape: False where it becomes zero; None where nothing does."""
    selects: tuple[int, Sequence[int]] | None = None
    """Of a layer that reads some of the channels that arrive: the input's axis, from the end, and their positions."""


def cut_onnx(dense: bytes, cuts: Mapping[str, Cut]) -> bytes:
    """The dense file with the tensors named in `cuts` cut; graph and names stay, and tensors it does not hold.

    A bias that the exporter made when it fused a norm follows its weight, and a flattening to a width that is no
    longer right takes what comes. Raises `ExportError` for no ONNX file, and for indices that a tensor has not.
    """
    try:
        proto = onnx.load_model_from_string(dense)
    except Exception as error:
        raise ExportError(f"the dense file cannot be read: {one_line(error)}") from error
    for tensor in proto.graph.initializer:
        if tensor.name in cuts:
            _cut(tensor, cuts[tensor.name])
        elif (weight := cuts.get(tensor.name.removesuffix(_FUSED))) is not None:
            rows = weight.axes.get(weight.filter_axis)
            _cut(tensor, Cut(axes={} if rows is None else {0: rows}))
    for name, cut in cuts.items():
        if cut.selects is not None:
            _select(proto.graph, name, *cut.selects)
    _regroup(proto.graph, cuts)
    _flatten_anew(proto.graph)
    del proto.graph.value_info[:]
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _cut(tensor: onnx.TensorProto, cut: Cut) -> None:
    value = numpy_helper.to_array(tensor)
    try:
        for axis, index in cut.axes.items():
            value = np.take(value, np.asarray(index, dtype=np.int64), axis=axis)
        if cut.living is not None:
            if cut.living.shape != value.shape:
                raise ValueError(f"zeros of {list(cut.living.shape)} do not fit what is left, {list(value.shape)}")
            value = np.where(cut.living, value, value.dtype.type(0))
    except (ValueError, IndexError) as error:
        raise ExportError(f"{tensor.name}: its shape in the file is {list(tensor.dims)}: {one_line(error)}") from error
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))


def _select(graph: onnx.GraphProto, weight: str, axis: int, positions: Sequence[int]) -> None:
    """Let the layers of this weight read only these channels of what arrives, as an index_select is exported."""
    index = f"{weight}.selects"
    readers = [(at, node) for at, node in enumerate(graph.node) if len(node.input) > 1 and node.input[1] == weight]
    if readers:
        graph.initializer.append(numpy_helper.from_array(np.asarray(positions, dtype=np.int64), index))
    for at, node in reversed(readers):
        selected = f"{node.output[0]}.selected"
        graph.node.insert(at, helper.make_node("Gather", [node.input[0], index], [selected], axis=axis))
        graph.node[at + 1].input[0] = selected


def _regroup(graph: onnx.GraphProto, cuts: Mapping[str, Cut]) -> None:
    """A depthwise convolution has as many groups as filters; one with fewer groups is never cut."""
    width = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.name in cuts}
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in width:
            for attribute in node.attribute:
                if attribute.name == "group" and attribute.i > 1 and 0 in cuts[node.input[1]].axes:
                    attribute.i = width[node.input[1]]


def _flatten_anew(graph: onnx.GraphProto) -> None:
    """Let each reshape to [batch, a width that the exporter worked out] work the width out by itself."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {info.name: info.type.tensor_type.shape.dim for info in (*graph.value_info, *graph.input)}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants or node.input[0] not in shapes:
            continue
        wanted = numpy_helper.to_array(constants[node.input[1]]).tolist()
        arriving = [dim.dim_value for dim in shapes[node.input[0]]]  # 0 where it is free
        if len(wanted) != 2 or wanted[1] != math.prod(arriving[1:]) or wanted[0] not in (-1, arriving[0]):
            continue
        flat = f"{node.output[0]}.flat"
        graph.initializer.append(numpy_helper.from_array(np.asarray([0, -1], dtype=np.int64), flat))
        node.input[1] = flat
        kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
        del node.attribute[:]
        node.attribute.extend(kept)
