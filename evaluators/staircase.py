"""The small networks of the staircase that finds a device's channel block, as ONNX files and as modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

#: Channels on either side of the measured width.
ENDS: Mapping[str, int] = {"conv3x3": 128, "depthwise": 32}


def staircase_onnx(kind: str, width: int, *, batch: int = 1) -> bytes:
    """A small network with `width` channels in the middle; input and output [batch, ends, side, side].

    `conv3x3`: two 3x3 convolutions; `depthwise`: 1x1, 3x3 depthwise, 1x1. ReLU behind each, seeded weights, free batch.
    """
    rng = np.random.default_rng(width)
    ends, side, layers = staircase_layers(kind, width, batch)
    nodes, weights, source = [], [], "input"
    for i, (filters, channels, kernel, groups) in enumerate(layers):
        shape = (filters, channels // groups, kernel, kernel)
        values = rng.standard_normal(shape) * math.sqrt(2.0 / math.prod(shape[1:]))
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"weight{i}"))
        weights.append(numpy_helper.from_array(np.zeros(filters, np.float32), f"bias{i}"))
        target = "output" if i == len(layers) - 1 else f"relu{i}"
        conv: dict[str, Any] = {"kernel_shape": [kernel, kernel], "pads": [kernel // 2] * 4, "group": groups}
        nodes.append(helper.make_node("Conv", [source, f"weight{i}", f"bias{i}"], [f"conv{i}"], **conv))
        nodes.append(helper.make_node("Relu", [f"conv{i}"], [target]))
        source = target
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", ends, side, side])
        for name in ("input", "output")
    ]
    graph = helper.make_graph(nodes, "staircase", ports[:1], ports[1:], weights)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def staircase_module(kind: str, width: int, *, batch: int = 1) -> tuple[nn.Module, Tensor]:
    """The same network as a module, and one sample for it."""
    ends, side, layers = staircase_layers(kind, width, batch)
    made: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        sample = torch.randn(1, ends, side, side)
        for filters, channels, kernel, groups in layers:
            made += [nn.Conv2d(channels, filters, kernel, padding=kernel // 2, groups=groups), nn.ReLU()]
    return nn.Sequential(*made).eval(), sample


def staircase_layers(kind: str, width: int, batch: int) -> tuple[int, int, list[tuple[int, int, int, int]]]:
    """(channels at the ends, side of the image, (filters, channels, kernel, groups) of each convolution)."""
    ends = ENDS[kind]
    # Large batches get small images, so that a call stays around a millisecond.
    side = max(4, round((14 if kind == "conv3x3" else 28) / math.sqrt(min(batch, 16))))
    layers = {
        "conv3x3": [(width, ends, 3, 1), (ends, width, 3, 1)],
        "depthwise": [(width, ends, 1, 1), (width, width, 3, width), (ends, width, 1, 1)],
    }
    return ends, side, layers[kind]
