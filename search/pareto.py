"""The Pareto front of (accuracy, latency) points: accuracy up, latency down. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[_Floats, _Floats]:
    table = np.asarray(points, dtype=np.float64).reshape(len(points), 2)
    return table[:, 0], table[:, 1]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Ascending indices of the (accuracy, latency) points that no other point dominates, in O(n log n).

    A point dominates another when it is at least as accurate and at least as fast, and better in one of
    the two: exact ties therefore all stay. A point with a NaN is never on the front and dominates nothing.
    """
    accuracy, latency = _columns(points)
    known = np.flatnonzero(~(np.isnan(accuracy) | np.isnan(latency)))
    if known.size == 0:
        return []
    order = known[np.lexsort((-accuracy[known], latency[known]))]
    a, t = accuracy[order], latency[order]
    # From fast to slow, a point counts when it beats everything faster; its exact ties follow it directly.
    opens_tie = np.ones(order.size, dtype=bool)
    opens_tie[1:] = (a[1:] != a[:-1]) | (t[1:] != t[:-1])
    beats_faster = np.ones(order.size, dtype=bool)
    beats_faster[1:] = a[1:] > np.maximum.accumulate(a)[:-1]
    tie = np.cumsum(opens_tie) - 1
    kept = beats_faster[opens_tie][tie]
    return [int(index) for index in np.sort(order[kept])]


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area between the front and `reference` = (lowest accuracy, highest latency) that counts.

    Points not strictly better than the reference in both add nothing, so a point more never makes it smaller.
    Unit: accuracy times the unit of latency. Raises `ValueError` for a reference that is not finite.
    """
    floor, ceiling = reference
    if not (math.isfinite(floor) and math.isfinite(ceiling)):
        raise ValueError(f"the hypervolume's reference must be two finite numbers, got {reference!r}")
    inside = [point for point in points if point[0] > floor and point[1] < ceiling]
    area = 0.0
    for accuracy, latency in sorted({inside[index] for index in front(inside)}):
        area += (accuracy - floor) * (ceiling - latency)
        floor = accuracy
    return area
