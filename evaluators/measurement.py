"""What a rig reports: `Measurement`, every figure of it stamped with where it was taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

#: What the deciding clock counts; thread CPU time is not wall time, so the word is printed beside every
#: figure.
CLOCKS: tuple[str, ...] = ("thread_cpu", "wall", "cuda_event")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStamp:
    """Where and how a figure was measured: two figures compare only if their stamps agree.

    Raises `ValueError` for an unknown clock or a count below one.
    """

    rig: str
    """Name of the rig, for example `onnxruntime-cpu`."""
    device: str
    """The processor's own name for itself."""
    isa: str
    """Widest vector instruction set in use: `avx512`, `avx2`, `sve`, `neon`, ..."""
    runtime: str
    """Runtime and version: `onnxruntime 1.31.1`."""
    provider: str
    threads: int
    batch: int
    clock: str
    """One of `CLOCKS`."""
    platform: str

    def __post_init__(self) -> None:
        for name in ("rig", "device", "isa", "runtime", "provider", "clock", "platform"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be text, got {getattr(self, name)!r}")
        if self.clock not in CLOCKS:
            raise ValueError(f"clock must be one of {', '.join(CLOCKS)}, got {self.clock!r}")
        for name in ("threads", "batch"):
            _check_count(name, getattr(self, name), at_least=1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DeviceStamp:
        """Read what `to_dict` wrote; `ValueError` names a missing or unknown key."""
        _check_keys(cls, content)
        return cls(**content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Latency of one model, paired with a reference model measured in the same run. Times in milliseconds.

    `latency_*` and `dense_latency_ms` are medians per call on the deciding clock (`stamp.clock`), the
    interval a 95 % bootstrap one; a budget compares with its upper end. `speedup` is the paired figure
    exp(median(log(reference / candidate))). Wall figures describe the candidate and leave out the `rejected`
    repeats during which the thread waited for a core; `None` if every repeat had to wait. Raises `ValueError`
    for a figure that is not a positive finite number.
    """

    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    dense_latency_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    wall_p50_ms: float | None
    wall_p95_ms: float | None
    wall_min_ms: float | None
    pairs: int
    rejected: int
    converged: bool
    """Whether the interval of `speedup` came within the bound (±3 %) before the cap on pairs."""
    seconds: float
    """Wall time the measuring took."""
    stamp: DeviceStamp

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name.startswith(("latency", "dense", "speedup")):
                _check_positive(f.name, value)
            elif f.name.startswith("wall") and value is not None:
                _check_positive(f.name, value, zero=True)
        _check_positive("seconds", self.seconds, zero=True)
        _check_count("pairs", self.pairs, at_least=1)
        _check_count("rejected", self.rejected, at_least=0)
        if not isinstance(self.converged, bool):
            raise ValueError(f"converged must be true or false, got {self.converged!r}")
        if not isinstance(self.stamp, DeviceStamp):
            raise ValueError(f"stamp must be a DeviceStamp, got {type(self.stamp).__name__}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary, `stamp` nested; `from_dict` gives back an equal object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Measurement:
        """Read what `to_dict` wrote; `ValueError` names a missing, unknown or impossible entry."""
        _check_keys(cls, content)
        return cls(**{**content, "stamp": DeviceStamp.from_dict(content["stamp"])})


#: (candidate ONNX, reference ONNX) -> paired measurement on a rig, wherever that is, with inputs drawn from the shapes.
PairMeasure = Callable[[bytes, bytes], Measurement]


def _check_keys(cls: type, content: Mapping[str, Any]) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"a {cls.__name__} is read from a mapping, got {type(content).__name__}")
    known = [f.name for f in fields(cls)]
    unknown = [str(key) for key in content if key not in known]
    missing = [name for name in known if name not in content]
    if unknown or missing:
        trouble = f"unknown key {unknown[0]!r}" if unknown else f"missing key {missing[0]!r}"
        raise ValueError(f"{trouble} in {cls.__name__}: written by another version?")


def _check_positive(name: str, value: Any, *, zero: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and (value > 0 or (zero and value == 0))):
        kind = "non-negative" if zero else "positive"
        raise ValueError(f"{name} must be a {kind} finite number, got {value!r}")


def _check_count(name: str, value: object, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be an integer >= {at_least}, got {value!r}")
