"""Layer by layer: how wide the dense network is, and what a trial kept of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from admm.compact import WEIGHTS_FILE
from evaluators.errors import EvaluationError
from evaluators.layer_macs import LayerMacs, layer_macs
from search.atomic import parse_json
from search.store import MODEL_NAME, RunStore

PLAN_NAME = "plan.json"


def dense_layers(store: RunStore, layers: tuple[str, ...] = ()) -> tuple[tuple[LayerMacs, ...], str | None]:
    """The dense network's layers in the order they run, and why less is known of them than there could be.

    From its ONNX file; where the run ships modules, from the shapes of its weights: `layers` names the prunable ones
    in model order, and how often a weight is used (its MACs, 0 here) is then not known.
    """
    path = store.baseline_dir / MODEL_NAME
    if path.is_file():
        try:
            return layer_macs(path), None
        except EvaluationError as error:
            why = f"the dense network's ONNX file does not tell its layers: {error}"
    else:
        why = "this run ships modules, not ONNX files: how many MACs each layer takes is not recorded"
    found = _from_weights(store.baseline_dir / WEIGHTS_FILE, layers)
    return found, why if found else f"{why}; {WEIGHTS_FILE} of the dense network is missing too"


def _from_weights(path: Path, layers: tuple[str, ...]) -> tuple[LayerMacs, ...]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            known = set(file.keys())
            shapes = {
                name: list(file.get_slice(f"{name}.weight").get_shape()) for name in layers if f"{name}.weight" in known
            }
    except (OSError, SafetensorError):
        return ()
    return tuple(
        LayerMacs(
            name=name,
            op="",
            filters=shape[0],
            channels=shape[1],
            kernel=math.prod(shape[2:]),
            groups=1,
            macs=0,
        )
        for name, shape in shapes.items()
        if len(shape) >= 2
    )


def kept_layers(
    folder: Path, dense: tuple[LayerMacs, ...], entries: Mapping[str, int] | None
) -> tuple[list[list[int]], Mapping[str, Mapping[str, float]]] | None:
    """[filters, input channels, weights] kept of each layer of `dense`, and the plan as it was carried out.

    From the `plan.json` in a trial's folder; None where there is none to be read. `entries` are those that ADMM's last
    projection kept, by tensor: zeros inside what is left of a layer.
    """
    try:
        content: Mapping[str, Any] = parse_json((folder / PLAN_NAME).read_bytes())
        kept: Mapping[str, Mapping[str, list[int]]] = content["kept"]
        plan = {
            str(layer): {str(structure): float(sparsity) for structure, sparsity in of.items()}
            for layer, of in content["effective"].items()
        }
        rows = [_kept(layer, kept.get(layer.name, {}), entries or {}) for layer in dense]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return rows, plan


def _kept(layer: LayerMacs, kept: Mapping[str, list[int]], entries: Mapping[str, int]) -> list[int]:
    filters = min(len(kept["out"]), layer.filters) if "out" in kept else layer.filters
    channels = layer.channels
    if "in" in kept and layer.groups == 1:
        channels = min(len(kept["in"]), channels)
    elif "in" in kept and layer.channels > 1:  # grouped: the indices are those of all its groups together
        channels = min(max(1, len(kept["in"]) // layer.groups), channels)
    weights = filters * channels * layer.kernel
    return [filters, channels, min(weights, entries.get(f"{layer.name}.weight", weights))]
