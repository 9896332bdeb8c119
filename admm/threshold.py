"""The k-th largest of many numbers without sorting them: bounds from a sample, then exact selection between them.

On the CPU, in NumPy: one pass in pieces that stay in the cache, where a partition moves every number. (The
sampled bounds are those of Floyd and Rivest's SELECT, CACM 18(3), 1975; here numbers are counted, not moved.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.floating[Any]]

#: Up to here a plain partition is quicker than sampling.
SMALL = 1 << 14
#: Numbers a piece: with their magnitudes and flags they fit in a core's second-level cache.
PIECE = 1 << 16
#: Standard deviations of a sampled rank between the guess and either bound: a miss is rare and costs time only.
SLACK = 4.0


@dataclass(frozen=True, slots=True)
class Threshold:
    """The `keep`-th largest of some numbers, and how many are as large."""

    value: np.floating[Any]
    surplus: int
    """Numbers equal to `value` that are not among the `keep` largest (NaN as `value`: not counted)."""

    @property
    def sharp(self) -> bool:
        """Whether "not below `value`" is exactly the `keep` largest: no ties to break, no NaN at the threshold."""
        return self.surplus == 0 and not np.isnan(self.value)


def threshold(numbers: Numbers, keep: int, *, magnitude: bool = False) -> Threshold:
    """The `keep`-th largest of `numbers` [n], 1 <= keep <= n; a NaN counts as the largest, `magnitude` ranks by |x|.

    Exact whatever the data: where the sampled bounds miss, all numbers are partitioned. Takes about n / 50 numbers of
    memory; as much as `numbers` where the bounds miss, and for numbers tied at them.
    """
    if numbers.size > SMALL:
        found = _between(numbers, keep, *_bounds(numbers, keep, magnitude), magnitude)
        if found is not None:
            return found
    ranked = np.abs(numbers) if magnitude else numbers.copy()
    return _exact(ranked, keep)


def at_least(numbers: Numbers, bound: np.floating[Any], *, magnitude: bool = False) -> NDArray[np.bool_]:
    """Flags [n] of the numbers that are not below `bound`, NaN among them."""
    flags = np.empty(numbers.size, dtype=np.bool_)
    buffer = np.empty(min(PIECE, numbers.size), dtype=numbers.dtype)
    for start in range(0, numbers.size, PIECE):
        piece, flagged = numbers[start : start + PIECE], flags[start : start + PIECE]
        if magnitude:
            piece = np.abs(piece, out=buffer[: piece.size])
        np.less(piece, bound, out=flagged)
        np.logical_not(flagged, out=flagged)
    return flags


def _bounds(numbers: Numbers, keep: int, magnitude: bool) -> tuple[np.floating[Any], np.floating[Any]]:
    """Numbers below and above the threshold, most likely, from every n^(1/3)-th."""
    # a stride of 1 mod 6 shares no factor with the extents that layers have: it meets all columns of a matrix
    sample = numbers[:: 6 * round(numbers.size ** (1 / 3) / 6) + 1]
    sample = np.abs(sample) if magnitude else sample.copy()
    size, share = sample.size, 1.0 - keep / numbers.size
    slack = SLACK * math.sqrt(share * (1.0 - share) * size) + 2.0
    low, high = int(share * size - slack), math.ceil(share * size + slack)
    sample.partition([max(low, 0), min(high, size - 1)])
    infinity = sample.dtype.type(np.inf)
    return sample[low] if low >= 0 else -infinity, sample[high] if high < size else infinity


def _between(
    numbers: Numbers, keep: int, low: np.floating[Any], high: np.floating[Any], magnitude: bool
) -> Threshold | None:
    """The threshold if it lies in [low, high], else None."""
    buffer = np.empty(PIECE, dtype=numbers.dtype)
    flags, others = np.empty(PIECE, dtype=np.bool_), np.empty(PIECE, dtype=np.bool_)
    beyond, inside = 0, []
    for start in range(0, numbers.size, PIECE):
        piece = numbers[start : start + PIECE]
        size = piece.size
        if magnitude:
            piece = np.abs(piece, out=buffer[:size])
        within = np.less_equal(piece, high, out=flags[:size])
        beyond += size - int(np.count_nonzero(within))  # those above, and NaN
        np.logical_and(within, np.greater_equal(piece, low, out=others[:size]), out=within)
        inside.append(piece[within])
    candidates = np.concatenate(inside)
    need = keep - beyond
    return _exact(candidates, need) if 1 <= need <= candidates.size else None


def _exact(numbers: Numbers, rank: int) -> Threshold:
    """The `rank`-th largest by partition, in place."""
    at = numbers.size - rank
    numbers.partition(at)
    value = numbers[at]
    # what lies before `at` is not above `value`, what lies behind is not below: ties before it are the surplus
    return Threshold(value=value, surplus=int(np.count_nonzero(numbers[:at] == value)))
