"""ONNX files that name other files for their weights: none that leaves the model's own folder is opened.

onnx.ai/onnx/repo-docs/ExternalData.html: a tensor's `location` is a path relative to the model. ONNX Runtime checks it
itself in some versions; a hostile file must not find out in which.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx

from evaluators.errors import RigError, one_line

_KEY = b"location"


def require_own_data(model: bytes | Path) -> None:
    """Raises `RigError` for a model that would read a file outside its folder; one in memory has no folder."""
    label = "the model" if isinstance(model, bytes) else str(model)
    if not _may_have(model):
        return
    try:
        proto = onnx.load_model_from_string(model if isinstance(model, bytes) else model.read_bytes())
    except Exception as error:  # protobuf's own, which is no module of ours to name
        raise RigError(f"ONNX Runtime cannot load {label}: {one_line(error)}") from None
    home = None if isinstance(model, bytes) else model.resolve().parent
    for tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if home is None:
            raise RigError(f"{label} keeps tensor {tensor.name!r} in another file: save it as one file")
        if not place or not (home / place).resolve().is_relative_to(home):
            raise RigError(
                f"{label} names {place!r} for tensor {tensor.name!r}, which is not in its folder: save it as one file"
            )


def _may_have(model: bytes | Path) -> bool:
    """Whether the key that every external tensor has stands anywhere in the file: a look, not a parse."""
    if isinstance(model, bytes):
        return _KEY in model
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(_KEY) >= 0
    except (OSError, ValueError):  # missing or empty: whoever opens it says so
        return False


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs, nodes = [model.graph], [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            graphs.extend(g for g in (attribute.g, *attribute.graphs) if g.ByteSize())
