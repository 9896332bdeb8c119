"""What a convolution keeps: lists of columns or channels, and boxes of kernel positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Box:
    """A range of kernel positions: the first one, and the one behind the last, in each dimension."""

    low: tuple[int, ...]
    high: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(h - low for low, h in zip(self.low, self.high, strict=True))

    @property
    def volume(self) -> int:
        return math.prod(self.kernel)

    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(low, h) for low, h in zip(self.low, self.high, strict=True))

    def around(self, other: Box) -> Box:
        """The smallest box that holds both."""
        return Box(tuple(map(min, self.low, other.low)), tuple(map(max, self.high, other.high)))


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """What each group keeps, as lists of equal length: index [groups, r, ...], `real` [groups, r] false for padding."""

    index: Index
    real: NDArray[np.bool_]

    @property
    def length(self) -> int:
        return int(self.index.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A dense convolution by some channels (all: `None`) and a box of positions of the layer's weight."""

    box: Box
    channels: Lists | None


def lists_of(found: list[Index], block: int) -> Lists:
    """Equally long lists, a multiple of the block: the last entry repeated, or the first of all where none is."""
    length = max(1, math.ceil(max(len(entries) for entries in found) / block) * block)
    index = np.zeros((len(found), length, found[0].shape[1]), dtype=np.int64)
    for group, entries in enumerate(found):
        if len(entries):
            index[group] = entries[np.minimum(np.arange(length), len(entries) - 1)]
    real = np.arange(length)[None, :] < np.asarray([len(entries) for entries in found])[:, None]
    return Lists(index, real)


def box_of(mask: NDArray[np.bool_]) -> Box:
    """The smallest box that holds the true positions [*kernel]; the first position where there are none."""
    found = np.argwhere(mask)
    if not len(found):
        return Box((0,) * mask.ndim, (1,) * mask.ndim)
    return Box(tuple(map(int, found.min(axis=0))), tuple(int(v) + 1 for v in found.max(axis=0)))


def passes_of(kernel: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The dimensions that each depthwise convolution shifts along.

    A one-hot kernel is a product of one-hot kernels of one dimension: where that is far less work, 5x5 is written as
    5x1 and 1x5. Dimensions of size one go with the first, for their stride.
    """
    wide = [axis for axis, size in enumerate(kernel) if size > 1]
    if math.prod(kernel) <= 2 * sum(kernel[axis] for axis in wide):
        return [tuple(range(len(kernel)))]
    first = tuple(axis for axis in range(len(kernel)) if axis not in wide[1:])
    return [first, *((axis,) for axis in wide[1:])]
