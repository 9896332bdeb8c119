"""Simpler ways from one number to per-layer sparsities, to compare an allocation with, and sensitivities to feed it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from admm.allocate import Allocator
from admm.connections import canonical
from admm.errors import DivergedError
from admm.groupmap import GroupMap
from admm.plan import PruningPlan
from admm.projection import project
from admm.slicing import prunable_layers
from admm.target import Target
from admm.validate import weight_obstacle

#: Sensitivity credited at least, as a share of the largest: one-shot pruning may lower the loss, and no layer is free.
LEAST_SENSITIVE = 1e-4


def uniform(
    model: nn.Module,
    groups: GroupMap,
    target: Target,
    *,
    align: int = 1,
    positions: Mapping[str, int] | None = None,
) -> PruningPlan:
    """The plan within the target that keeps the same share of the units everywhere."""
    allocator = Allocator(model, groups, target, align=align, positions=positions)
    return allocator.uniform({name: p.detach() for name, p in model.named_parameters()}).plan


def global_magnitude(
    model: nn.Module,
    groups: GroupMap,
    target: Target,
    *,
    values: Mapping[str, Tensor] | None = None,
    normalise: bool = True,
    align: int = 1,
    positions: Mapping[str, int] | None = None,
) -> PruningPlan:
    """The plan within the target of one threshold for the whole network.

    `normalise` compares |w| / rms of the weight's layer (units: energy / mean energy of their set), else |w| itself.
    `values` are weights by parameter name, the model's own where None.
    """
    allocator = Allocator(model, groups, target, align=align, positions=positions)
    if values is None:
        values = {name: p.detach() for name, p in model.named_parameters()}
    return allocator.by_threshold(values, normalise=normalise).plan


@torch.no_grad()
def sensitivity_from_pruning(
    model: nn.Module,
    loss_of: Callable[[nn.Module], float],
    *,
    structure: str = "unstructured",
    sparsities: Sequence[float] = (0.5, 0.75, 0.9),
    layers: Sequence[str] | None = None,
) -> dict[str, float]:
    """How much the loss rises for each unit of energy that one-shot magnitude pruning takes from a layer.

    Each layer by itself (after Li et al. 2017, arXiv 1608.08710) at every one of `sparsities`; the slope is fitted
    through the origin. `loss_of(model)` is the mean loss over a few batches, in whatever mode it puts the model. The
    weights are put back exactly. `layers` None: all whose weights may be zeroed. Raises `DivergedError` for a loss that
    is not finite.
    """
    dense = _finite(loss_of(model), "the dense network")
    found: dict[str, float] = {}
    for name, module in prunable_layers(model).items():
        if (layers is not None and name not in layers) or weight_obstacle(model, name, "unstructured") is not None:
            continue
        weight = module.weight.data
        original = weight.clone()
        products = squares = 0.0
        try:
            for sparsity in sparsities:
                pruned = canonical(module, project(canonical(module, original).contiguous(), structure, sparsity))
                weight.copy_(pruned)
                removed = float((original.double().square() - pruned.double().square()).sum())
                rise = _finite(loss_of(model), f"{name} at sparsity {sparsity:g}") - dense
                products, squares = products + rise * removed, squares + removed * removed
        finally:
            weight.copy_(original)
        found[name] = products / squares if squares > 0.0 else 0.0
    largest = max(found.values(), default=0.0)
    least = LEAST_SENSITIVE * largest if largest > 0.0 else 1.0
    return {name: max(value, least) for name, value in found.items()}


def _finite(loss: float, what: str) -> float:
    if not math.isfinite(loss):
        raise DivergedError(f"the loss of {what} is {loss}: sensitivity needs finite losses, check weights and batches")
    return float(loss)
