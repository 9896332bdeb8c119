"""Who beats whom when figures are noisy: an accuracy has a standard error, a speed-up an interval. No Optuna.

Two trials are *tied* when neither figure tells them apart. One *surely* dominates another when it is at least as good
in both figures and better in one by more than the noise. `search.pareto` stays the front of the figures as they are;
`contenders` is that front and those who may stand on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from search.pareto import front
from search.result import TrialResult

Floats = npt.NDArray[np.float64]

#: Standard errors between two accuracies that are told apart: about 95 % of what chance does stays below.
Z = 2.0
#: Trials compared with all others at a time, so that the table stays small.
BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A trial's accuracy in [0, 1] with its standard error, and its speed-up with the ends of its interval.

    Errors that are missing, negative or not finite count as none: then the figures are compared as they are.
    """

    accuracy: float
    speedup: float
    accuracy_stderr: float = 0.0
    speedup_low: float = math.nan
    speedup_high: float = math.nan

    def __post_init__(self) -> None:
        if not 0.0 <= self.accuracy_stderr < math.inf:
            object.__setattr__(self, "accuracy_stderr", 0.0)
        if not 0.0 < self.speedup_low <= self.speedup:
            object.__setattr__(self, "speedup_low", self.speedup)
        if not self.speedup <= self.speedup_high < math.inf:
            object.__setattr__(self, "speedup_high", self.speedup)

    @classmethod
    def of(cls, result: TrialResult) -> Figures | None:
        """Of a complete trial with usable figures, else None.

        Results keep the lower end of the interval; the upper one is the deciding rig's, or as far above in the log.
        """
        accuracy, speedup = result.accuracy, result.speedup
        if result.status != "complete" or accuracy is None or speedup is None:
            return None
        if not (math.isfinite(accuracy) and 0.0 < speedup < math.inf):
            return None
        low = result.speedup_low if result.speedup_low is not None else math.nan
        return cls(
            accuracy=accuracy,
            accuracy_stderr=result.accuracy_stderr if result.accuracy_stderr is not None else 0.0,
            speedup=speedup,
            speedup_low=low,
            speedup_high=_upper_end(result.measurements, speedup, low),
        )

    @property
    def point(self) -> tuple[float, float]:
        """(accuracy, relative latency), as `search.pareto` takes it."""
        return self.accuracy, 1.0 / self.speedup


def _upper_end(measurements: Mapping[str, Mapping[str, Any]], speedup: float, low: float) -> float:
    for measurement in measurements.values():
        if measurement.get("speedup") == speedup and measurement.get("speedup_high") is not None:
            return float(measurement["speedup_high"])
    return speedup * speedup / low if low > 0.0 else math.nan


def surely_more_accurate(a: Figures, b: Figures) -> bool:
    """Whether a's accuracy is above b's by more than `Z` standard errors of their difference.

    Both are measured on the same samples, so that their errors go together: this errs on the side of a tie.
    """
    return a.accuracy - b.accuracy > Z * math.hypot(a.accuracy_stderr, b.accuracy_stderr)


def surely_faster(a: Figures, b: Figures) -> bool:
    """Whether a's interval lies above b's."""
    return a.speedup_low > b.speedup_high


def surely_dominates(a: Figures, b: Figures) -> bool:
    """At least as good in both figures, and better in one beyond the noise."""
    if not (a.accuracy >= b.accuracy and a.speedup >= b.speedup):
        return False
    return surely_more_accurate(a, b) or surely_faster(a, b)


def tied(a: Figures, b: Figures) -> bool:
    """Whether neither figure tells the two apart."""
    return not (surely_more_accurate(a, b) or surely_more_accurate(b, a) or surely_faster(a, b) or surely_faster(b, a))


def contenders(trials: Sequence[Figures]) -> list[int]:
    """Ascending indices of the trials that no other surely dominates: the front, and those that may be on it.

    Trials with a NaN neither stay nor dominate.
    """
    table = np.asarray(
        [(t.accuracy, t.speedup, t.accuracy_stderr, t.speedup_low, t.speedup_high) for t in trials], dtype=np.float64
    ).reshape(len(trials), 5)
    known = np.flatnonzero(~np.isnan(table[:, :2]).any(axis=1))
    # most are beaten by the front itself, and need not be compared with all
    left = known[~_beaten(table[front([t.point for t in trials])], table[known])]
    return [int(i) for i in left[~_beaten(table[known], table[left])]]


def _beaten(others: Floats, rows: Floats) -> npt.NDArray[np.bool_]:
    """For each row whether one of the others surely dominates it; a block of rows at a time."""
    beaten = np.zeros(len(rows), dtype=bool)
    accuracy, speedup, stderr, low, _ = others.T[:, :, None]
    for begin in range(0, len(rows), BLOCK):
        some = slice(begin, begin + BLOCK)
        own_accuracy, own_speedup, own_stderr, _, own_high = rows[some].T[:, None, :]
        as_good = (accuracy >= own_accuracy) & (speedup >= own_speedup)
        surely = (accuracy - own_accuracy > Z * np.hypot(stderr, own_stderr)) | (low > own_high)
        beaten[some] = (as_good & surely).any(axis=0)
    return beaten


def tied_with(best: Mapping[int, Figures], others: Mapping[int, Figures]) -> dict[int, list[int]]:
    """For each trial of the front the numbers of those that cannot be told from it, ascending: for the table."""
    everyone = {**others, **best}
    return {
        number: [other for other in sorted(everyone) if other != number and tied(figures, everyone[other])]
        for number, figures in best.items()
    }
