"""Which filters still feed and read which channels, given masks; what can go without leaving a layer empty."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from admm.groupmap import Group, GroupMap, Member, Role
from admm.projector import Masks, lone_ranges
from admm.slicing import filter_axis, prunable_layers


@dataclass(frozen=True, slots=True)
class DeadSlots:
    """Slots that purification removes: group name -> bool [slots]; groups with none are left out."""

    unread: Mapping[str, Tensor]
    """Every column that would read them is zero in every consumer: the function stays exactly as it is."""
    constant: Mapping[str, Tensor]
    """All filters that fill them are zero, so they hold a constant (bias, BatchNorm shift) that somebody reads. It is
    removed as well, which changes the function where it is not zero: BatchNorm's statistics or retraining make up
    for it."""


class Connections:
    """Which filter of which layer still reads which channel, and what is gone; slots on the masks' device."""

    def __init__(self, model: nn.Module, groups: GroupMap, masks: Masks) -> None:
        self._groups = groups.groups
        self._channels = masks.channels
        #: layer -> bool [filters, channels]: any live weight in the kernel between the two
        self._live: dict[str, Tensor] = {}
        for name, module in prunable_weights(model):
            flags = canonical(module, kept_flags(name, module, masks))
            self._live[name.removesuffix(".weight")] = flags.reshape(*flags.shape[:2], -1).any(2)
        #: (layer, side) -> the groups that own a part of that side, with the slot of each index (-1: another's)
        self._sides: dict[tuple[str, str], list[tuple[str, Tensor]]] = {}
        self.gone: dict[str, Tensor] = {}
        for name, group in self._groups.items():
            for member in group.members:
                if member.module in self._live:
                    side = "in" if member.role == "in" else "out"
                    slot = slot_of(member, self._live[member.module].device)
                    self._sides.setdefault((member.module, side), []).append((name, slot))
            device = self._live[group.owners[0].module].device
            keep = masks.slots.get(name, torch.ones(group.slots, dtype=torch.bool, device=device))
            self.gone[name] = ~keep

    def dead(self) -> DeadSlots:
        """Removes what is dead, unread slots first, until there is none."""
        found: list[dict[str, Tensor]] = [{}, {}]
        while True:
            for kind, side in zip(found, ("in", "out"), strict=True):
                wanted = {name: ~flags for name, flags in self._used(side).items()}
                lost = self.remove(wanted) or self._remove_one(wanted)
                if lost:
                    for name, flags in lost.items():
                        kind[name] = kind[name] | flags if name in kind else flags
                    break
            else:
                return DeadSlots(unread=found[0], constant=found[1])

    def remove(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take `wanted` slots away, but for the last that something needs; returns those that went, where any did."""
        fresh = {
            name: wanted[name] & ~gone if name in wanted else torch.zeros_like(gone) for name, gone in self.gone.items()
        }
        if not any(bool(flags.any()) for flags in fresh.values()):
            return {}
        self._spare_ranges(fresh)
        self._spare_arrivals(fresh)
        self._spare_layers(fresh)
        self.gone = {name: gone | fresh[name] for name, gone in self.gone.items()}
        return {name: flags for name, flags in fresh.items() if bool(flags.any())}

    def _remove_one(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Where none of `wanted` could go together, because something needs one of them, the first that can alone."""
        for name, flags in wanted.items():
            for slot in (flags & ~self.gone[name]).nonzero().flatten():
                lost = self.remove({name: torch.zeros_like(flags).index_fill(0, slot, True)})
                if lost:
                    return lost
        return {}

    def _used(self, side: str) -> dict[str, Tensor]:
        """Slots with a live weight in an owner's filters (`out`) or a consumer's columns (`in`); those without any
        such member count as used. A depthwise filter passes on what others fill and read, so it is asked for neither.
        """
        role: Role = "in" if side == "in" else "out"
        used: dict[str, Tensor] = {}
        for name, group in self._groups.items():
            used[name] = torch.zeros_like(self.gone[name])
            spanned = torch.zeros_like(self.gone[name])
            for member in group.members:
                if member.role == role:
                    slot = slot_of(member, spanned.device)
                    alive = self._alive(member.module, self.gone).any(1 if side == "out" else 0)
                    spanned[slot[slot >= 0]] = True
                    used[name][slot[alive & (slot >= 0)]] = True
            used[name] |= ~spanned
        return used

    def _alive(self, layer: str, gone: Mapping[str, Tensor]) -> Tensor:
        """bool [filters, channels] without what is gone."""
        live = self._live[layer]
        for side, axis in (("out", 0), ("in", 1)):
            lost = self._lost(layer, side, gone)
            if lost is not None:
                live = live & ~(lost[:, None] if axis == 0 else lost[None, :])
        return live

    def _lost(self, layer: str, side: str, gone: Mapping[str, Tensor]) -> Tensor | None:
        """Which filters or channels of the layer went with their slots: bool [width]; None where no group has any."""
        lost = None
        for name, slot in self._sides.get((layer, side), ()):
            part = (slot >= 0) & gone[name][slot.clamp_min(0)]
            lost = part if lost is None else lost | part
        return lost

    def _spare_ranges(self, fresh: dict[str, Tensor]) -> None:
        """One slot of each range stays, the one with the most live weights."""
        for name, group in self._groups.items():
            for own in map(sorted, lone_ranges(group)) if bool(fresh[name].any()) else ():
                if bool((self.gone[name] | fresh[name])[own].all()):
                    size = self._slot_sizes(group).masked_fill(~fresh[name], -1)
                    fresh[name][own[int(size[own].argmax())]] = False

    def _spare_arrivals(self, fresh: dict[str, Tensor]) -> None:
        """Of the channels that a layer's own `channel` sparsity keeps, one still arrives."""
        for layer, flags in self._channels.items():
            after = self._lost(layer, "in", {name: gone | fresh[name] for name, gone in self.gone.items()})
            before = self._lost(layer, "in", self.gone)
            if after is not None and before is not None and not bool((flags & ~after).any()):
                self._keep(fresh, layer, "in", int((flags & ~before).long().argmax()))

    def _spare_layers(self, fresh: dict[str, Tensor]) -> None:
        """A layer that has live weights keeps one: of the filter that has the most."""
        for layer in self._live:
            if bool(self._alive(layer, {name: gone | fresh[name] for name, gone in self.gone.items()}).any()):
                continue
            alive = self._alive(layer, self.gone)
            if bool(alive.any()):
                row = int(alive.sum(1).argmax())
                self._keep(fresh, layer, "out", row)
                self._keep(fresh, layer, "in", int(alive[row].long().argmax()))

    def _keep(self, fresh: dict[str, Tensor], layer: str, side: str, index: int) -> None:
        for name, slot in self._sides.get((layer, side), ()):
            if int(slot[index]) >= 0:
                fresh[name][slot[index]] = False

    def _slot_sizes(self, group: Group) -> Tensor:
        """Live pairs of filter and channel that each slot spans: int64 [slots]."""
        size = torch.zeros(group.slots, dtype=torch.int64, device=self.gone[group.name].device)
        for member in group.members:
            if member.module in self._live:
                alive = self._alive(member.module, self.gone).sum(0 if member.role == "in" else 1)
                slot = slot_of(member, size.device)
                size.index_add_(0, slot.clamp_min(0), torch.where(slot >= 0, alive, 0))
        return size


def prunable_weights(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameter name and module of every prunable weight that is the layer's own."""
    names = {name for name, _ in model.named_parameters()}
    for layer, module in prunable_layers(model).items():
        if f"{layer}.weight" in names:
            yield f"{layer}.weight", module


def kept_flags(name: str, module: Any, masks: Masks) -> Tensor:
    """What `masks` keeps of a weight: bool of its shape (a view where it broadcasts)."""
    weight = module.weight
    flags = masks.parameters.get(name)
    if flags is None:
        flags = torch.ones((), dtype=torch.bool, device=weight.device)
    return flags.expand(weight.shape)


def canonical(module: nn.Module, value: Tensor) -> Tensor:
    """[filters, channels, *kernel] of a weight as it is stored, and back."""
    return value.transpose(0, 1) if filter_axis(module) == 1 else value


def slot_of(member: Member, device: torch.device) -> Tensor:
    """The slot of each of the member's `width` channels, -1 where it has none in this group."""
    slot = torch.full((member.width,), -1, dtype=torch.int64)
    slot[torch.tensor(member.index, dtype=torch.int64)] = torch.tensor(member.slot, dtype=torch.int64)
    return slot.to(device)
