"""Purification: what pruning left without a purpose goes too, filter by filter, until nothing useless is left.

A filter that no consumer reads any more, and one that has lost all its inputs, still cost their weights. Finding them
is P-RM's unused path removal; units that ADMM left nearly dead are its network purification (Ma et al. 2019, arXiv
1905.00136), here for coupled groups: a slot is dead when all that it spans says so.

Pure functions over `Masks`; nothing here looks at data. Unread slots are exact to remove wherever a slot reaches the
rest of the network through its consumers' columns alone. (An operation across channels that removal leaves correct, as
in dividing by the norm over all channels, is seen by no mask: there the function changes, and masked == compacted
still holds.) Slots without inputs give a constant, and that goes with them: see `DeadSlots`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from admm.connections import Connections, DeadSlots, canonical, kept_flags, prunable_weights, slot_of
from admm.groupmap import ROLES, Group, GroupMap, Role
from admm.plan import PruningPlan
from admm.projection import effective_sparsity
from admm.projector import Masks
from admm.slicing import filter_axis

#: Share of its layer's mean energy below which `nearly_dead` gives a unit up. However many units go, a layer's weights
#: change by at most the square root, here 5 %, on each of its sides: what a converged hard prune changes anyway.
NEARLY_DEAD = 2.5e-3


def dead_slots(model: nn.Module, groups: GroupMap, masks: Masks) -> DeadSlots:
    """The slots that serve nothing, to a fixpoint: a removal can leave others unread or without inputs.

    At least one slot of every range stays (`lone_ranges`), every layer that had live weights keeps one, and a layer
    with `channel` sparsity keeps a channel that arrives.
    """
    return Connections(model, groups, masks).dead()


def purify(model: nn.Module, groups: GroupMap, masks: Masks, align: int = 1) -> Masks:
    """`masks` without the dead slots: their filters, bias, norm weight and shift, and the columns that read them.

    `slots` names every group that lost something, also those the plan did not. Widths stay multiples of `align`: odd
    ones cost as much or more, so that dead slots are left in up to the next multiple. `model` gives shapes only; the
    masks given are left as they are.
    """
    dead = dead_slots(model, groups, masks)
    lost = {
        name: torch.stack([kind[name] for kind in (dead.unread, dead.constant) if name in kind]).any(0)
        for name in {**dead.unread, **dead.constant}
    }
    if align > 1:
        lost = {name: _spare_to_block(flags, masks.slots.get(name), align) for name, flags in lost.items()}
        lost = {name: flags for name, flags in lost.items() if bool(flags.any())}
    return _without(model, groups, masks, lost)


def _spare_to_block(lost: Tensor, kept: Tensor | None, align: int) -> Tensor:
    """`lost` without its first so many slots that the rest of those `kept` is a multiple of `align`."""
    before = lost.numel() if kept is None else int(kept.sum())
    after = before - int(lost.sum())
    spared = min(-after % align, before - after)
    return lost & (lost.cumsum(0) > spared)


@torch.no_grad()
def nearly_dead(
    model: nn.Module, groups: GroupMap, masks: Masks, values: Mapping[str, Tensor], threshold: float = NEARLY_DEAD
) -> Masks:
    """`masks` without the slots and columns that hold next to nothing, purified.

    A unit goes where its live energy is below `threshold` x the mean of its layer's live units and it has no more live
    weights than they have. A slot goes where that holds in all layers that read it, or in all that fill it (not
    behind a norm, which scales a weak filter up again); a column [channel, *kernel] only in layers whose zeros stay
    zeros, as `shape` and `unstructured` leave them. `values` are weights by parameter name (the model's own where one
    is missing). The function changes: this is for a network that is retrained. Raises `ValueError` for a threshold
    outside [0, 1).
    """
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"threshold must lie in [0, 1), got {threshold}: it is a share of the layer's mean energy")
    parameters = dict(masks.parameters)
    weak: dict[tuple[str, Role], Tensor] = {}
    for name, module in prunable_weights(model):
        mask = kept_flags(name, module, masks)
        energy = values.get(name, module.weight).detach().double().square() * mask
        mask, energy = canonical(module, mask), canonical(module, energy)
        layer = name.removesuffix(".weight")
        weak[layer, "out"] = _weak(energy.flatten(1), mask.flatten(1), threshold)
        weak[layer, "in"] = _weak(energy.transpose(0, 1).flatten(1), mask.transpose(0, 1).flatten(1), threshold)
        if mask.ndim > 2 and getattr(module, "groups", 1) == 1 and _leaves_zeros(mask):
            columns = _weak(energy.flatten(1).t(), mask.flatten(1).t(), threshold)
            parameters[name] = canonical(module, mask & ~columns.reshape(1, *mask.shape[1:]))
    thinner = Masks(slots=masks.slots, channels=masks.channels, parameters=parameters)
    connections = Connections(model, groups, thinner)
    lost = connections.remove({name: _weak_slots(group, weak) for name, group in groups.groups.items()})
    return purify(model, groups, _without(model, groups, thinner, lost))


def purification_note(model: nn.Module, groups: GroupMap, before: Masks, after: Masks) -> str | None:
    """What purification took, in one line for the user; None where it was nothing."""
    weights = sum(
        int(kept_flags(name, module, before).sum() - kept_flags(name, module, after).sum())
        for name, module in prunable_weights(model)
        if after.parameters.get(name) is not before.parameters.get(name)
    )
    slots = sum(
        int((before.slots[name] & ~keep).sum() if name in before.slots else (~keep).sum())
        for name, keep in after.slots.items()
    )
    if not slots and not weights:
        return None
    constant = sum(int(flags.sum()) for flags in dead_slots(model, groups, before).constant.values())
    note = f"purified: {slots} filters that served nothing are gone, and {weights} weights with them"
    return f"{note} ({constant} filters without inputs took their constant along)" if constant else note


def effective_after(effective: PruningPlan, groups: GroupMap, masks: Masks) -> PruningPlan:
    """`effective` with the filter sparsities that `masks` (purified) has; the other structures' are as they were."""
    layers = effective.to_dict()
    for name, keep in masks.slots.items():
        layers.setdefault(name, {})["filter"] = effective_sparsity(groups.groups[name].slots, int(keep.sum()))
    return PruningPlan(layers)


