"""Who beats whom when figures are noisy: an accuracy has a standard error, a gain an interval. No Optuna.

Two trials are *tied* when no figure tells them apart. One *surely* dominates another when it is at least as good in all
figures and better in one by more than the noise. `search.pareto` stays the front of the figures as they are;
`contenders` is that front and those who may stand on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search.objectives import LATENCY_ALONE, Gain, Objectives
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

    `speedup` is the dense network's cost over the trial's in the first of the objectives' costs, whatever that is, and
    `others` are the gains in the rest of them. Errors that are missing, negative or not finite count as none: then the
    figures are compared as they are.
    """

    accuracy: float
    speedup: float
    accuracy_stderr: float = 0.0
    speedup_low: float = math.nan
    speedup_high: float = math.nan
    others: tuple[Gain, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.accuracy_stderr < math.inf:
            object.__setattr__(self, "accuracy_stderr", 0.0)
        first = _ordered(Gain(value=self.speedup, low=self.speedup_low, high=self.speedup_high))
        object.__setattr__(self, "speedup_low", first.low)
        object.__setattr__(self, "speedup_high", first.high)
        object.__setattr__(self, "others", tuple(map(_ordered, self.others)))

    @classmethod
    def of(cls, result: TrialResult, objectives: Objectives = LATENCY_ALONE) -> Figures | None:
        """Of a complete trial with usable figures, else None."""
        gains = objectives.gains(result)
        if objectives.point(result) is None or gains is None or result.accuracy is None:
            return None
        return cls(
            accuracy=result.accuracy,
            accuracy_stderr=result.accuracy_stderr if result.accuracy_stderr is not None else 0.0,
            speedup=gains[0].value,
            speedup_low=gains[0].low,
            speedup_high=gains[0].high,
            others=gains[1:],
        )

    @property
    def gains(self) -> tuple[float, ...]:
        """One for each cost."""
        return self.speedup, *(gain.value for gain in self.others)

    @property
    def point(self) -> tuple[float, ...]:
        """(accuracy, relative costs), as `search.pareto` takes it."""
        return self.accuracy, *(1.0 / gain for gain in self.gains)

    @property
    def intervals(self) -> tuple[Gain, ...]:
        """The gains with the ends of their intervals, which stand on either side of them."""
        return Gain(value=self.speedup, low=self.speedup_low, high=self.speedup_high), *self.others


def _ordered(gain: Gain) -> Gain:
    """The gain with an end that is missing, or on the wrong side, put where the gain is."""
    low = gain.low if 0.0 < gain.low <= gain.value else gain.value
    return Gain(value=gain.value, low=low, high=gain.high if gain.value <= gain.high < math.inf else gain.value)


def surely_more_accurate(a: Figures, b: Figures) -> bool:
    """Whether a's accuracy is above b's by more than `Z` standard errors of their difference.

    Both are measured on the same samples, so that their errors go together: this errs on the side of a tie.
    """
    return a.accuracy - b.accuracy > Z * math.hypot(a.accuracy_stderr, b.accuracy_stderr)


def surely_faster(a: Figures, b: Figures) -> bool:
    """Whether a's interval lies above b's in one of the costs."""
    return any(one.low > other.high for one, other in zip(a.intervals, b.intervals, strict=True))


def surely_dominates(a: Figures, b: Figures) -> bool:
    """At least as good in all figures, and better in one beyond the noise."""
    if not (a.accuracy >= b.accuracy and all(own >= other for own, other in zip(a.gains, b.gains, strict=True))):
        return False
    return surely_more_accurate(a, b) or surely_faster(a, b)


def tied(a: Figures, b: Figures) -> bool:
    """Whether no figure tells the two apart."""
    return not (surely_more_accurate(a, b) or surely_more_accurate(b, a) or surely_faster(a, b) or surely_faster(b, a))


def contenders(trials: Sequence[Figures]) -> list[int]:
    """Ascending indices of the trials that no other surely dominates: the front, and those that may be on it.

    Trials with a NaN neither stay nor dominate.
    """
    if not trials:
        return []
    # accuracy and its error, then each cost's gain with the ends of its interval
    table = np.asarray(
        [(t.accuracy, t.accuracy_stderr, *(x for g in t.intervals for x in (g.value, g.low, g.high))) for t in trials],
        dtype=np.float64,
    )
    known = np.flatnonzero(~np.isnan([t.point for t in trials]).any(axis=1))
    # most are beaten by the front itself, and need not be compared with all
    left = known[~_beaten(table[front([t.point for t in trials])], table[known])]
    return [int(i) for i in left[~_beaten(table[known], table[left])]]


def _beaten(others: Floats, rows: Floats) -> npt.NDArray[np.bool_]:
    """For each row whether one of the others surely dominates it; a block of rows at a time."""
    beaten = np.zeros(len(rows), dtype=bool)
    accuracy, stderr, *gains = others.T[:, :, None]
    for begin in range(0, len(rows), BLOCK):
        some = slice(begin, begin + BLOCK)
        own_accuracy, own_stderr, *own_gains = rows[some].T[:, None, :]
        as_good = accuracy >= own_accuracy
        surely = accuracy - own_accuracy > Z * np.hypot(stderr, own_stderr)
        for cost in range(0, len(gains), 3):
            as_good &= gains[cost] >= own_gains[cost]
            surely |= gains[cost + 1] > own_gains[cost + 2]
        beaten[some] = (as_good & surely).any(axis=0)
    return beaten


def tied_with(best: Mapping[int, Figures], others: Mapping[int, Figures]) -> dict[int, list[int]]:
    """For each trial of the front the numbers of those that cannot be told from it, ascending: for the table."""
    everyone = {**others, **best}
    return {
        number: [other for other in sorted(everyone) if other != number and tied(figures, everyone[other])]
        for number, figures in best.items()
    }
