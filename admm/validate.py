"""Does this plan fit this network? Said before anything is trained, naming the layer, the reason and the mend."""

from __future__ import annotations

from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from admm.errors import DivergedError, PlanError, PruneError
from admm.groupmap import GroupMap
from admm.plan import N_OF_M, PruningPlan
from admm.slicing import filter_axis, obstacle, select_obstacle, shared_parameters
from admm.structures import GROUP, STRUCTURE_NEEDS_PLAIN

__all__ = [
    "check_align",
    "check_model",
    "check_plan",
    "not_finite",
    "plan_notes",
    "require_finite",
    "weight_obstacle",
]


def weight_obstacle(model: nn.Module, layer: str, structure: str) -> str | None:
    """Why `channel`, `shape`, `unstructured` or `n:m` cannot be pruned in this layer, or None.

    The weight must be the layer's own. All filters of a layer share its columns; in a grouped convolution each group of
    filters has columns of its own.
    """
    if not layer:
        return "the network is this one layer: put it into an nn.Sequential"
    module = model.get_submodule(layer)
    groups = int(getattr(module, "groups", 1))
    reason = obstacle(module) or shared_parameters(model).get(layer)
    if reason is not None:
        return reason
    if groups != 1 and structure in STRUCTURE_NEEDS_PLAIN:
        return f"a convolution with groups={groups} has columns of its own in each group: use filter or unstructured"
    if groups == 1 and structure != "channel" and select_obstacle(module) is not None:
        return f"its class {type(module).__name__} is no plain layer of torch.nn: it may use its zeros in another way"
    if structure == N_OF_M and inner_size(module) < GROUP:
        return f"a filter of it has {inner_size(module)} weights, fewer than one group of {GROUP}: leave it dense"
    return select_obstacle(module) if structure == "channel" else None


def inner_size(module: nn.Module) -> int:
    """Weights of one filter: the inner dimension of the layer's GEMM."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.numel() // weight.shape[filter_axis(module)]


def check_plan(model: nn.Module, groups: GroupMap, plan: PruningPlan) -> None:
    """Raises `PlanError` for an unknown layer, an unprunable structure, or a filter sparsity at the wrong member."""
    for name in plan:
        if name not in groups.layers:
            near = get_close_matches(name, groups.layers, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; prunable layers: {_some(groups.layers)}"
            raise PlanError(f"the network has no prunable layer {name!r}{hint}")
        for structure in plan[name]:
            if structure == "filter":
                _check_filter(name, groups)
                continue
            reason = weight_obstacle(model, name, structure)
            if reason is not None:
                raise PlanError(f"layer {name!r}: no {structure!r} sparsity: {reason}")


def check_align(align: int) -> None:
    """Raises `PlanError` for a block that is no whole number of at least 1."""
    if isinstance(align, bool) or not isinstance(align, int) or align < 1:
        raise PlanError(f"align must be a whole number of at least 1, got {align!r}: 1 rounds nothing")


@torch.no_grad()
def check_model(model: nn.Module) -> None:
    """Raises `PruneError` naming the first parameter or norm statistic with a NaN or Inf, and where nothing trains.

    Other buffers are not looked at: a mask of attention holds −Inf by right.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise PruneError("no parameter of the network requires a gradient: call model.requires_grad_(True) first")
    name = not_finite(model)
    if name is not None:
        raise PruneError(f"{name} holds a NaN or Inf before pruning: load sound weights")


@torch.no_grad()
def not_finite(model: nn.Module) -> str | None:
    """The first parameter or norm statistic with a NaN or Inf, or None; one look at the device."""
    values: dict[str, Tensor] = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, _NormBase):
            values |= {f"{name}.{key}": v for key, v in module._buffers.items() if v is not None}
    floating = {name: v for name, v in values.items() if v.is_floating_point()}
    flags = torch.stack([v.isfinite().all() for v in floating.values()]).tolist()
    return next((name for name, finite in zip(floating, flags, strict=True) if not finite), None)


def require_finite(model: nn.Module, when: str) -> None:
    """Raises `DivergedError` for a network that training left with a NaN or Inf anywhere: none is ever handed over."""
    name = not_finite(model)
    if name is not None:
        raise DivergedError(f"{name} holds a NaN or Inf {when}: lower the lr (or set max_grad_norm)")


@torch.no_grad()
def plan_notes(model: nn.Module, groups: GroupMap, plan: PruningPlan) -> list[str]:
    """What the user should know of a plan that fits: clamps that keep a layer from being emptied, frozen layers, and
    layers without any weight, whose units go by their order. One line each."""
    notes: list[str] = []
    parameters = dict(model.named_parameters())
    for layer in plan:
        weight = parameters[f"{layer}.weight"]
        filters = filter_axis(model.get_submodule(layer))
        units = {
            "filter": groups.groups[layer].slots if layer in groups.groups else weight.shape[filters],
            "channel": weight.shape[1 - filters],
            "shape": weight.numel() // weight.shape[filters],
            "unstructured": weight.numel(),
            N_OF_M: weight.numel(),
        }
        if N_OF_M in plan[layer]:
            inner = inner_size(model.get_submodule(layer))
            if inner % GROUP:
                notes.append(
                    f"{layer}: the last {inner % GROUP} of the {inner} weights of a filter stay dense: "
                    f"they fill no group of {GROUP}"
                )
        for structure, sparsity in plan[layer].items():
            if (1.0 - sparsity) * units[structure] < 1.0 - 1e-6 * units[structure]:
                notes.append(
                    f"{layer}: {structure} sparsity {sparsity:g} would leave none of {units[structure]}: one is kept"
                )
        if not weight.requires_grad:
            notes.append(f"{layer}: its weight is frozen (requires_grad False): pruned by magnitude, not trained")
        if not bool(weight.any()):
            notes.append(f"{layer}: its weight is all zero: which units stay is decided by their order alone")
    return notes


def _check_filter(name: str, groups: GroupMap) -> None:
    if name in groups.groups:
        return
    group = groups.group_of(name)
    if group is not None:
        raise PlanError(
            f"layer {name!r}: its filters are coupled with those of {group.name!r}: put the filter sparsity there"
        )
    reason = groups.excluded.get(name, "it belongs to no group")
    raise PlanError(f"layer {name!r}: its filters cannot be removed: {reason}")


def _some(names: tuple[str, ...], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
