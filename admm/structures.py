"""The structures: which weights of a layer are removed together, and how much energy each such unit holds.

Weights are seen as V = [filters, channels, *kernel] (Linear: kernel absent). A unit is `filter` V[a], `channel`
V[:, b], `shape` V[:, b, i, j] (a GEMM column; StructADMM, arXiv 1807.11091, section 3), `unstructured` one weight.
A new structure is one entry in `UNITS`. The pattern `n:m` has no units to choose among: of every four weights in a row
n stay (`GROUP`, `along_inner`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Units:
    """How one structure divides a weight V = [filters, channels, *kernel] into units."""

    dims: Callable[[int], tuple[int, ...]]
    """The axes of V that number the units; all other axes lie inside one unit."""


UNITS: dict[str, Units] = {
    "filter": Units(dims=lambda ndim: (0,)),
    "channel": Units(dims=lambda ndim: (1,)),
    "shape": Units(dims=lambda ndim: tuple(range(1, ndim))),
    "unstructured": Units(dims=lambda ndim: tuple(range(ndim))),
}


#: Rows summed in the weight's own precision before they are added to a float64 sum.
BLOCK = 64
#: Structures whose units span all filters of a layer: they need a convolution without groups.
STRUCTURE_NEEDS_PLAIN = ("channel", "shape", "n:m")
#: The m of `n:m`: what sparse tensor cores take (2:4).
GROUP = 4


def unit_shape(shape: torch.Size | tuple[int, ...], structure: str) -> tuple[int, ...]:
    """Extent of the grid of units: [filters], [channels], [channels, *kernel] or the whole shape."""
    return tuple(shape[d] for d in UNITS[structure].dims(len(shape)))


def unit_count(shape: torch.Size | tuple[int, ...], structure: str) -> int:
    """Number of units of a structure in a weight of this canonical shape."""
    count = 1
    for extent in unit_shape(shape, structure):
        count *= extent
    return count


def unit_energy(weight: Tensor, structure: str) -> Tensor:
    """Squared Frobenius norm of each unit of V = [filters, channels, *kernel]; shape [units], flattened.

    Half-precision weights are squared in float32: 1e-4 squared is already zero in float16.
    """
    return energy_along(weight, UNITS[structure].dims(weight.ndim)).flatten()


def energy_along(weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Sum of squares over all axes but `dims` (ascending); shape [extent of each of `dims`], float32 or float64.

    On the host a row is one dot product and columns are summed in short blocks of rows, whose sums meet in float64:
    one pass over the weight, nothing written, and nearer to the float64 sum than a float32 reduction.
    """
    weight = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    inner = tuple(d for d in range(weight.ndim) if d not in dims)
    if not inner:
        return weight.square()
    shape = [weight.shape[d] for d in dims]
    if on_host(weight) and weight.numel():
        if dims == tuple(range(len(dims))):
            rows = weight.contiguous().reshape(math.prod(shape), -1).numpy()
            return torch.from_numpy(np.vecdot(rows, rows)).reshape(shape)
        if 0 not in dims:
            columns = torch.from_numpy(_column_energy(weight.contiguous().flatten(1).numpy()))
            over = tuple(d - 1 for d in inner if d)
            columns = columns.reshape(weight.shape[1:])
            return (columns.sum(dim=over) if over else columns).to(weight.dtype)
    return weight.square().sum(dim=inner)


def on_host(weight: Tensor) -> bool:
    """Whether NumPy can work on this tensor as it is."""
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)


def _column_energy(matrix: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Sum of squares down each column of [rows, columns]."""
    energy = np.zeros(matrix.shape[1], dtype=np.float64)
    for start in range(0, len(matrix), BLOCK):
        block = matrix[start : start + BLOCK]
        energy += np.einsum("ij,ij->j", block, block)
    return energy


def along_inner(weight: Tensor) -> Tensor:
    """V = [filters, channels, *kernel] as [filters, inner], channels last: the rows of the GEMM that hardware runs.

    For a convolution four in a row are four channels at one place of the kernel, as they lie in channels_last memory;
    for a Linear they are four inputs.
    """
    return weight.movedim(1, -1).flatten(1)


def from_inner(rows: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The inverse of `along_inner`: [filters, inner] as V of this shape."""
    return rows.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def unit_mask(keep: Tensor, structure: str, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Spread keep flags [units] over V's axes: a bool mask that broadcasts to [filters, channels, *kernel]."""
    dims = UNITS[structure].dims(len(shape))
    return keep.reshape([shape[d] if d in dims else 1 for d in range(len(shape))])
