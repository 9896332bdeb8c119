"""What each layer of an ONNX graph computes: its width and its multiply-accumulates, by the layer's own name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import onnx

from evaluators.errors import EvaluationError, one_line
from evaluators.layer_times import _labels
from evaluators.work import _inferred_shapes, _node_work, rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMacs:
    """One layer with a weight, V = [filters, channels of one group, kernel positions]."""

    name: str
    op: str
    filters: int
    channels: int
    kernel: int
    groups: int
    macs: int
    """Of one sample; a layer that is called twice counts both."""

    @property
    def weights(self) -> int:
        """Elements of V."""
        return self.filters * self.channels * self.kernel


def layer_macs(model: bytes | Path) -> tuple[LayerMacs, ...]:
    """Every Conv, ConvTranspose, Gemm and MatMul whose second factor is a stored weight, in the order they run.

    Named as `layer_times` names them. Raises `EvaluationError` for a file that is no ONNX model and for a layer whose
    shape cannot be inferred.
    """
    try:
        content = model if isinstance(model, bytes) else model.read_bytes()
    except OSError as error:
        raise EvaluationError(f"cannot read {error.filename}: {error.strerror or error}") from error
    try:
        proto = onnx.load_model_from_string(content)
    except Exception as error:
        raise EvaluationError(f"not an ONNX model: {one_line(error)}") from error
    label = _labels(content)
    stored = {tensor.name for tensor in proto.graph.initializer}
    shapes, batch = _inferred_shapes(proto)
    found: dict[str, LayerMacs] = {}
    for node in proto.graph.node:
        work = _node_work(node, shapes, rounding(1, 1))
        if work is None or node.input[1] not in stored:
            continue
        name = label(node.name, node.op_type)
        macs = round(work.macs / batch)
        before = found.get(name)
        filters, channels, kernel, groups = _width(node, [d or 0 for d in shapes[node.input[1]]])
        found[name] = LayerMacs(
            name=name,
            op=node.op_type,
            filters=filters,
            channels=channels,
            kernel=kernel,
            groups=groups,
            macs=macs + (before.macs if before is not None else 0),
        )
    return tuple(found.values())


def _width(node: onnx.NodeProto, weight: list[int]) -> tuple[int, int, int, int]:
    """(filters, channels of one group, kernel positions, groups)."""
    attributes = {a.name: a.i for a in node.attribute}
    groups = attributes.get("group", 1)
    if node.op_type == "Conv":
        return weight[0], weight[1], math.prod(weight[2:]), groups
    if node.op_type == "ConvTranspose":
        return weight[1] * groups, weight[0] // groups, math.prod(weight[2:]), groups
    if node.op_type == "Gemm" and attributes.get("transB"):
        return weight[0], weight[1], 1, 1
    return weight[-1], weight[-2], 1, 1
