"""The record of one trial: what `trials/<n>/result.json` holds, and nothing else is believed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from evaluators.rig import measures_modules
from search.precision import PRECISIONS, Precision

#: complete: measured, on the front or behind it. infeasible: over budget by its shapes, no training spent.
#: stopped: ended early by the scheduler, dominated. failed: broke, `reason` says how.
Status = Literal["complete", "infeasible", "stopped", "failed"]

STATUSES: tuple[Status, ...] = ("complete", "infeasible", "stopped", "failed")
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """One trial's outcome, written once and atomically.

    `accuracy` is the validation metric in [0, 1] of what is shipped for the deciding rig, an ONNX file or a module;
    `accuracy_drop` is dense minus this, in
    percentage points. `latency_ms` and `speedup` are those of the deciding rig, `latency_high_ms` and `speedup_low`
    the pessimistic ends of their intervals: a budget is compared with them. `measurements` maps a rig's name to
    the full `Measurement.to_dict()`.
    """

    number: int
    status: Status
    plan_digest: str
    seed: int
    reason: str | None = None
    accuracy: float | None = None
    accuracy_drop: float | None = None
    accuracy_stderr: float | None = None
    latency_ms: float | None = None
    latency_high_ms: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    compression_x: float | None = None
    macs: int | None = None
    params: int | None = None
    size_bytes: int | None = None
    """Of what is shipped for the deciding rig: the ONNX file, or the module's weights."""
    epochs: float = 0.0
    """Training spent: samples run forward and backward / training-set size."""
    seconds: float = 0.0
    accuracy_before_prune: float | None = None
    accuracy_after_prune: float | None = None
    primal_residual: float | None = None
    """Largest ‖W−Z‖/‖W‖ over the layers when ADMM ended."""
    parity_max_abs: float | None = None
    params_sampled: Mapping[str, Any] = field(default_factory=dict)
    """The sampler's own parameters, so that a study can be rebuilt from results alone."""
    requested: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The plan as proposed, so that the result stands alone."""
    measurements: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    accuracies: Mapping[str, float] = field(default_factory=dict)
    """Validation metric of the form that each rig measured, by the rig's name."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the form that each rig measured."""
    rungs: tuple[tuple[int, float], ...] = ()
    """(ADMM iteration, validation accuracy of the projected weights) as reported while training."""
    lowered: Mapping[str, Any] | None = None
    """What was rewritten for the deciding rig, layer by layer, and what it gained (`Lowered.to_dict()`)."""
    int8_agreement: float | None = None
    """Of an int8 file, the share of its calibration inputs for which it puts the same class first as in fp32."""
    precision: Precision = "fp32"
    """What the shipped file computes in."""
    source: str = ""
    """Who proposed it (`Proposal.source`)."""
    stretch: float = 1.0
    """Times the job's iterations and epochs that this plan was trained for, with what the trial of the same plan had
    whose weights it began with."""
    weights_of: int | None = None
    """The trial that trained these weights; None where this one did. They were trained once for both precisions."""
    started_from: int | None = None
    """The trial, less pruned or of the same plan, whose weights this one began with; None: the dense network's."""
    notes: tuple[str, ...] = ()
    """What the user must know: a clamp, an unconverged residual, a structure that gains nothing on this rig."""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {self.status!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.status == "complete":
            for name in ("accuracy", "latency_ms", "speedup", "macs", "params", "compression_x"):
                value = getattr(self, name)
                if value is None or not math.isfinite(value):
                    raise ValueError(f"a complete trial needs a finite {name}, got {value!r}")
        elif not self.reason:
            raise ValueError(f"a trial that is {self.status} must say why: reason is empty")

    @property
    def dominates_key(self) -> tuple[float, float]:
        """(accuracy, latency relative to dense) of a complete trial: what the front and the sampler compare.

        The latency is 1 / speedup, the paired ratio: latencies in ms measured minutes apart drift with the machine.
        """
        assert self.accuracy is not None
        assert self.speedup is not None
        return self.accuracy, 1.0 / self.speedup

    def accuracy_on(self, rig: str) -> float | None:
        """Of the form that `rig` takes: its own, else that of another rig of its kind, else the deciding one's."""
        alike = (a for name, a in self.accuracies.items() if measures_modules(name) == measures_modules(rig))
        return self.accuracies.get(rig, next(alike, self.accuracy))

    @property
    def spent(self) -> bool:
        """Whether it counts against the number of trials asked for. Counted apart are a plan over budget by its shapes
        and one whose weights another trial trained, which cost seconds, and the long schedule of the final front."""
        return self.status != "infeasible" and self.weights_of is None and self.source != "final"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TrialResult:
        """Read a record; raises `ValueError` for a record of another schema or with unknown keys."""
        if content.get("schema") != SCHEMA:
            raise ValueError(f"result of schema {content.get('schema')!r}, this version reads {SCHEMA}")
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(content) - known)
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r} in result")
        values = dict(content)
        values["rungs"] = tuple((int(i), float(a)) for i, a in values.get("rungs", ()))
        values["notes"] = tuple(values.get("notes", ()))
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The dense model's figures: the first row of every table and the point all others are compared with."""

    accuracy: float
    accuracy_stderr: float
    latency_ms: float
    """Median on the deciding clock of the deciding rig."""
    macs: int
    params: int
    weights: int
    """Non-zero prunable weights (no bias, no BN): the numerator of `compression_x`."""
    measurements: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trained_epochs: float = 0.0
    size_bytes: int | None = None
    """Of the form that the deciding rig takes."""
    accuracies: Mapping[str, float] = field(default_factory=dict)
    """Validation metric of the form that each rig measured, by the rig's name."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Baseline:
        """Read what `to_dict` wrote."""
        return cls(**content)
