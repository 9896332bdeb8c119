"""The network a plan leads to, known before any training: what goes is chosen by magnitude."""

from __future__ import annotations

import copy

from torch import nn

from admm.groupmap import GroupMap
from admm.kept import Kept
from admm.plan import PruningPlan
from admm.projector import Masks, Projector
from admm.shrink import shrink


def shaped_by_magnitude(model: nn.Module, groups: GroupMap, plan: PruningPlan, *, align: int = 1) -> nn.Module:
    """The small network of the plan, its columns and single weights zeroed too: what the hard prune would give now.

    For latency, not for accuracy: `model` is left alone, and nothing is trained.
    """
    return kept_by_magnitude(model, groups, plan, align=align)[0]


def kept_by_magnitude(
    model: nn.Module, groups: GroupMap, plan: PruningPlan, *, align: int = 1
) -> tuple[nn.Module, Kept]:
    """`shaped_by_magnitude`, and what it keeps of the dense network: with both it can be rebuilt elsewhere."""
    copied = copy.deepcopy(model)
    projector = Projector(copied, groups, plan, align=align)
    masks = masks_by_magnitude(copied, projector)
    if masks is None:
        return copied, {}
    small = shrink(copied, groups, masks, plan=plan, effective=projector.effective(), align=align)
    return small.model, small.kept


def masks_by_magnitude(model: nn.Module, projector: Projector) -> Masks | None:
    """The projection of the present weights, each tensor by shares of its own energy; None where nothing goes."""
    values = {n: p.detach() for n, p in model.named_parameters() if n in projector.variables}
    if not values:
        return None
    equal = {n: 1.0 / max(float(v.square().sum()), 1e-12) for n, v in values.items()}
    return projector.project(values, equal)
