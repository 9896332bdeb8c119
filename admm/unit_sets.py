"""What an allocation decides: how many units stay of each group's slots, each layer's columns and single weights.

A `UnitSet` is one such decision. `UnitSets` knows all of a network's, how the size of every layer follows from their
counts, and how much energy each unit holds while the others are as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from admm.connections import slot_of
from admm.cost import LayerSize, layer_shapes
from admm.groupmap import Group, GroupMap
from admm.plan import DECIMALS, PruningPlan
from admm.projection import effective_sparsity, keep_count
from admm.projector import least_slots, lone_ranges
from admm.slicing import prunable_layers
from admm.squares import Squares
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

    def copy(self) -> Chosen:
        """The same flags in dictionaries of their own."""
        return Chosen(dict(self.slots), dict(self.channels), dict(self.columns), dict(self.floors))

    def same(self, other: Chosen) -> bool:
        """Whether the flags of slots, channels and columns are those of `other`."""
        pairs = ((self.slots, other.slots), (self.channels, other.channels), (self.columns, other.columns))
        return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


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
        self._placed: dict[tuple[str, int, torch.device], tuple[Tensor, Tensor | None]] = {}
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
        filters, columns, weights = self._extents(layer, counts, min)
        return LayerSize(filters=int(filters), columns=int(columns), weights=int(weights))

    def sizes_along(
        self, layer: str, number: int, grid: NDArray[np.int64], counts: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Filters, columns and weights of a layer, each [counts in grid], where set `number` takes each of `grid`."""
        trial = [*counts[:number], grid, *counts[number + 1 :]]
        filters, columns, weights = (np.broadcast_to(n, grid.shape) for n in self._extents(layer, trial, np.minimum))
        return filters, columns, weights

    def _extents(self, layer: str, counts: Sequence[Any], least: Callable[[Any, Any], Any]) -> tuple[Any, Any, Any]:
        shape, of = self.shapes[layer], self._of_layer.get(layer, {})
        filters, channels = shape.filters, shape.channels
        for number in of.get("out", ()):
            members = self._members[number, layer, "out"]
            filters = filters - (members[-1] - members[counts[number]])
        for number in of.get("in", ()):
            members = self._members[number, layer, "in"]
            channels = channels - (members[-1] - members[counts[number]])
        for number in of.get("channel", ()):
            channels = least(channels, counts[number])
        columns = channels * shape.kernel
        for number in of.get("shape", ()):
            columns = least(columns, counts[number])
        weights = filters * columns
        for number in of.get("unstructured", ()):
            weights = least(weights, counts[number])
        return filters, columns, weights

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

    def squares(self, values: Mapping[str, Tensor]) -> Squares:
        """What `rank` looks at; held where it is asked again and again."""
        return Squares(self._modules, values, hold=self.meet)

    def rank(self, number: int, squares: Squares, rho: Mapping[str, float], kept: Chosen) -> Ranking:
        """One set's units by what they hold of sum_t rho_t ||V_t||^2, all other sets as `kept` has them."""
        units = self.sets[number]
        if units.structure == "filter":
            energy = self._slot_energy(self._groups[units.name], squares, rho, kept)
            order = energy.argsort(descending=True, stable=True)
            order = _first_of_ranges(self._groups[units.name], order)
            return _ranking(energy[order], order)
        scale = rho[f"{units.name}.weight"]
        if units.structure == "unstructured":
            return _ranking(self._single(units.name, squares, kept), None, scale)
        energy = self._energy(units.name, units.structure, squares, kept)
        order = energy.argsort(descending=True, stable=True)
        return _ranking(energy[order], order, scale)

    def flag(self, number: int, count: int, ranking: Ranking, kept: Chosen) -> None:
        """Write into `kept` that the best `count` of this set stay; what sizes follow from counts stays as it is."""
        units = self.sets[number]
        if ranking.order is None:
            kept.floors[units.name] = ranking.sorted_energy[count - 1]
            return
        flags = torch.zeros_like(ranking.order, dtype=torch.bool)
        flags[ranking.order[:count]] = True
        choice = {"filter": kept.slots, "channel": kept.channels, "shape": kept.columns}[units.structure]
        choice[units.name] = flags

    def keep(self, number: int, count: int, ranking: Ranking, kept: Chosen) -> None:
        """`flag`, and from now on a layer that owns a part of the slots has those that rank best."""
        self.flag(number, count, ranking, kept)
        units = self.sets[number]
        if units.structure == "filter" and ranking.order is not None:
            for (layer, side), slot in self._sides[units.name].items():
                inside = slot[slot >= 0].to(ranking.order.device)
                weight = torch.bincount(inside, minlength=units.units)[ranking.order]
                members = torch.cat((weight.new_zeros(1), weight.cumsum(0))).cpu().numpy()
                self._members[number, layer, side] = members

    def sizes_of(self, kept: Chosen) -> dict[str, LayerSize]:
        """Every prunable layer's size where the units flagged stay; single weights are not looked at."""
        found: dict[str, LayerSize] = {}
        for layer, shape in self.shapes.items():
            rows, columns = self._side_flags(layer, "out", kept), self._column_flags(layer, kept, but="")
            filters = shape.filters if rows is None else int(rows.sum())
            width = shape.size.columns if columns is None else int(columns.sum())
            found[layer] = LayerSize(filters=filters, columns=width, weights=filters * width)
        return found

    def energy_kept(self, name: str, squares: Squares, kept: Chosen) -> float:
        """||Z||^2 of a prunable layer's weight where the units flagged stay; single weights are not looked at."""
        layer = name.removesuffix(".weight")
        rows = self._side_flags(layer, "out", kept)
        held = squares.rows(layer, self._column_flags(layer, kept, but=""))
        return float((held if rows is None else held[rows]).sum())

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

    def _slot_energy(self, group: Group, squares: Squares, rho: Mapping[str, float], kept: Chosen) -> Tensor:
        energy = torch.zeros(group.slots, dtype=torch.float64, device=squares.device)
        for number, member in enumerate(group.members):
            for suffix in ("weight", "bias") if member.role != "in" else ("weight",):
                name = f"{member.module}.{suffix}"
                if name not in self.variables:
                    continue
                if suffix == "weight" and member.module in self._modules:
                    part = self._energy(member.module, "in" if member.role == "in" else "out", squares, kept)
                else:
                    part = squares.vector(name)
                slot, index = self._slots_on(group, number, energy.device)
                energy.index_add_(0, slot, rho[name] * (part if index is None else part[index]))
        return energy

    def _slots_on(self, group: Group, number: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The slots that a member has, and which of its channels they are (None: all, in order)."""
        key = (group.name, number, device)
        if key not in self._placed:
            slot = slot_of(group.members[number], device)
            inside = (slot >= 0).nonzero().flatten()
            self._placed[key] = (slot, None) if len(inside) == len(slot) else (slot[inside], inside)
        return self._placed[key]

    def _energy(self, layer: str, kind: str, squares: Squares, kept: Chosen) -> Tensor:
        """What each unit of one kind (`out`, `in`, `channel`, `shape`) holds of what all other kinds left: float64."""
        floor = kept.floors.get(layer)
        if kind == "out":
            return squares.rows(layer, self._column_flags(layer, kept, but=""), floor)
        held = squares.columns(layer, self._side_flags(layer, "out", kept), floor)
        columns = self._column_flags(layer, kept, but=kind)
        if columns is not None:
            held = held * columns
        return held if kind == "shape" else held.reshape(self.shapes[layer].channels, -1).sum(1)

    def _single(self, layer: str, squares: Squares, kept: Chosen) -> Tensor:
        """Squares that the other structures left of a layer, descending."""
        left = squares.matrix(layer)
        rows, columns = self._side_flags(layer, "out", kept), self._column_flags(layer, kept, but="")
        if rows is not None:
            left = left * rows[:, None]
        if columns is not None:
            left = left * columns
        flat = left.flatten()
        if flat.device.type == "cpu":  # NumPy's sort is several times torch's
            return torch.from_numpy(np.sort(flat.numpy())[::-1].copy())
        return flat.sort(descending=True).values

    def _column_flags(self, layer: str, kept: Chosen, *, but: str) -> Tensor | None:
        """Columns [channels x kernel] that all kinds but one (`in`, `channel`, `shape`) keep; None where all stay."""
        channels = self._side_flags(layer, "in", kept) if but != "in" else None
        own = kept.channels.get(layer) if but != "channel" else None
        if own is not None:
            channels = own if channels is None else channels & own
        columns = kept.columns.get(layer) if but != "shape" else None
        if channels is None:
            return columns
        spread = channels.repeat_interleave(self.shapes[layer].kernel)
        return spread if columns is None else spread & columns

    def _side_flags(self, layer: str, side: str, kept: Chosen) -> Tensor | None:
        """Filters (`out`) or channels (`in`) that their slots keep; None where no slot has gone."""
        found = None
        for number in self._of_layer.get(layer, {}).get(side, ()):
            flags = self._member_flags(number, layer, side, kept)
            if flags is not None:
                found = flags if found is None else found & flags
        return found

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
