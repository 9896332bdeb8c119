"""Writing a rewritten layer: into the graph it came from, or as a model of its own to be measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from evaluators.errors import EvaluationError, one_line
from evaluators.lower_layer import Array, Layer


class Writer:
    """Collects the nodes and constants of one rewritten layer, under names that the graph does not have yet."""

    def __init__(self, layer: Layer, taken: set[str]) -> None:
        self.layer = layer
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._taken = taken

    @property
    def source(self) -> str:
        """Name of the layer's input."""
        return str(self.layer.node.input[0])

    def constant(self, hint: str, array: Array) -> str:
        name = self._unused(hint)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op: str, inputs: list[str], *, last: bool = False, **attributes: Any) -> str:
        """Add a node of one output, which is the layer's own output if it is the `last`; gives the output's name."""
        name = self._unused(op)
        output = self.layer.node.output[0] if last else f"{name}_out"
        self._taken.add(output)
        self.nodes.append(onnx.helper.make_node(op, inputs, [output], name=name, **attributes))
        return str(output)

    def _unused(self, hint: str) -> str:
        stem = f"{self.layer.name}/lowered/{hint.lower()}"
        name, number = stem, 1
        while name in self._taken or f"{name}_out" in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One exact way to write a layer."""

    choice: str
    numbers: str
    """What decides its time beside the layer's geometry, for example the columns computed."""
    cost: float
    """Rough time, in multiply-accumulates of a dense kernel: for choosing what to measure, never for deciding."""
    write: Callable[[Writer], object]


def names_of(graph: onnx.GraphProto) -> set[str]:
    """Every name in use in the graph and the graphs inside it."""
    names: set[str] = set()
    graphs = [graph]
    while graphs:
        inner = graphs.pop()
        names.update(item.name for item in (*inner.input, *inner.output, *inner.initializer, *inner.node))
        for node in inner.node:
            names.update((*node.input, *node.output))
            graphs.extend(a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
            graphs.extend(g for a in node.attribute if a.type == onnx.AttributeProto.GRAPHS for g in a.graphs)
    return names


def rewritten(proto: onnx.ModelProto, chosen: Iterable[tuple[Layer, Candidate]]) -> bytes:
    """The model with these layers written as these candidates; everything else stays as it is, checked."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    graph = model.graph
    taken = names_of(graph)
    by_output: dict[str, Writer] = {}
    for layer, candidate in chosen:
        writer = Writer(layer, taken)
        candidate.write(writer)
        by_output[layer.node.output[0]] = writer
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        writer_here = by_output.get(node.output[0]) if node.output else None
        nodes.extend([node] if writer_here is None else writer_here.nodes)
    # Copies, because clearing the field ends the nodes that were in it.
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    replaced = {layer.node.input[1] for layer in (writer.layer for writer in by_output.values())}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in replaced:
            del graph.initializer[index]
    for writer in by_output.values():
        graph.initializer.extend(writer.constants)
    return checked_bytes(model)


def layer_model(proto: onnx.ModelProto, layer: Layer, candidate: Candidate | None, batch: int) -> bytes:
    """The layer alone with the nodes fused behind it: dense, or written as `candidate`; input [batch, ...]."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    writer = Writer(layer, names_of(proto.graph))
    entry, shape = writer.source, list(layer.input_shape)
    if shape[0] != batch:
        # Rows of several samples side by side, as [batch * tokens, features]: a rig counts samples.
        entry, shape = f"{entry}_samples", [batch, shape[0] // batch, *shape[1:]]
        flat = writer.constant("shape", np.asarray(layer.input_shape, dtype=np.int64))
        writer.nodes.append(onnx.helper.make_node("Reshape", [entry, flat], [writer.source]))
    if candidate is None:
        writer.nodes.append(layer.node)
    else:
        candidate.write(writer)
    nodes = [*writer.nodes, *layer.tail]
    read = {name for node in nodes for name in node.input}
    elem = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "layer",
        [onnx.helper.make_tensor_value_info(entry, elem, shape)],
        [onnx.helper.make_empty_tensor_value_info(nodes[-1].output[0])],
        [*(constants[name] for name in sorted(read & constants.keys())), *writer.constants],
    )
    graph.output[0].type.tensor_type.elem_type = elem
    model = onnx.helper.make_model(graph, ir_version=proto.ir_version, opset_imports=proto.opset_import)
    return bytes(model.SerializeToString(deterministic=True))


def checked_bytes(model: onnx.ModelProto) -> bytes:
    """The serialized model, if it is valid; `EvaluationError` in one line otherwise."""
    try:
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))
    except Exception as error:
        raise EvaluationError(f"the lowered graph is not valid ONNX: {one_line(error)}") from error


def numbers(**values: int | tuple[int, ...]) -> str:
    """`r=160 k=(3, 3)` as `r160 k3x3`, in the order given."""
    parts: Mapping[str, Any] = values
    return " ".join(
        f"{key}{'x'.join(map(str, value)) if isinstance(value, tuple) else value}" for key, value in parts.items()
    )
