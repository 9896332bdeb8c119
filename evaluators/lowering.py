"""Lowering: an exact rewrite of an ONNX file's layers that turns their zeros into time in stock ONNX Runtime.

No kernel skips zeros, so a column of zeros costs what any other does. Each convolution and linear layer whose weight
has zero columns is written in a few other ways that leave them out (`lower_conv`, `lower_linear`); the likely ones are
measured against the layer as it is, the fastest is kept, and the whole file at the end must not be slower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import onnx

from evaluators.errors import EvaluationError, RigError, RigUnavailable, one_line
from evaluators.lower_conv import conv_candidates, dense_cost
from evaluators.lower_layer import Layer, Skipped, find_layers
from evaluators.lower_linear import linear_candidates, linear_cost
from evaluators.lower_write import Candidate, layer_model, rewritten
from evaluators.measurement import PairMeasure
from evaluators.opset import opset_of

#: Not measured: what the estimate puts above this many times the dense layer's cost, or the likely best way's.
_HOPELESS, _BEHIND = 1.3, 1.5
_MOST_MEASURED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredLayer:
    """What became of one layer."""

    name: str
    choice: str
    """`dense` (as it was), `gather`, `crop`, `one-hot`, `slice`, `box` or `hybrid`; of a module `kept-columns` or
    `2:4`."""
    speedup: float
    """Measured, of the layer alone with what is fused behind it; 1.0 where it stays dense."""
    tried: Mapping[str, float]
    """Speed-up of every way that was measured, here or for an earlier layer of the same kind."""
    reason: str | None = None
    """Why the layer stays dense or was left out, `None` where it was rewritten."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {**asdict(self), "tried": dict(self.tried)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LoweredLayer:
        """Read what `to_dict` wrote; `ValueError` names a missing or unknown key."""
        _check_keys(cls, content, {f.name for f in fields(cls)})
        return cls(**{**content, "tried": dict(content["tried"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """A lowered file and what it gained."""

    content: bytes
    """The ONNX file: the very bytes that came in where nothing was rewritten."""
    layers: tuple[LoweredLayer, ...]
    speedup: float
    """Measured, the whole lowered file over the unlowered one; 1.0 where nothing was rewritten."""
    changed: bool

    def undone(self, content: bytes, reason: str) -> Lowered:
        """The same search for rewrites, none of them used: `content` is the unlowered file."""
        reasons = {layer.name: reason for layer in self.layers if layer.choice != "dense"}
        layers = tuple(_undone(layer, reasons) for layer in self.layers)
        return Lowered(content=content, layers=layers, speedup=1.0, changed=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary, without the content."""
        layers = [layer.to_dict() for layer in self.layers]
        return {"layers": layers, "speedup": self.speedup, "changed": self.changed}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], file: bytes = b"") -> Lowered:
        """Read what `to_dict` wrote, and the file if it is at hand."""
        _check_keys(cls, content, {"layers", "speedup", "changed"})
        layers = tuple(LoweredLayer.from_dict(layer) for layer in content["layers"])
        return cls(content=file, layers=layers, speedup=content["speedup"], changed=content["changed"])


@dataclass(slots=True)
class LayerTimes:
    """Measured speed-ups by layer geometry and way of writing, so that a search measures each once.

    They are those of one rig, with its threads and batch: keep one for each.
    """

    speedups: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {"speedups": dict(self.speedups)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LayerTimes:
        """Read what `to_dict` wrote; `ValueError` for anything else."""
        _check_keys(cls, content, {"speedups"})
        speedups = {str(key): float(value) for key, value in content["speedups"].items()}
        if not all(0 < value < float("inf") for value in speedups.values()):
            raise ValueError("a speed-up in LayerTimes is not a positive finite number")
        return cls(speedups)


def lower(
    model: bytes | Path,
    measure: PairMeasure,
    *,
    block: int = 16,
    batch: int = 1,
    least_gain: float = 0.03,
    known: LayerTimes | None = None,
) -> Lowered:
    """Rewrite the layers that gain more than `least_gain`, and keep that if the whole file is not slower.

    `block` is the number of channels that the device computes at once (counts are padded to it), `batch` the one that
    `measure` runs; the rewritten file is good for every batch that the file was. `known` is read and added to. What
    the zeros are is read from the file; a file without any is not measured. The output is the same up to rounding on
    every input that the unlowered file gives finite values for. Raises `EvaluationError` for a file that cannot be
    read or has another batch; errors of the rig pass through, except for a layer that it cannot run: it stays dense.
    """
    content, proto = _read(model)
    times = LayerTimes() if known is None else known
    outcomes: list[LoweredLayer] = []
    chosen: list[tuple[Layer, Candidate]] = []
    for found in _layers(proto, batch):
        if isinstance(found, Skipped):
            outcomes.append(_dense(found.name, found.reason))
            continue
        outcome, candidate = _choose(proto, found, measure, block, batch, least_gain, times)
        outcomes.append(outcome)
        if candidate is not None:
            chosen.append((found, candidate))
    return _whole(content, proto, outcomes, chosen, measure)


def force(model: bytes | Path, choices: Mapping[str, str], *, block: int = 16, batch: int = 1) -> bytes:
    """The file with each layer named written as its choice, whatever that gains; for tests and experiments.

    Raises `EvaluationError` for a layer that does not exist or cannot be written so.
    """
    _, proto = _read(model)
    layers = {layer.name: layer for layer in _layers(proto, batch) if isinstance(layer, Layer)}
    chosen: list[tuple[Layer, Candidate]] = []
    for name, choice in choices.items():
        if name not in layers:
            raise EvaluationError(f"there is no layer {name!r} to lower: the file has {', '.join(layers) or 'none'}")
        ways = {candidate.choice: candidate for candidate in candidates(layers[name], block)}
        if choice not in ways:
            raise EvaluationError(f"layer {name!r} cannot be written as {choice!r}: use {', '.join(ways) or 'dense'}")
        chosen.append((layers[name], ways[choice]))
    return rewritten(proto, chosen)


def choices(model: bytes | Path, *, block: int = 16, batch: int = 1) -> dict[str, tuple[str, ...]]:
    """The ways in which each layer could be written beside dense; a layer without zero columns has none."""
    _, proto = _read(model)
    layers = [layer for layer in _layers(proto, batch) if isinstance(layer, Layer)]
    return {layer.name: tuple(candidate.choice for candidate in candidates(layer, block)) for layer in layers}


def candidates(layer: Layer, block: int) -> list[Candidate]:
    """Every exact way to write the layer, likely fastest first."""
    if layer.conv is None:
        return linear_candidates(layer, block)
    return sorted(conv_candidates(layer, layer.conv, block), key=lambda candidate: candidate.cost)


def _layers(proto: onnx.ModelProto, batch: int) -> Sequence[Layer | Skipped]:
    found = find_layers(proto, batch)
    # Before these, constants are inputs of the graph and the bounds of a Slice are attributes.
    if proto.ir_version >= 4 and opset_of(proto) >= 11:
        return found
    return [Skipped(name=layer.name, reason="the file is older than IR version 4 and opset 11") for layer in found]


def _choose(
    proto: onnx.ModelProto,
    layer: Layer,
    measure: PairMeasure,
    block: int,
    batch: int,
    least_gain: float,
    times: LayerTimes,
) -> tuple[LoweredLayer, Candidate | None]:
    """Measure the likely ways of writing one layer, or look them up; the fastest, if it gains enough."""
    ways = candidates(layer, block)
    if not ways:
        return _dense(
            layer.name, "it has no zero columns" if layer.live.all() else "too few columns are zero to leave any out"
        ), None
    if layer.input_shape[0] % batch:
        return _dense(layer.name, f"its input of {layer.input_shape[0]} rows is not made of {batch} samples"), None
    bound = min(_HOPELESS * _cost(layer, block), _BEHIND * ways[0].cost)
    likely = [way for way in ways if way.cost <= bound][:_MOST_MEASURED]
    if not likely:
        return _dense(layer.name, f"no way of writing it looks faster ({ways[0].choice} comes nearest)"), None
    dense: bytes | None = None
    tried: dict[str, float] = {}
    for way in likely:
        key = f"{layer.geometry} -> {way.choice} {way.numbers}"
        if key not in times.speedups:
            dense = layer_model(proto, layer, None, batch) if dense is None else dense
            try:
                times.speedups[key] = measure(layer_model(proto, layer, way, batch), dense).speedup
            except RigUnavailable:
                raise
            except RigError as error:
                return _dense(layer.name, f"it cannot be measured alone: {one_line(error)}"), None
        tried[way.choice] = times.speedups[key]
    best = max(likely, key=lambda way: tried[way.choice])
    if not tried[best.choice] > 1.0 + least_gain:
        reason = f"{best.choice} is the fastest other way and gains too little: {tried[best.choice]:.3g}x"
        return LoweredLayer(name=layer.name, choice="dense", speedup=1.0, tried=tried, reason=reason), None
    return LoweredLayer(name=layer.name, choice=best.choice, speedup=tried[best.choice], tried=tried), best


def _whole(
    content: bytes,
    proto: onnx.ModelProto,
    outcomes: list[LoweredLayer],
    chosen: list[tuple[Layer, Candidate]],
    measure: PairMeasure,
) -> Lowered:
    """The whole file with the chosen rewrites; while it is not surely as fast, without the lesser half of them."""
    gains = {outcome.name: outcome.speedup for outcome in outcomes}
    reasons: dict[str, str] = {}
    while chosen:
        lowered = rewritten(proto, chosen)
        measured = measure(lowered, content)
        if measured.speedup_low >= 1.0:
            layers = tuple(_undone(outcome, reasons) for outcome in outcomes)
            return Lowered(content=lowered, layers=layers, speedup=measured.speedup, changed=True)
        chosen = sorted(chosen, key=lambda pair: -gains[pair[0].name])
        interval = f"{measured.speedup_low:.3g}x to {measured.speedup_high:.3g}x"
        for layer, _ in chosen[len(chosen) // 2 :]:
            reasons[layer.name] = f"undone: with it the whole file ran {interval} as fast as the unlowered one"
        chosen = chosen[: len(chosen) // 2]
    layers = tuple(_undone(outcome, reasons) for outcome in outcomes)
    return Lowered(content=content, layers=layers, speedup=1.0, changed=False)


def _undone(outcome: LoweredLayer, reasons: Mapping[str, str]) -> LoweredLayer:
    if outcome.name not in reasons:
        return outcome
    return _dense(outcome.name, f"{reasons[outcome.name]} ({outcome.choice})", outcome.tried)


def _dense(name: str, reason: str, tried: Mapping[str, float] | None = None) -> LoweredLayer:
    return LoweredLayer(name=name, choice="dense", speedup=1.0, tried=tried or {}, reason=reason)


def _cost(layer: Layer, block: int) -> float:
    return linear_cost(layer) if layer.conv is None else dense_cost(layer, layer.conv, block)


def _read(model: bytes | Path) -> tuple[bytes, onnx.ModelProto]:
    label = "the model" if isinstance(model, bytes) else str(model)
    try:
        content = model if isinstance(model, bytes) else model.read_bytes()
        proto = onnx.load_model_from_string(content)
        onnx.checker.check_model(proto, full_check=True)
    except OSError as error:
        raise EvaluationError(f"cannot read {label}: {error.strerror or error}") from None
    except Exception as error:
        raise EvaluationError(f"{label} is not a valid ONNX file: {one_line(error)}") from None
    return content, proto


def _check_keys(cls: type, content: Mapping[str, Any], known: set[str]) -> None:
    if not isinstance(content, Mapping) or set(content) != known:
        odd = sorted(set(content) ^ known) if isinstance(content, Mapping) else [type(content).__name__]
        raise ValueError(f"{odd[0]!r} is missing or unknown in {cls.__name__}: written by another version?")
