"""Opening an ONNX model in ONNX Runtime on the CPU and nowhere else, with errors of one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from evaluators.errors import RigError, RigUnavailable, one_line
from evaluators.external_data import require_own_data
from evaluators.host import allowed_cores

PROVIDER = "CPUExecutionProvider"
#: Elements of one random input; a damaged file may ask for more than the machine has.
_MOST_RANDOM = 2**28

_DTYPES: dict[str, np.dtype] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
}


def open_session(model: bytes | Path, *, threads: int = 1) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU provider; raises `RigError` for a model it cannot load."""
    if PROVIDER not in ort.get_available_providers():
        raise RigUnavailable(f"this onnxruntime has no {PROVIDER}: install the stock onnxruntime package")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Spinning workers are the default of a deployment that owns its cores, and poison for one that does not.
    spins = 1 < threads <= len(allowed_cores())
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spins else "0")
    if isinstance(model, Path) and not model.is_file():
        raise RigError(f"no ONNX file at {model}")
    require_own_data(model)
    label = "the model" if isinstance(model, bytes) else str(model)
    try:
        source = model if isinstance(model, bytes) else str(model)
        session = ort.InferenceSession(source, options, providers=[PROVIDER], enable_fallback=0)
        # A damaged file may load and yet have names that are no text: find out here, not in the middle of a run.
        for node in (*session.get_inputs(), *session.get_outputs()):
            _ = node.name, node.type, node.shape
    except Exception as error:
        raise RigError(f"ONNX Runtime cannot load {label}: {one_line(error)}") from error
    require_provider(session, PROVIDER)
    return session


def require_provider(session: Any, provider: str) -> None:
    """Refuse a session that would run anywhere else: a figure of one device is never filed as another's."""
    used = list(session.get_providers())
    if used != [provider]:
        raise RigError(f"ONNX Runtime would run on {', '.join(used) or 'nothing'} where {provider} was asked for")


def graph_dtype(node: Any) -> np.dtype:
    """NumPy type of a graph input; `RigError` for one that cannot be fed (strings, sequences, bfloat16)."""
    if node.type not in _DTYPES:
        raise RigError(f"input {node.name!r} is a {node.type}: only numeric tensors can be fed")
    return _DTYPES[node.type]


def random_inputs(session: Any, batch: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded arrays for every graph input: normal floats, integers in {0, 1}; a free first size is `batch`.

    Raises `RigError` for another free dimension, or a fixed first one that is not `batch`.
    """
    rng = np.random.default_rng(seed)
    inputs: dict[str, np.ndarray] = {}
    for node in session.get_inputs():
        dtype = graph_dtype(node)
        shape = list(node.shape)
        if shape and not isinstance(shape[0], int):
            shape[0] = batch
        free = [str(size) for size in shape if not isinstance(size, int)]
        if free:
            raise RigError(f"input {node.name!r} has the free dimension {free[0]!r} besides the batch: give inputs")
        if shape and shape[0] != batch:
            raise RigError(
                f"input {node.name!r} has its batch fixed at {shape[0]}, {batch} was asked for: "
                f"measure with batch {shape[0]} or export with a free batch"
            )
        if not all(size >= 0 for size in shape) or math.prod(shape) > _MOST_RANDOM:
            raise RigError(f"input {node.name!r} has shape {shape}: too large to draw at random, give inputs")
        floats = np.issubdtype(dtype, np.floating)
        values = rng.standard_normal(shape) if floats else rng.integers(0, 2, shape)
        inputs[node.name] = np.asarray(values, dtype=dtype)
    return inputs


def checked_inputs(session: Any, inputs: Mapping[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
    """The given inputs, contiguous, if they fit the graph's names, types and shapes; else `RigError`."""
    nodes = {node.name: node for node in session.get_inputs()}
    odd = sorted(set(inputs) ^ set(nodes))
    if odd:
        raise RigError(f"inputs must be {sorted(nodes)}, got {sorted(inputs)}: {odd[0]!r} is missing or unknown")
    fitting: dict[str, np.ndarray] = {}
    for name, node in nodes.items():
        value = np.asarray(inputs[name])
        if value.dtype != graph_dtype(node):
            raise RigError(f"input {name!r} must be {graph_dtype(node)}, got {value.dtype}")
        sizes_fit = all(
            want == got for want, got in zip(node.shape, value.shape, strict=False) if isinstance(want, int)
        )
        if len(node.shape) != value.ndim or not sizes_fit:
            raise RigError(f"input {name!r} must have shape {node.shape}, got {list(value.shape)}")
        if value.ndim and value.shape[0] != batch:
            raise RigError(f"input {name!r} holds {value.shape[0]} samples where batch is {batch}: make them agree")
        fitting[name] = np.ascontiguousarray(value)
    return fitting
