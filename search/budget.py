"""The budget: what the user asks for, compared with the pessimistic end of what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evaluators.measurement import Measurement
from search.job import Job
from search.result import TrialResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Exactly one of `latency_ms` (median on the deciding clock) and `speedup` (over the dense model), on a rig."""

    latency_ms: float | None = None
    speedup: float | None = None
    rig: str = "onnxruntime-cpu"

    @classmethod
    def of(cls, job: Job) -> Budget | None:
        """The job's budget with its rig named (the deciding one unless it says otherwise), or None."""
        if job.budget is None:
            return None
        rig = job.budget.rig or job.deciding_rig.name
        return cls(latency_ms=job.budget.latency_ms, speedup=job.budget.speedup, rig=rig)

    def __post_init__(self) -> None:
        if (self.latency_ms is None) == (self.speedup is None):
            raise ValueError("a budget is latency_ms or speedup, exactly one of the two")
        asked = self.latency_ms if self.latency_ms is not None else self.speedup
        if asked is None or not 0.0 < asked < math.inf:
            raise ValueError(f"a budget is a positive finite number, got {asked!r}")

    def __str__(self) -> str:
        what = f"{self.latency_ms:g} ms" if self.latency_ms is not None else f"{self.speedup:g}x"
        return f"{what} on {self.rig}"

    def excess(self, latency_high_ms: float, speedup_low: float) -> float:
        """How far over the budget, relative to it: <= 0 is within, never NaN. The sampler's constraint."""
        if self.latency_ms is not None:
            over = latency_high_ms / self.latency_ms - 1.0
        else:
            assert self.speedup is not None
            over = self.speedup / speedup_low - 1.0 if speedup_low > 0.0 else math.inf
        return math.inf if math.isnan(over) else over

    def met_by(self, measurement: Measurement) -> bool:
        """Whether the measurement's pessimistic end keeps the budget."""
        return self.excess(measurement.latency_high_ms, measurement.speedup_low) <= 0.0

    def holds(self, result: TrialResult) -> bool:
        """Whether a complete trial keeps the budget."""
        excess = self.excess_of(result)
        return excess is not None and excess <= 0.0

    def excess_of(self, result: TrialResult) -> float | None:
        """`excess` of a recorded trial on the budget's own rig; None where it was not measured."""
        measured = result.measurements.get(self.rig)
        if measured is not None:
            return self.excess(float(measured["latency_high_ms"]), float(measured["speedup_low"]))
        if result.latency_high_ms is None or result.speedup_low is None:
            return None
        if any(of.get("speedup") == result.speedup for of in result.measurements.values()):
            return None  # the record's own figures are those of another rig, and no answer
        return self.excess(result.latency_high_ms, result.speedup_low)

    def latency_line(self, dense_latency_ms: float) -> float:
        """The budget as a latency in ms, for plots."""
        if self.latency_ms is not None:
            return self.latency_ms
        assert self.speedup is not None
        return dense_latency_ms / self.speedup
