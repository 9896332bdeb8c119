"""Where the time of a model goes, node by node, as ONNX Runtime's own profiler saw it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from evaluators.errors import RigError, one_line
from evaluators.host import pinned_to_one_core
from evaluators.ort_session import PROVIDER, open_session, random_inputs, require_provider

_WARMUPS = 5
#: Runs, where the caller does not say: as many as fit a second, within these bounds.
_FEWEST, _MOST, _TARGET_MS = 11, 300, 1000.0
#: The profiler keeps a million events; a run of many nodes gets fewer repeats.
_MOST_EVENTS = 500_000
#: Work that no layer asked for: the runtime changes the layout of a tensor or moves it.
_MOVES = ("ReorderInput", "ReorderOutput", "MemcpyFromHost", "MemcpyToHost")
#: Operators with a weight, and what the runtime fuses them into.
_WEIGHTED: Mapping[str, str] = {
    "FusedConv": "Conv",
    "NhwcFusedConv": "Conv",
    "QLinearConv": "Conv",
    "FusedGemm": "Gemm",
    "FusedMatMul": "MatMul",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """One node of the optimised graph.

    Wall time by ONNX Runtime's profiler, whose clock ticks in microseconds and which costs time itself: `share` is
    what to trust, a latency is for a rig to say.
    """

    name: str
    """The layer (`layer1.0.conv1`) where the node holds a layer's weights, else the node's own name."""
    op: str
    """The operator as it ran: `Conv`, `FusedConv`, `ReorderOutput`."""
    ms: float
    """Typical time of one run."""
    share: float
    """Of the sum over all nodes, in [0, 1]."""


def layer_times(
    model: bytes | Path, *, threads: int = 1, batch: int = 1, runs: int | None = None
) -> tuple[LayerTime, ...]:
    """Time of every node in the order it runs, on the CPU provider with seeded random inputs, one thread pinned.

    Of each node's `runs` times (about a second's worth unless given) the middle half is averaged: a median that ticks
    finer than the profiler. Nodes that reorder or copy tensors are summed into one entry of their operator's name; what
    is fused (`Conv` with its activation and addition) is one node, named after its layer. Raises `RigError` for a model
    that cannot be loaded, run or profiled.
    """
    if runs is not None and (isinstance(runs, bool) or not isinstance(runs, int) or runs < 1):
        raise RigError(f"runs must be an integer >= 1, got {runs!r}")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise RigError(f"batch must be an integer >= 1, got {batch!r}")
    with TemporaryDirectory() as folder, pinned_to_one_core() if threads == 1 else nullcontext():
        events = _profiled(model, threads, batch, runs, Path(folder))
    timed = node_times(events, warmups=_WARMUPS)
    if not timed:
        raise RigError("ONNX Runtime's profiler saw no node run: this model has no layers to time")
    label = _labels(model)
    rows: dict[tuple[str, str] | int, tuple[str, str, float]] = {}
    for i, (name, op, ms) in enumerate(timed):
        moved = op in _MOVES
        place = (op, op) if moved else i
        rows[place] = (op if moved else label(name, op), op, ms + (rows[place][2] if place in rows else 0.0))
    total = sum(ms for _, _, ms in rows.values())
    return tuple(LayerTime(name=n, op=op, ms=ms, share=ms / total if total else 0.0) for n, op, ms in rows.values())


def _profiled(
    model: bytes | Path, threads: int, batch: int, runs: int | None, folder: Path
) -> Sequence[Mapping[str, Any]]:
    # Opened as for the rig first: its errors, and the very options that the rig measures with.
    plain = open_session(model, threads=threads)
    options = plain.get_session_options()
    feed = random_inputs(plain, batch)
    del plain
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = ort.InferenceSession(source, options, providers=[PROVIDER], enable_fallback=0)
        require_provider(session, PROVIDER)
        try:
            for _ in range(_WARMUPS):
                session.run(None, feed)
            for _ in range(_enough(session, model, feed) if runs is None else runs):
                session.run(None, feed)
        finally:
            written = Path(session.end_profiling())
        content: Any = json.loads(written.read_bytes())
    except RigError:
        raise
    except Exception as error:
        raise RigError(f"the model cannot be profiled: {one_line(error)}") from error
    return [event for event in content if isinstance(event, Mapping)]


def _enough(session: Any, model: bytes | Path, feed: Mapping[str, np.ndarray]) -> int:
    began = perf_counter()
    session.run(None, feed)
    once = 1000.0 * (perf_counter() - began)
    nodes = max(1, len(_graph(model).node))
    return max(1, min(max(_FEWEST, round(_TARGET_MS / max(once, 1e-3))), _MOST, _MOST_EVENTS // nodes))


def node_times(events: Sequence[Mapping[str, Any]], *, warmups: int = 0) -> list[tuple[str, str, float]]:
    """(event's name, operator, ms) of each node, in the order of the last run, from a profile of the runtime's.

    The first `warmups` runs are left out. A node inside a loop is summed over a run.
    """
    spans = sorted((float(e["ts"]), float(e["ts"]) + float(e["dur"])) for e in events if e.get("name") == "model_run")[
        warmups:
    ]
    nodes = sorted((e for e in events if _is_node(e)), key=lambda e: float(e["ts"]))
    found: dict[tuple[str, str, str], list[float]] = {}
    last: list[tuple[str, str, str]] = []
    at = 0
    for begin, end in spans:
        once: dict[tuple[str, str, str], float] = {}
        while at < len(nodes) and float(nodes[at]["ts"]) < begin:
            at += 1
        while at < len(nodes) and float(nodes[at]["ts"]) <= end:
            event = nodes[at]
            arguments = event["args"]
            key = (str(event["name"]), str(arguments.get("op_name", "")), str(arguments.get("node_index", "")))
            once[key] = once.get(key, 0.0) + float(event["dur"]) / 1e3
            at += 1
        for key, ms in once.items():
            found.setdefault(key, []).append(ms)
        last = list(once)
    return [(key[0], key[1], _middle(found[key])) for key in last]


def _is_node(event: Mapping[str, Any]) -> bool:
    # Older runtimes also write `_fence_before` and `_fence_after` events of no length.
    return event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time")


def _middle(values: Sequence[float]) -> float:
    """Mean of the middle half."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def _labels(model: bytes | Path) -> Callable[[str, str], str]:
    """(event's name, operator) -> the layer's name, by the graph as it was before the runtime optimised it.

    The runtime names a node after the original one (`node_linear`, `node_silu/QuickGeluFusion/`) or, where it changes
    the layout, after a tensor that the fused node makes (`relu_3_nchwc`): from there the operator is sought upwards.
    """
    graph = _graph(model)
    by_name = {node.name: node for node in graph.node if node.name}
    producers = {output: node for node in graph.node for output in node.output}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    weights = {tensor.name for tensor in graph.initializer}

    def layer_of(node: Any) -> str | None:
        owners = [_owner(name) for name in node.input if name in weights]
        known = next((owner for owner in owners if owner), None)
        if known is None and node.op_type == "MatMul":
            # A linear layer over more than two axes: its weight was transposed and renamed, its bias is added behind.
            behind = users.get(node.output[0], [])
            if len(behind) == 1 and behind[0].op_type == "Add":
                return layer_of(behind[0])
        return known

    def label(event: str, op: str) -> str:
        plain = event.removesuffix("_kernel_time")
        name = plain.partition("/")[0]
        node = by_name.get(name)
        if node is None:
            node = _upwards(producers.get(name.removesuffix("_nchwc")), _WEIGHTED.get(op, op), producers)
        if node is None:
            return plain
        return layer_of(node) or node.name or plain

    return label


def _upwards(node: Any, op: str, producers: Mapping[str, Any]) -> Any:
    """The nearest node of this operator at or above `node`; `node` itself if there is none."""
    seen: list[Any] = []
    queue = [node] if node is not None else []
    while queue:
        current = queue.pop(0)
        if current.op_type == op:
            return current
        # Nothing is fused across another operator with a weight.
        if len(seen) < 8 and current.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            queue.extend(producers[name] for name in current.input if name in producers)
        seen.append(current)
    return node


def _owner(initializer: str) -> str | None:
    """`layer1.0.conv1` of `layer1.0.conv1.weight`; None for a constant that is no parameter of a layer."""
    owner, _, parameter = initializer.rpartition(".")
    return owner if owner and parameter in ("weight", "bias") else None


def _graph(model: bytes | Path) -> Any:
    if isinstance(model, bytes):
        return onnx.load_model_from_string(model).graph
    return onnx.load(model, load_external_data=False).graph