def _without(model: nn.Module, groups: GroupMap, masks: Masks, lost: Mapping[str, Tensor]) -> Masks:
    """`masks` without the `lost` slots (group -> bool [slots]) and all that they span."""
    slots, parameters = dict(masks.slots), dict(masks.parameters)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for group, flags in lost.items():
        slots[group] = slots[group] & ~flags if group in slots else ~flags
        for member in groups.groups[group].members:
            module = model.get_submodule(member.module)
            axis = 0 if member.role in ("norm", "depthwise") else filter_axis(module)
            axes = {"weight": 1 - axis} if member.role == "in" else {"weight": axis, "bias": 0}
            for suffix, along in axes.items():
                name = f"{member.module}.{suffix}"
                if name in shapes:
                    slot = slot_of(member, flags.device)
                    gone = (slot >= 0) & flags[slot.clamp_min(0)]
                    keep = ~gone.reshape([-1 if d == along else 1 for d in range(len(shapes[name]))])
                    parameters[name] = parameters[name] & keep if name in parameters else keep
    return Masks(slots=slots, channels=dict(masks.channels), parameters=parameters)


def _weak(energy: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """Units with next to no energy and no more live weights than most: bool [units] of [units, inside]."""
    held, live = energy.sum(1), mask.sum(1)
    units = (live > 0).sum().clamp_min(1)
    return (held < threshold * held.sum() / units) & (live * units <= live.sum())


def _weak_slots(group: Group, weak: Mapping[tuple[str, Role], Tensor]) -> Tensor:
    """Slots weak in all members that read them, or in all that fill them where no norm follows: bool [slots]."""
    sides = {role: [m for m in group.members if m.role == role] for role in ROLES}
    normed = {slot for member in sides["norm"] for slot in member.slot}
    flags = []
    for role in ("in", "out"):
        votes: dict[int, bool] = {}
        for member in sides[role]:
            said = weak[member.module, role].tolist()
            for index, slot in zip(member.index, member.slot, strict=True):
                votes[slot] = votes.get(slot, True) and said[index]
        flags.append([votes.get(slot, False) and not (role == "out" and slot in normed) for slot in range(group.slots)])
    device = next(iter(weak.values())).device
    return torch.tensor(flags, device=device).any(0)


def _leaves_zeros(mask: Tensor) -> bool:
    """Whether zeros stay in [filters, channels, *kernel] once its dead filters and channels are cut away."""
    filters = mask.flatten(1).any(1)
    channels = mask.transpose(0, 1).flatten(1).any(1)
    return not bool(mask[filters][:, channels].all())
