"""The shapes a plan leads to, known before any training: filters and channels chosen by magnitude."""

from __future__ import annotations

from torch import nn

from admm.groupmap import GroupMap
from admm.kept import Kept, kept_from_slots
from admm.kept_masks import add_selected
from admm.plan import PruningPlan
from admm.projector import Projector


def kept_by_magnitude(model: nn.Module, groups: GroupMap, plan: PruningPlan, *, align: int = 1) -> Kept:
    """What `compact` needs for the plan's widths, from the present weights: latency depends on widths alone."""
    projector = Projector(model, groups, plan, align=align)
    values = {n: p.detach() for n, p in model.named_parameters() if n in projector.variables}
    if not values:
        return {}
    equal = {n: 1.0 / max(float(v.square().sum()), 1e-12) for n, v in values.items()}
    masks = projector.project(values, equal)
    return add_selected(kept_from_slots(groups, {n: s.tolist() for n, s in masks.slots.items()}), masks)
