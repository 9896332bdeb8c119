"""Latency layer by layer for the report: the dense network's and its trials' files under ONNX Runtime's profiler.

What was timed is kept in RUN/layers.json, so that a report made elsewhere, or a second one, says the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import onnx

from evaluators.errors import EvaluationError
from evaluators.host import cpu_isa, cpu_model
from evaluators.layer_times import LayerTime, layer_times
from search.atomic import StoreError, json_text, parse_json, write_atomic
from search.job import RigSpec
from search.store import MODEL_NAME, RunStore

SCHEMA = 1
FILE = "layers.json"
TIMED_ON = "onnxruntime-cpu"
DENSE = "dense"
_QUANTISED = ".weight_quantized"
#: Networks that one report times when it is not told how many.
MOST = 12
#: Wall time given to one network, in ms, and the bounds of its repeats.
_SPAN_MS, _FEWEST, _MOST_RUNS = 250.0, 11, 200


def known_times(store: RunStore) -> dict[str, dict[str, Any]]:
    """What was timed before: {"dense" or trial number: {"model": digest of its file, "layers": {layer: share}}}.

    Shares of the network's whole time, in [0, 1]. A file that cannot be read counts as none.
    """
    try:
        content = parse_json((store.root / FILE).read_bytes())
        networks: Mapping[str, Any] = content["networks"]
        return {
            str(name): {
                "model": str(of["model"]),
                "layers": {str(layer): float(share) for layer, share in of["layers"].items()},
            }
            for name, of in networks.items()
            if content["schema"] == SCHEMA
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def obstacle(spec: RigSpec, stamp: Mapping[str, Any], *, running: bool) -> str | None:
    """Why layers are not timed here and now; None where they can be."""
    if spec.name != TIMED_ON:
        return f"layers are timed on {TIMED_ON} only, and this run's rig is {spec.name}"
    if running:
        return "the search is running: its own measurements are not disturbed"
    here, there = (cpu_model(), cpu_isa()), (stamp.get("device"), stamp.get("isa"))
    if here != there:
        return f"this machine ({here[0]}, {here[1]}) is not the one that measured ({there[0]}, {there[1]})"
    return None


def time_layers(
    store: RunStore,
    spec: RigSpec,
    latencies_ms: Mapping[str, float],
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Time the networks of `latencies_ms` ("dense" or trial number -> its latency) that were not timed before.

    Returns all that is known then. A network whose file is gone or cannot be profiled is left out; a run folder that
    cannot be written keeps nothing.
    """
    known = known_times(store)
    fresh = False
    for name, latency_ms in latencies_ms.items():
        path = (store.baseline_dir if name == DENSE else store.trials_dir / name) / MODEL_NAME
        try:
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:16]
            if known.get(name, {}).get("model") == digest:
                continue
            say(f"timing the layers of {'the dense network' if name == DENSE else f'trial {name}'}")
            runs = max(_FEWEST, min(_MOST_RUNS, round(_SPAN_MS / max(latency_ms, 1e-3))))
            times = layer_times(content, threads=spec.threads, batch=spec.batch, runs=runs)
        except (OSError, EvaluationError):
            known.pop(name, None)
            continue
        known[name] = {"model": digest, "layers": _shares(times, content)}
        fresh = True
    if fresh:
        try:
            write_atomic(store.root / FILE, json_text({"schema": SCHEMA, "networks": known}))
        except StoreError as error:
            say(str(error))
    return known


def _shares(times: Iterable[LayerTime], content: bytes) -> dict[str, float]:
    """By layer; what was rewritten in several nodes is one."""
    quantised = _quantised(content)
    layers: dict[str, float] = {}
    for time in times:
        owner = time.name.partition("/lowered/")[0]
        # the runtime numbers the nodes that it makes of a quantised one and its neighbours
        owner = quantised.get(re.sub(r"_token_\d+$", "", owner), owner)
        layers[owner] = layers.get(owner, 0.0) + time.share
    return {name: round(share, 6) for name, share in layers.items()}


def _quantised(content: bytes) -> dict[str, str]:
    """Node -> layer where the weights are int8: `conv1.weight_quantized` behind a DequantizeLinear."""
    graph = onnx.load_model_from_string(content).graph
    weights = {
        node.output[0]: node.input[0].removesuffix(_QUANTISED)
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0].endswith(_QUANTISED)
    }
    return {
        node.name: weights[node.input[1]] for node in graph.node if len(node.input) > 1 and node.input[1] in weights
    }


def layer_ms(shares: Mapping[str, float] | None, layers: Sequence[str], latency_ms: float) -> list[float | None] | None:
    """Latency of each of `layers` in ms (None: the runtime names no node after it), then of all the rest together.

    None where the network was not timed.
    """
    if shares is None:
        return None
    total = sum(shares.values()) or 1.0
    found = [latency_ms * shares[name] / total if name in shares else None for name in layers]
    return [*found, max(0.0, latency_ms - sum(ms for ms in found if ms is not None))]
