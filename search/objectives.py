"""What a search weighs against each other: accuracy, and one or two costs. No Optuna, no Ray.

Every cost is relative to the dense network's, which is 1: a latency is the paired ratio on its rig, and the others are
exact. Less is better, and half counts as much from anywhere: hypervolumes take its logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search.objective_names import ACCURACY, DEFAULT, LATENCY, MACS, ON, SIZE, require_objectives, rig_of
from search.result import Baseline, TrialResult

if TYPE_CHECKING:
    from search.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """The dense network's cost over a trial's: 2 is half the cost; with the ends of its interval, where it has one."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """The costs beside accuracy, in order, and the dense figures that those which are counted are relative to."""

    names: tuple[str, ...] = DEFAULT
    dense_macs: int | None = None
    dense_bytes: int | None = None

    def __post_init__(self) -> None:
        require_objectives(self.names)

    @classmethod
    def of(cls, job: Job, baseline: Baseline) -> Objectives:
        """Those of a job, whose dense network has these figures."""
        return cls(names=job.search.objectives, dense_macs=baseline.macs, dense_bytes=baseline.size_bytes)

    @property
    def costs(self) -> tuple[str, ...]:
        """All but accuracy."""
        return self.names[1:]

    @property
    def rigs(self) -> tuple[str, ...]:
        """The rigs beside the deciding one whose latency is an objective."""
        return tuple(rig for rig in map(rig_of, self.costs) if rig is not None)

    @property
    def metrics(self) -> list[str]:
        """What the study calls its values."""
        return [ACCURACY, *(f"relative_{name}" for name in self.costs)]

    def gains(self, result: TrialResult) -> tuple[Gain, ...] | None:
        """One for each cost; None where one of them is not known of this result, or is no positive finite number."""
        found = [self._gain(name, result) for name in self.costs]
        usable = tuple(gain for gain in found if gain is not None and 0.0 < gain.value < math.inf)
        return usable if len(usable) == len(found) else None

    def relative(self, result: TrialResult) -> tuple[float, ...] | None:
        """The costs over the dense network's, as `search.pareto` takes them; None as for `gains`."""
        gains = self.gains(result)
        return None if gains is None else tuple(1.0 / gain.value for gain in gains)

    def point(self, result: TrialResult) -> tuple[float, ...] | None:
        """(accuracy, *costs) of a complete trial; None of any other, and where a figure is unknown or no number."""
        if result.status != "complete" or result.accuracy is None or not math.isfinite(result.accuracy):
            return None
        costs = self.relative(result)
        return None if costs is None else (result.accuracy, *costs)

    def points(self, results: Mapping[int, TrialResult]) -> dict[int, tuple[float, ...]]:
        """The points of all complete trials that have every figure, by ascending number."""
        found = {number: self.point(results[number]) for number in sorted(results)}
        return {number: point for number, point in found.items() if point is not None}

    def _gain(self, name: str, result: TrialResult) -> Gain | None:
        if name == LATENCY:
            return None if result.speedup is None else _latency_gain(result)
        if name == MACS:
            return _counted(self.dense_macs, result.macs)
        if name == SIZE:
            return _counted(self.dense_bytes, result.size_bytes)
        measured = result.measurements.get(name.removeprefix(ON))
        return None if measured is None else _measured_gain(measured)


def _latency_gain(result: TrialResult) -> Gain:
    """Results keep the lower end of the interval; the upper one is the deciding rig's, or as far above in the log."""
    speedup = result.speedup if result.speedup is not None else math.nan
    low = result.speedup_low if result.speedup_low is not None else math.nan
    for measurement in result.measurements.values():
        if measurement.get("speedup") == speedup and measurement.get("speedup_high") is not None:
            return Gain(value=speedup, low=low, high=float(measurement["speedup_high"]))
    return Gain(value=speedup, low=low, high=speedup * speedup / low if low > 0.0 else math.nan)


def _measured_gain(measured: Mapping[str, Any]) -> Gain | None:
    try:
        low, high = (float(measured.get(f"speedup_{end}", math.nan)) for end in ("low", "high"))
        return Gain(value=float(measured["speedup"]), low=low, high=high)
    except (KeyError, TypeError, ValueError):
        return None


def _counted(dense: int | None, own: int | None) -> Gain | None:
    return None if not dense or not own or own < 0 else Gain(value=dense / own)


#: Accuracy and the deciding rig's latency: what a search weighs unless its job says otherwise.
LATENCY_ALONE = Objectives()
