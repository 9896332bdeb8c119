"""How far a search has come: hypervolume and best accuracy after each trial, computed from the results alone.

The reference is fixed, so that runs compare: the dense accuracy less three percentage points, the dense latency, and
latency on a log scale (halving it counts the same from anywhere). The dense model itself adds nothing.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from typing import NamedTuple

from search.budget import Budget
from search.result import Baseline, TrialResult

#: How far below the dense accuracy a trial adds to the hypervolume: 3 percentage points.
ACCURACY_SPAN = 0.03


class Area:
    """The hypervolume of (accuracy, log speed-up) above a corner, grown point by point in O(front)."""

    def __init__(self, accuracy_floor: float) -> None:
        self.value = 0.0
        self.floor = accuracy_floor
        # the front by rising log speed-up, so by falling accuracy; both above the corner
        self._speeds: list[float] = []
        self._heights: list[float] = []

    def add(self, accuracy: float, relative_latency: float) -> float:
        """Take a point in; returns what it adds."""
        return self._grow(accuracy, relative_latency, keep=True)

    def gain(self, accuracy: float, relative_latency: float) -> float:
        """What a point would add; 0 for one that is dominated, outside, or not a number."""
        return self._grow(accuracy, relative_latency, keep=False)

    def _grow(self, accuracy: float, relative_latency: float, *, keep: bool) -> float:
        if not (0.0 < relative_latency < 1.0 and self.floor < accuracy < math.inf):
            return 0.0
        speed, height = -math.log(relative_latency), accuracy - self.floor
        at = bisect.bisect_left(self._speeds, speed)
        if at < len(self._speeds) and self._heights[at] >= height:
            return 0.0
        first = at
        while first > 0 and self._heights[first - 1] <= height:
            first -= 1
        end = at + (at < len(self._speeds) and self._speeds[at] == speed)
        gained, left = 0.0, self._speeds[first - 1] if first else 0.0
        for i in range(first, at):
            gained += (self._speeds[i] - left) * (height - self._heights[i])
            left = self._speeds[i]
        below = self._heights[at] if at < len(self._heights) else 0.0
        gained += (speed - left) * (height - below)
        if keep:
            self._speeds[first:end] = [speed]
            self._heights[first:end] = [height]
            self.value += gained
        return gained


class Progress(NamedTuple):
    """After `trial`: training spent so far, hypervolume, and the best accuracy within the budget (None: none yet)."""

    trial: int
    epochs: float
    hypervolume: float
    best_accuracy: float | None


def accuracy_floor(dense_accuracy: float) -> float:
    """The reference's accuracy."""
    return dense_accuracy - ACCURACY_SPAN


def log_hypervolume(results: Mapping[int, TrialResult], baseline: Baseline) -> float:
    """Area of (accuracy, ln speed-up) that the complete trials cover: fraction times natural log."""
    rows = progress(results, baseline)
    return rows[-1].hypervolume if rows else 0.0


def progress(
    results: Mapping[int, TrialResult], baseline: Baseline, budget: Budget | None = None, *, before: float = 0.0
) -> list[Progress]:
    """One row a finished trial, by number: for front.json and the report. Without a budget every trial is within.

    `before` is what was spent before the first trial, in epochs.
    """
    area, epochs, best = Area(accuracy_floor(baseline.accuracy)), before, None
    rows = []
    for number in sorted(results):
        result = results[number]
        epochs += result.epochs
        if result.status == "complete":
            assert result.accuracy is not None
            area.add(*result.dominates_key)
            if (budget is None or budget.holds(result)) and (best is None or result.accuracy > best):
                best = result.accuracy
        rows.append(Progress(number, epochs, area.value, best))
    return rows
