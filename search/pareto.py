"""The Pareto front of (accuracy, cost, ...) points: accuracy up, costs down. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]


def front(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Ascending indices of the (accuracy, cost, ...) points that no other point dominates.

    A point dominates another when it is at least as accurate and costs no more of anything, and is better in one of
    them: exact ties therefore all stay. A point with a NaN is never on the front and dominates nothing. In
    O(n log n) for one cost, in O(n x front) for more. Raises `ValueError` for points of unequal length.
    """
    if not points:
        return []
    table = np.asarray(points, dtype=np.float64).reshape(len(points), -1)
    known = np.flatnonzero(~np.isnan(table).any(axis=1))
    if known.size == 0:
        return []
    if table.shape[1] != 2:
        return _front_of_many(table, known)
    accuracy, latency = table[:, 0], table[:, 1]
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


def _front_of_many(table: _Floats, known: npt.NDArray[np.intp]) -> list[int]:
    """Of the rows `known` of [points, accuracy and costs]: best first, each strikes out what it dominates."""
    losses = table[known]
    losses[:, 0] = -losses[:, 0]
    order = np.lexsort(losses.T[::-1])
    left, losses = known[order], losses[order]
    kept: list[int] = []
    while left.size:
        # nothing that sorts later dominates the first, and what dominated it has been struck out with it before
        first = losses[0]
        kept.append(int(left[0]))
        stays = (losses < first).any(axis=1) | (losses == first).all(axis=1)
        stays[0] = False
        left, losses = left[stays], losses[stays]
    return sorted(kept)


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
