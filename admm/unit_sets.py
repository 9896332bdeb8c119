"""What an allocation decides: how many units stay of each group's slots, each layer's columns and single weights.

A `UnitSet` is one such decision. `UnitSets` knows all of a network's, how the size of every layer follows from their
counts, and how much energy each unit holds while the others are as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from admm.connections import canonical, slot_of
from admm.cost import LayerSize, layer_shapes
from admm.groupmap import Group, GroupMap
from admm.plan import DECIMALS, PruningPlan
from admm.projection import effective_sparsity, keep_count
from admm.projector import least_slots, lone_ranges
from admm.slicing import prunable_layers
from admm.structures import unit_energy
from admm.target import Target
from admm.validate import weight_obstacle

#: A grid with no more counts than this is not narrowed further.
FEW = 32


@dataclass(frozen=True, slots=True)
class UnitSet:
    """Units among which the count that stays is chosen: one structure of one layer, `filter` of one group."""

    name: str
    structure: str
    units: int
    least: int
    align: int
    layers: tuple[str, ...]
    """The layers whose size the count changes."""

    def admissible(self, count: float) -> int:
        """The nearest count from `count` upwards that a projection can keep."""
        wanted = max(math.ceil(count), self.least)
        return min(self.units, math.ceil(wanted / self.align) * self.align)

    def grid(self, low: float, high: float, limit: int, keep: int) -> NDArray[np.int64]:
        """Admissible counts from `low` to `high` with `keep` among them, ascending; at most about `limit`.

        All of them where they are few, else in equal proportions: a step of one matters among few units alone.
        """
        first, last = self.admissible(low), self.admissible(high)
        steps = (last - first) // self.align + 2
        if steps <= limit:
            counts = np.arange(first, last + self.align, self.align)
        else:
            counts = np.rint(np.geomspace(first, last, limit))
            counts = np.ceil(counts / self.align) * self.align
        return np.unique(np.minimum(np.append(counts, [keep, last]), self.units)).astype(np.int64)

    def zoom(self, grid: NDArray[np.int64], index: int) -> tuple[int, int]:
        """The range to look at next where `grid[index]` was best: its neighbours, or further on from the grid's end."""
        low, high = int(grid[max(index - 2, 0)]), int(grid[min(index + 2, len(grid) - 1)])
        span = max(int(grid[-1] - grid[0]), FEW * self.align)
        if index < 2:
            low -= span
        if index > len(grid) - 3:
            high += span
        if len(grid) <= FEW:  # all of them are there: nothing finer to see, only further
            low, high = min(low, int(grid[0])), max(high, int(grid[-1]))
        return self.admissible(low), self.admissible(high)


@dataclass(slots=True)
class Chosen:
    """Which units stay for now, where that matters to other sets: flags, and the least square of a kept weight."""

    slots: dict[str, Tensor] = field(default_factory=dict)
    channels: dict[str, Tensor] = field(default_factory=dict)
    columns: dict[str, Tensor] = field(default_factory=dict)
    floors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ranking:
    """One set's units by energy: `prefix[k]` [units + 1] is what the best k hold, `order` [units] who they are.

    Of single weights the `order` is left out: `sorted_energy` [units] tells them apart.
    """

    prefix: NDArray[np.float64]
    order: Tensor | None
    sorted_energy: Tensor


