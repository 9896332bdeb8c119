"""The exact way to write a linear layer, Gemm or MatMul, whose weight has zero input columns."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray

from evaluators.lower_layer import Layer
from evaluators.lower_write import Candidate, Writer, numbers

#: Costs in multiply-accumulates, as in `lower_conv`.
_PER_GATHERED, _PER_NODE = 8.0, 5e4


def linear_cost(layer: Layer) -> float:
    """Multiply-accumulates of the layer as it is, at the batch of its shapes."""
    rows = math.prod(layer.input_shape[:-1])
    # A few rows take no longer than reading the weight does.
    return float(max(rows, 4) * layer.weight.size)


def linear_candidates(layer: Layer, block: int) -> list[Candidate]:
    """A Gather of the live inputs and a smaller product; empty where that leaves as many."""
    live = np.flatnonzero(layer.live)
    length = max(1, math.ceil(len(live) / block) * block)
    if length >= len(layer.weight):
        return []
    index = live[np.minimum(np.arange(length), len(live) - 1)] if len(live) else np.zeros(length, dtype=np.int64)
    rows = math.prod(layer.input_shape[:-1])
    cost = linear_cost(layer) * length / len(layer.weight) + _PER_GATHERED * rows * length + _PER_NODE
    write = partial(_write, layer, index, len(live))
    return [Candidate(choice="gather", numbers=numbers(c=length), cost=cost, write=write)]


def _write(layer: Layer, index: NDArray[np.int64], real: int, writer: Writer) -> None:
    # The last axis, counted from the front: every version of Gather takes that.
    axis = len(layer.input_shape) - 1
    x = writer.node("Gather", [writer.source, writer.constant("inputs", index.astype(np.int64))], axis=axis)
    weight = layer.weight[index].copy()
    weight[real:] = 0
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in layer.node.attribute}
    if attributes.get("transB"):
        weight = weight.T
    inputs = [x, writer.constant("weight", weight), *layer.node.input[2:]]
    writer.node(layer.node.op_type, inputs, last=True, **attributes)
