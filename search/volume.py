"""Hypervolumes grown point by point: `Area` of accuracy and one cost, `Volume` of accuracy and two, costs as logs.

Both are exact. A slice of a volume holds every point that reaches it in the second cost; area times thickness add up
(the dimension sweep; Fonseca, Paquete & Lopez-Ibanez 2006, with the slices kept). O(front^2) numbers are kept.
"""

from __future__ import annotations

import bisect
import math
from typing import TypeAlias


class Area:
    """The hypervolume of (accuracy, log speed-up) above a corner, grown point by point in O(front)."""

    def __init__(self, accuracy_floor: float) -> None:
        self.value = 0.0
        self.floor = accuracy_floor
        # the front by rising log speed-up, so by falling accuracy; both above the corner
        self._speeds: list[float] = []
        self._heights: list[float] = []

    def copy(self) -> Area:
        """Another one that covers the same."""
        other = Area(self.floor)
        other.value, other._speeds, other._heights = self.value, list(self._speeds), list(self._heights)
        return other

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


class Volume:
    """The hypervolume of (accuracy, log gain in each of two costs) above a corner; the dense network's costs are 1."""

    def __init__(self, accuracy_floor: float) -> None:
        self.value = 0.0
        self.floor = accuracy_floor
        # tops of the slices by rising log gain in the second cost; each begins where the one below ends, the first at 0
        self._tops: list[float] = []
        self._slices: list[Area] = []

    def add(self, accuracy: float, first: float, second: float) -> float:
        """Take a point in (costs relative to dense); returns what it adds."""
        gained = self.gain(accuracy, first, second)
        if gained <= 0.0:
            return 0.0
        height = -math.log(second)
        at = bisect.bisect_left(self._tops, height)
        if at == len(self._tops):
            self._tops.append(height)
            self._slices.append(Area(self.floor))
        elif self._tops[at] != height:  # the point reaches into this slice, not to its top
            self._tops.insert(at, height)
            self._slices.insert(at, self._slices[at].copy())
        for area in self._slices[: at + 1]:
            area.add(accuracy, first)
        self.value += gained
        return gained

    def gain(self, accuracy: float, first: float, second: float) -> float:
        """What a point would add; 0 for one that is dominated, outside, or not a number."""
        if not 0.0 < second < 1.0:
            return 0.0
        height, below, gained = -math.log(second), 0.0, 0.0
        for top, area in zip(self._tops, self._slices, strict=True):
            if below >= height:
                return gained
            gained += (min(top, height) - below) * area.gain(accuracy, first)
            below = top
        if below < height:
            gained += (height - below) * Area(self.floor).gain(accuracy, first)
        return gained


Covered: TypeAlias = Area | Volume


def covered(accuracy_floor: float, costs: int) -> Covered:
    """Nothing covered yet, above this accuracy, in so many costs. Raises `ValueError` for other than one or two."""
    if costs not in (1, 2):
        raise ValueError(f"a hypervolume has one or two costs beside accuracy, got {costs}")
    return Area(accuracy_floor) if costs == 1 else Volume(accuracy_floor)