class UnitSets:
    """All decisions of one network under one target, in the order filter, channel, shape, unstructured."""

    def __init__(self, model: nn.Module, groups: GroupMap, target: Target, *, align: int = 1) -> None:
        self._modules = prunable_layers(model)
        self.shapes = layer_shapes(model)
        self._groups = groups.groups
        self._sides = {name: self._sides_of(group) for name, group in groups.groups.items()}
        found: list[UnitSet] = []
        for structure in target.structures:
            if structure == "filter":
                found += [
                    self._slots_of(group, target, align)
                    for group in groups.groups.values()
                    if all(target.allows(owner.module) for owner in group.owners)
                ]
                continue
            for layer, module in self._modules.items():
                linear_twice = structure == "shape" and "channel" in target.structures and module.weight.ndim == 2
                if target.allows(layer) and not linear_twice and weight_obstacle(model, layer, structure) is None:
                    found.append(self._columns_of(layer, structure, target, align))
        self.sets = tuple(found)
        self._of_layer: dict[str, dict[str, list[int]]] = {}
        for number, units in enumerate(self.sets):
            sides = self._sides[units.name] if units.structure == "filter" else {(units.name, units.structure): None}
            for layer, side in sides:
                self._of_layer.setdefault(layer, {}).setdefault(side, []).append(number)
        self._members: dict[tuple[int, str, str], NDArray[np.int64]] = {}
        self.reset()
        self.meet = any(sum(map(len, sides.values())) > 1 for sides in self._of_layer.values())
        parameters = dict(model.named_parameters())
        spanned = {f"{s.name}.weight" for s in self.sets if s.structure != "filter"}
        for units in self.sets:
            if units.structure == "filter":
                modules = {m.module for m in self._groups[units.name].members}
                spanned |= {f"{m}.{suffix}" for m in modules for suffix in ("weight", "bias")}
        self.variables: tuple[str, ...] = tuple(name for name in parameters if name in spanned)

    @property
    def least(self) -> list[int]:
        """The smallest counts."""
        return [units.admissible(0) for units in self.sets]

    def reset(self) -> None:
        """Forget who ranks where: a layer that owns a part of a group's slots keeps its share of them, rounded up."""
        for number, units in enumerate(self.sets):
            if units.structure == "filter":
                for (layer, side), slot in self._sides[units.name].items():
                    share = np.arange(units.units + 1) * int((slot >= 0).sum())
                    self._members[number, layer, side] = -(-share // units.units)

    def size(self, layer: str, counts: Sequence[int]) -> LayerSize:
        """A layer's size where `counts[i]` units of set i stay."""
        shape, of = self.shapes[layer], self._of_layer.get(layer, {})
        filters, channels = shape.filters, shape.channels
        for number in of.get("out", ()):
            members = self._members[number, layer, "out"]
            filters -= int(members[-1] - members[counts[number]])
        for number in of.get("in", ()):
            members = self._members[number, layer, "in"]
            channels -= int(members[-1] - members[counts[number]])
        for number in of.get("channel", ()):
            channels = min(channels, counts[number])
        columns = channels * shape.kernel
        for number in of.get("shape", ()):
            columns = min(columns, counts[number])
        weights = filters * columns
        for number in of.get("unstructured", ()):
            weights = min(weights, counts[number])
        return LayerSize(filters=filters, columns=columns, weights=weights)

    def sizes(self, counts: Sequence[int]) -> dict[str, LayerSize]:
        """Every prunable layer's size."""
        return {layer: self.size(layer, counts) for layer in self.shapes}

    def plan(self, counts: Sequence[int]) -> PruningPlan:
        """The sparsities that keep these counts; single weights are counted among what the others leave."""
        layers: dict[str, dict[str, float]] = {}
        for units, count in zip(self.sets, counts, strict=True):
            if units.structure == "unstructured":
                size = self.size(units.name, counts)
                sparsity = sparsity_keeping(size.filters * size.columns, count)
            else:
                sparsity = effective_sparsity(units.units, count)
            layers.setdefault(units.name, {})[units.structure] = sparsity
        return PruningPlan(layers)

    def rank(self, number: int, values: Mapping[str, Tensor], rho: Mapping[str, float], kept: Chosen) -> Ranking:
        """One set's units by what they hold of sum_t rho_t ||V_t||^2, all other sets as `kept` has them."""
        units = self.sets[number]
        if units.structure == "filter":
            energy = self._slot_energy(self._groups[units.name], values, rho, kept)
            order = energy.argsort(descending=True, stable=True)
            order = _first_of_ranges(self._groups[units.name], order)
            return _ranking(energy[order], order)
        name = f"{units.name}.weight"
        left = self._left(units.name, values[name], kept, but=units.structure)
        if units.structure == "unstructured":
            squares = left.square().flatten()
            if squares.device.type == "cpu":  # NumPy's sort is several times torch's
                squares = torch.from_numpy(np.sort(squares.numpy())[::-1].copy())
            else:
                squares = squares.sort(descending=True).values
            return _ranking(squares, None, rho[name])
        energy = unit_energy(left, units.structure).double()
        order = energy.argsort(descending=True, stable=True)
        return _ranking(energy[order], order, rho[name])

    def keep(self, number: int, count: int, ranking: Ranking, kept: Chosen) -> None:
        """Write into `kept` that the best `count` of this set stay."""
        units = self.sets[number]
        if ranking.order is None:
            kept.floors[units.name] = ranking.sorted_energy[count - 1]
            return
        flags = torch.zeros_like(ranking.order, dtype=torch.bool)
        flags[ranking.order[:count]] = True
        if units.structure == "filter":
            kept.slots[units.name] = flags
            for (layer, side), slot in self._sides[units.name].items():
                inside = slot[slot >= 0].to(flags.device)
                weight = torch.bincount(inside, minlength=units.units)[ranking.order]
                members = torch.cat((weight.new_zeros(1), weight.cumsum(0))).cpu().numpy()
                self._members[number, layer, side] = members
        elif units.structure == "channel":
            kept.channels[units.name] = flags
        else:
            kept.columns[units.name] = flags

    def _slots_of(self, group: Group, target: Target, align: int) -> UnitSet:
        layers = tuple(dict.fromkeys(layer for layer, _ in self._sides[group.name]))
        least = max(least_slots(group, align), min(target.min_keep, group.slots))
        return UnitSet(group.name, "filter", group.slots, least, align, layers)

    def _columns_of(self, layer: str, structure: str, target: Target, align: int) -> UnitSet:
        shape = self.shapes[layer]
        columns = shape.channels * shape.kernel
        units = {"channel": shape.channels, "shape": columns, "unstructured": shape.filters * columns}[structure]
        own_align = 1 if structure == "unstructured" else align
        # a plan's six decimals can ask for no fewer than one unit in a million
        least = max(min(target.min_keep, units), keep_count(units, 1.0 - 10.0**-DECIMALS))
        return UnitSet(layer, structure, units, least, own_align, (layer,))

    def _sides_of(self, group: Group) -> dict[tuple[str, str], Tensor]:
        """(layer, "out" or "in") -> the slot of each of its filters or channels, -1 where it has none in the group."""
        sides: dict[tuple[str, str], Tensor] = {}
        for member in group.members:
            if member.module in self._modules:
                key = (member.module, "in" if member.role == "in" else "out")
                slot = slot_of(member, torch.device("cpu"))
                sides[key] = torch.maximum(sides[key], slot) if key in sides else slot
        return sides

    def _slot_energy(
        self, group: Group, values: Mapping[str, Tensor], rho: Mapping[str, float], kept: Chosen
    ) -> Tensor:
        device = next(iter(values.values())).device
        energy = torch.zeros(group.slots, dtype=torch.float64, device=device)
        for member in group.members:
            slot = slot_of(member, device)
            inside = slot >= 0
            for suffix in ("weight", "bias") if member.role != "in" else ("weight",):
                name = f"{member.module}.{suffix}"
                if name not in self.variables:
                    continue
                value = values[name]
                if suffix == "weight" and member.module in self._modules:
                    side = "in" if member.role == "in" else "out"
                    left = self._left(member.module, value, kept, but=side)
                    part = unit_energy(left, "channel" if side == "in" else "filter").double()
                else:
                    part = value.detach().double().square()
                energy.index_add_(0, slot[inside], rho[name] * part[inside])
        return energy

    def _left(self, layer: str, value: Tensor, kept: Chosen, *, but: str) -> Tensor:
        """V = [filters, channels, *kernel] without what all choices but one kind (`out`, `in`, a structure) gave up."""
        value = canonical(self._modules[layer], value.detach())
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        of = self._of_layer.get(layer, {})
        floor = kept.floors.get(layer)
        if floor is not None and but != "unstructured":
            value = torch.where(value.square() >= floor, value, 0.0)
        for side, axis in (("out", 0), ("in", 1)):
            for number in of.get(side, ()) if side != but else ():
                flags = self._member_flags(number, layer, side, kept)
                if flags is not None:
                    value = value * flags.reshape([-1 if d == axis else 1 for d in range(value.ndim)])
        if but != "channel" and layer in kept.channels:
            value = value * kept.channels[layer].reshape(1, -1, *(1,) * (value.ndim - 2))
        if but != "shape" and layer in kept.columns:
            value = value * kept.columns[layer].reshape(1, *value.shape[1:])
        return value

    def _member_flags(self, number: int, layer: str, side: str, kept: Chosen) -> Tensor | None:
        name = self.sets[number].name
        flags = kept.slots.get(name)
        if flags is None:
            return None
        slot = self._sides[name][layer, side].to(flags.device)
        return torch.where(slot >= 0, flags[slot.clamp_min(0)], True)


def sparsity_keeping(units: int, count: int) -> float:
    """The smallest sparsity of six decimals at which `keep_count` keeps at most `count` of `units`."""
    sparsity = effective_sparsity(units, min(count, units))
    while keep_count(units, sparsity) > count:
        sparsity = round(sparsity + 1e-6, 6)
    return sparsity


def _ranking(energy: Tensor, order: Tensor | None, rho: float = 1.0) -> Ranking:
    sums = energy.double().cumsum(0).cpu().numpy() * rho
    return Ranking(prefix=np.concatenate(([0.0], sums)), order=order, sorted_energy=energy)


def _first_of_ranges(group: Group, order: Tensor) -> Tensor:
    """`order` with the best slot of each lone range in front: that one stays whatever it holds."""
    ranges = lone_ranges(group)
    if len(ranges) == 1 and len(ranges[0]) == group.slots:
        return order
    ranked = order.tolist()
    forced = list(dict.fromkeys(next(slot for slot in ranked if slot in own) for own in ranges))
    return torch.tensor(forced + [s for s in ranked if s not in set(forced)], device=order.device)
