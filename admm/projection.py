"""Exact Euclidean projections onto "at most k units": keep the k units with the most energy, zero the rest.

For one structure this is the exact projection (Zhang et al. 2018, section 3.3; StructADMM, section 4.2): the squared
distance is the energy removed. Several structures on one layer have no closed form: see `projector.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from admm.plan import DECIMALS
from admm.structures import GROUP, along_inner, from_inner, on_host, unit_count, unit_energy, unit_mask
from admm.threshold import at_least, threshold


def keep_count(units: int, sparsity: float, align: int = 1) -> int:
    """How many of `units` stay at this sparsity: rounded up, at least 1, to a multiple of `align`, capped at dense.

    Rounding is always towards keeping, so a plan never removes more than was asked. The tolerance undoes the six
    decimals a plan is stored with: `keep_count(n, effective_sparsity(n, k)) == k` for n up to a million. Beyond that
    six decimals cannot tell two counts apart, and half a unit is all that is forgiven.
    """
    tolerance = min(0.5 * 10.0**-DECIMALS * units, 0.5) + 1e-9
    keep = max(1, math.ceil((1.0 - sparsity) * units - tolerance))
    return min(units, math.ceil(keep / align) * align)


def effective_sparsity(units: int, kept: int) -> float:
    """The sparsity that keeping `kept` of `units` really is, rounded as plans are."""
    return round(1.0 - kept / units, DECIMALS)


def select(values: Tensor, keep: int, forced: Tensor | None = None, *, magnitude: bool = False) -> Tensor:
    """Flags of the `keep` largest of `values` [units] (`magnitude`: of |values|); equal ones are kept in index order.

    `forced` [units] bool marks units that stay whatever their value (they count towards `keep`). Selection, not
    sorting; on an accelerator without host synchronisation. A NaN counts as the largest, so that it is seen and not
    hidden by a zero; of NaNs all are kept.
    """
    if keep >= values.numel():
        return torch.ones(values.numel(), dtype=torch.bool, device=values.device)
    if keep < 1:
        return torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    if forced is not None:
        values = values.masked_fill(forced, torch.inf)
    if values.device.type != "cpu":
        return _select_on_device(values.detach().abs() if magnitude else values, keep)
    numbers = _numpy(values)
    found = threshold(numbers, keep, magnitude=magnitude)
    if np.isnan(found.value):
        return torch.from_numpy(np.isnan(numbers))
    flags = at_least(numbers, found.value, magnitude=magnitude)
    if found.surplus:
        tied = np.flatnonzero((np.abs(numbers) if magnitude else numbers) == found.value)
        flags[tied[tied.size - found.surplus :]] = False
    return torch.from_numpy(flags)


def project(weight: Tensor, structure: str, sparsity: float, align: int = 1) -> Tensor:
    """Euclidean projection of V = [filters, channels, *kernel] onto "at least `sparsity` of the units are zero".

    Exact for every structure; idempotent; returns a new tensor of V's shape, without gradient. `n:m` has its block in
    itself: `align` says nothing there.
    """
    if structure == "n:m":
        return weight.detach() * pattern_mask(weight, keep_count(GROUP, sparsity))
    keep = keep_count(unit_count(weight.shape, structure), sparsity, align)
    if structure == "unstructured":
        return _keep_largest(weight.detach(), keep)
    return _times(weight.detach(), unit_mask(select(unit_energy(weight, structure), keep), structure, weight.shape))


def pattern_mask(weight: Tensor, keep: int, live: Tensor | None = None) -> Tensor:
    """Flags, shaped as V = [filters, channels, *kernel], of the `keep` largest of each four weights along a row.

    Rows are those of `along_inner`, without the channels that are not `live` [channels]: what the layer has left when
    it is shrunk. A last group of fewer than four stays whole. Equal weights are kept in order, a NaN as the largest.
    Nothing is read back from an accelerator.
    """
    rows = along_inner(weight.detach())
    inner = rows.shape[1]
    there = torch.ones(inner, dtype=torch.bool, device=weight.device)
    if live is not None:
        there = live.repeat(inner // live.numel())
    order = (~there).to(torch.uint8).argsort(stable=True)  # live ones first, each in its place
    missing = -inner % GROUP
    fours = torch.nn.functional.pad(rows[:, order].abs(), (0, missing)).unflatten(1, (-1, GROUP))
    whole = torch.nn.functional.pad(there[order], (0, missing)).unflatten(0, (-1, GROUP)).all(-1)
    flags = (_largest_of_four(fours, keep) | ~whole[:, None]).flatten(1)[:, :inner]
    kept = torch.empty_like(flags)
    kept[:, order] = flags
    return from_inner(kept & there, weight.shape)


def _largest_of_four(magnitudes: Tensor, keep: int) -> Tensor:
    """Flags of the `keep` largest of the last axis: by counting who is before, cheaper than sorting four at a time."""
    values = magnitudes.nan_to_num(nan=torch.inf, posinf=torch.inf).unbind(-1)
    flags = []
    for i, own in enumerate(values):
        before = torch.zeros(own.shape, dtype=torch.int8, device=own.device)
        for j, other in enumerate(values):
            if j != i:
                before += (other >= own) if j < i else (other > own)
        flags.append(before < keep)
    return torch.stack(flags, dim=-1)


def _keep_largest(weight: Tensor, keep: int) -> Tensor:
    if keep < weight.numel() and on_host(weight) and weight.is_contiguous():
        numbers = weight.numpy()
        found = threshold(numbers.reshape(-1), keep, magnitude=True)
        if found.sharp:
            # hardshrink zeroes |w| <= its bound: one pass, and no mask to write and read
            bound = float(np.nextafter(found.value, -np.inf, dtype=numbers.dtype))
            out = torch.from_numpy(np.empty_like(numbers))
            return torch.hardshrink(weight, bound, out=out)
    return _times(weight, select(weight.reshape(-1), keep, magnitude=True).reshape(weight.shape))


def _times(weight: Tensor, mask: Tensor) -> Tensor:
    """weight x mask, in memory that NumPy allocates on the host: it asks for huge pages, which torch does not."""
    if not (on_host(weight) and weight.is_contiguous()):
        return weight * mask
    if mask.numel() < weight.numel():  # a few flags are cheaper as numbers, and cheapest along whole rows
        mask = mask.to(weight.dtype)
        mask = mask.expand(1, *weight.shape[1:]) if mask.shape[0] == 1 else mask
    matrix = weight.numpy().reshape(len(weight), -1)
    with np.errstate(invalid="ignore"):  # Inf x 0 is a NaN that stays in sight
        product = np.multiply(matrix, mask.reshape(len(mask), -1).numpy(), dtype=matrix.dtype)
    return torch.from_numpy(product).reshape(weight.shape)


def _numpy(values: Tensor) -> NDArray[np.floating[Any]]:
    """The values as a NumPy array [units], float32 or float64, without a copy where they are that already."""
    values = values.detach()
    return values.to(torch.promote_types(values.dtype, torch.float32)).contiguous().numpy()


def _select_on_device(values: Tensor, keep: int) -> Tensor:
    """The same by `topk` of the shorter end, which uses the whole device; nothing is read back."""
    units = values.numel()
    if keep <= units // 2:
        largest = values.topk(keep, sorted=False).values
        bound = largest.masked_fill(largest.isnan(), torch.inf).min()
    else:  # `max` passes a NaN on: more NaNs than places
        bound = values.topk(units - keep + 1, largest=False, sorted=False).values.max()
    above = (values > bound) | values.isnan()
    ties = values == bound
    return above | (ties & (ties.cumsum(0, dtype=torch.int32) <= keep - above.sum()))
