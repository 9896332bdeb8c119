"""From masks to the smaller network: hard prune, purification, physical shrink, and what must stay zero in it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from admm.compact import compact, mask_removed
from admm.groupmap import GroupMap
from admm.kept import Kept, kept_from_slots
from admm.kept_masks import add_selected, zeros_after_compaction
from admm.plan import PruningPlan
from admm.projector import Masks
from admm.purify import effective_after, nearly_dead, purification_note, purify


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """The smaller network, what it keeps of the dense one, and the zeros that retraining must hold."""

    model: nn.Module
    kept: Kept
    zeros: dict[str, Tensor]
    """Parameter name in `model` -> bool mask of what may live."""
    effective: PruningPlan
    notes: tuple[str, ...]


@torch.no_grad()
def shrink(
    model: nn.Module,
    groups: GroupMap,
    masks: Masks,
    *,
    plan: PruningPlan,
    effective: PruningPlan,
    align: int = 1,
    weak: float = 0.0,
) -> Shrunk:
    """Zero in `model`, in place, what `masks` removes and what is then without use; the small network is a copy.

    `plan` is what the masks were made for, `effective` what it came to after rounding; with the filters that only
    purification found dead it is returned in the result. Widths stay multiples of `align`, save where `weak`
    (see `nearly_dead`) takes filters that hold next to nothing.
    """
    thinner = nearly_dead(model, groups, masks, {}, weak) if weak > 0.0 else masks
    pure = purify(model, groups, thinner, align)
    apply_masks(model, pure)
    kept = add_selected(kept_from_slots(groups, {n: s.tolist() for n, s in pure.slots.items()}), pure)
    mask_removed(model, kept)
    small = compact(model, kept)
    note = purification_note(model, groups, masks, pure)
    return Shrunk(
        model=small,
        kept=kept,
        zeros=zeros_after_compaction(model, small, kept, pure, plan),
        effective=effective_after(effective, groups, pure),
        notes=(note,) if note else (),
    )


def as_if_pruned(model: nn.Module, groups: GroupMap, masks: Masks, plan: PruningPlan, align: int = 1) -> nn.Module:
    """The smaller network that the hard prune would give now; `model` stays as it is."""
    return shrink(copy.deepcopy(model), groups, masks, plan=plan, effective=plan, align=align).model


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Zero in place what `masks` removes from the parameters."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.parameters.items():
        parameters[name].mul_(mask)
