"""Projection of a whole network onto what a plan allows: coupled filters, channels, columns, single weights.

The projection of several structures together has no closed form (choosing rows and columns jointly is a biclique
problem), and filters removed in two neighbours meet in one weight in the same way. Each choice is therefore made by the
energy that the others leave, in turns. Where no two choices meet the outcome is exact. Where they do, it is not: each
turn can only keep more energy, until no single choice can better it. (Two turns are themselves approximate: `channel`
with `shape` on one layer takes channels first, and a group that has both filters and channels of one weight counts them
apart.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from admm.groupmap import Group, GroupMap
from admm.plan import N_OF_M, LayerPlan, PruningPlan
from admm.projection import effective_sparsity, keep_count, pattern_mask, select
from admm.slicing import channel_axis, filter_axis
from admm.structures import GROUP, energy_along, unit_energy, unit_mask
from admm.validate import check_align, check_plan, plan_notes

#: Turns where choices meet; two settle nearly all layers, and a fixed number needs no host sync.
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Slices:
    """One parameter's share of a group's slots: index `i` along `axis` of `parameter` lies in slot `slot[i]`.

    `slot` is [extent] int64 with -1 for indices that belong to no slot of this group.
    """

    parameter: str
    axis: int
    slot: Tensor


@dataclass(frozen=True, slots=True)
class Masks:
    """What a projection keeps: per group flags [slots], per layer flags [channels], per parameter 0/1 factors."""

    slots: Mapping[str, Tensor]
    channels: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    """parameter name -> bool tensor that broadcasts to the parameter."""


class Projector:
    """Projects named tensors (W + U) onto the plan's constraint set.

    `model` gives shapes only. `notes` says what was rounded or clamped. Raises `PlanError` when the plan names a layer
    or structure that this network cannot prune. The filter constraint of a group covers everything that dies with a
    slot: the filters, their bias, their BatchNorm scale and shift, and the columns of the consumers, so that the
    network has stopped using a filter before the hard prune takes it away (behind a BatchNorm a filter's own norm says
    nothing: the next layer sees it rescaled).
    """

    def __init__(self, model: nn.Module, groups: GroupMap, plan: PruningPlan, *, align: int = 1) -> None:
        self.plan = plan
        self.align = align
        check_align(align)
        check_plan(model, groups, plan)
        self.notes: list[str] = []
        self._modules = dict(model.named_modules())
        parameters = dict(model.named_parameters())
        self._shapes = {name: p.shape for name, p in parameters.items()}
        device = next(iter(parameters.values())).device
        self._groups: dict[str, Group] = {
            name: g for name, g in groups.groups.items() if plan.sparsity(name, "filter") > 0.0
        }
        self._slices = {name: self._slices_of(g, parameters, device) for name, g in self._groups.items()}
        self._touching: dict[str, list[tuple[str, Slices]]] = {}
        for name, slices in self._slices.items():
            for part in slices:
                self._touching.setdefault(part.parameter, []).append((name, part))
        self._ranges = {
            name: [torch.tensor(sorted(r), device=device) for r in lone_ranges(g)] for name, g in self._groups.items()
        }
        self._share = 1.0
        self._slot_counts = {name: self._slot_count(g, self.notes) for name, g in self._groups.items()}
        self._columns: dict[str, LayerPlan] = {
            name: plan[name] for name in plan if any(s != "filter" for s in plan[name])
        }
        self._column_counts = self._all_column_counts(self.notes)
        columned = {f"{layer}.weight" for layer in self._columns}
        self._meet = any(len(parts) > 1 or name in columned for name, parts in self._touching.items())
        # where rounding already says how much of a layer stays, the clamp need not
        said = {note.partition(":")[0] for note in self.notes}
        self.notes += [note for note in plan_notes(model, groups, plan) if note.partition(":")[0] not in said]
        self.variables: tuple[str, ...] = tuple(n for n in parameters if n in self._touching or n in columned)

    def relax(self, share: float) -> None:
        """Ask for less for now: where the plan keeps a fraction k of the units, k ** share stays; 1.0 is the plan.

        For progressive pruning (multi-step, Ye et al. 2019, arXiv 1903.09769); `share` lies in (0, 1].
        """
        if share == self._share:
            return
        self._share = share
        self._slot_counts = {name: self._slot_count(g, []) for name, g in self._groups.items()}
        self._column_counts = self._all_column_counts([])

    def effective(self) -> PruningPlan:
        """The plan after rounding to the block: what is really removed (while relaxed, of what is asked then)."""
        layers: dict[str, dict[str, float]] = {}
        for name in self.plan:
            layer: dict[str, float] = {}
            for structure, sparsity in self.plan[name].items():
                if structure == "filter":
                    units = self._groups[name].slots
                    layer[structure] = effective_sparsity(units, self._slot_counts[name])
                elif structure == "unstructured":
                    layer[structure] = self._relaxed(sparsity)
                elif structure == N_OF_M:
                    layer[structure] = effective_sparsity(GROUP, keep_count(GROUP, self._relaxed(sparsity)))
                else:
                    units = self._units(name, structure)
                    layer[structure] = effective_sparsity(units, self._column_counts[name][structure])
            layers[name] = layer
        return PruningPlan(layers)

    @torch.no_grad()
    def project(self, values: Mapping[str, Tensor], rho: Mapping[str, float] | None = None) -> Masks:
        """Masks of the projection of `values` (name -> tensor, at least `variables`) in the norm weighted by `rho`.

        Minimises sum_t rho_t ||V_t - Z_t||^2 over Z in the plan's set: a slot's worth is its rho-weighted energy over
        all parameters it spans (the proximal step of ADMM with a rho per tensor).
        """
        weight = {n: 1.0 if rho is None else rho[n] for n in self.variables}
        columns: dict[str, Tensor] = {}
        channels: dict[str, Tensor] = {}
        slots: dict[str, Tensor] = {}
        for _ in range(ROUNDS if self._meet else 1):
            for name, group in self._groups.items():
                energy = torch.zeros(group.slots, dtype=torch.float64, device=next(iter(values.values())).device)
                for part in self._slices[name]:
                    value = self._left(part.parameter, values[part.parameter], slots, columns, but=name)
                    energy += weight[part.parameter] * _slot_energy(value, part, group.slots)
                slots[name] = select(energy, self._slot_counts[name], self._best_of_each_range(name, energy))
            factors = self._slot_factors(slots)
            for layer in self._columns:
                columns[layer], channels[layer] = self._select_columns(layer, values, factors)
        factors = self._slot_factors(slots)
        for layer, plan in self._columns.items():
            name = f"{layer}.weight"
            module = self._modules[layer]
            mask = columns[layer]
            if name in factors:
                mask = mask & self._to_canonical(module, factors[name])
            if plan.get("unstructured", 0.0) > 0.0:
                mask = self._select_single(layer, values[name], mask, self._relaxed(plan["unstructured"]))
            factors[name] = self._from_canonical(module, mask)
        return Masks(slots=slots, channels=channels, parameters=factors)

    def _slices_of(self, group: Group, parameters: Mapping[str, Tensor], device: torch.device) -> list[Slices]:
        found: list[Slices] = []
        for member in group.members:
            module = self._modules[member.module]
            targets: list[tuple[str, int]]
            if member.role == "in":
                targets = [("weight", channel_axis(module))]
            elif member.role == "out":
                targets = [("weight", filter_axis(module)), ("bias", 0)]
            else:  # norm and depthwise: every parameter has the channel first
                targets = [("weight", 0), ("bias", 0)]
            for suffix, axis in targets:
                name = f"{member.module}.{suffix}"
                if name not in parameters:
                    continue
                slot = torch.full((parameters[name].shape[axis],), -1, dtype=torch.int64)
                slot[torch.tensor(member.index)] = torch.tensor(member.slot)
                found.append(Slices(parameter=name, axis=axis, slot=slot.to(device)))
        return found

    def _relaxed(self, sparsity: float) -> float:
        return 1.0 - (1.0 - sparsity) ** self._share if self._share < 1.0 else sparsity

    def _slot_count(self, group: Group, notes: list[str]) -> int:
        sparsity = self._relaxed(self.plan.sparsity(group.name, "filter"))
        asked = keep_count(group.slots, sparsity)
        aligned = keep_count(group.slots, sparsity, self.align)
        count = max(aligned, least_slots(group, self.align))
        if count > aligned:
            notes.append(f"{group.name}: {count} filters kept, so that no coupled layer is left empty")
        elif count != asked:
            notes.append(
                f"{group.name}: {count} of {group.slots} filters kept, {asked} asked for "
                f"(rounded up to a multiple of {self.align})"
            )
        return count

    def _all_column_counts(self, notes: list[str]) -> dict[str, dict[str, int]]:
        return {
            layer: {s: self._column_count(layer, s, notes) for s in ("channel", "shape") if s in plan}
            for layer, plan in self._columns.items()
        }

    def _column_count(self, layer: str, structure: str, notes: list[str]) -> int:
        linear = len(self._canonical_shape(layer)) == 2  # where shape is channel
        sparsity = max(self.plan.sparsity(layer, s) for s in (("channel", "shape") if linear else (structure,)))
        sparsity = self._relaxed(sparsity)
        units = self._units(layer, structure)
        asked, count = keep_count(units, sparsity), keep_count(units, sparsity, self.align)
        if count != asked:
            what = "columns" if structure == "shape" else "input channels"
            notes.append(
                f"{layer}: {count} of {units} {what} kept, {asked} asked for (rounded up to a multiple of {self.align})"
            )
        return count

    def _best_of_each_range(self, name: str, energy: Tensor) -> Tensor | None:
        ranges = self._ranges[name]
        if len(ranges) == 1 and ranges[0].numel() == energy.numel():
            return None
        forced = torch.zeros_like(energy, dtype=torch.bool)
        for own in ranges:
            forced[own[energy[own].argmax(0, keepdim=True)]] = True
        return forced

    def _slot_mask(self, part: Slices, keep: Tensor) -> Tensor:
        """Flags [slots] as a bool mask that broadcasts to the parameter."""
        flags = torch.where(part.slot >= 0, keep[part.slot.clamp_min(0)], True)
        return flags.reshape([-1 if d == part.axis else 1 for d in range(len(self._shapes[part.parameter]))])

    def _slot_factors(self, slots: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per parameter touched by a pruned group: a bool mask that broadcasts to it."""
        factors: dict[str, Tensor] = {}
        for parameter, parts in self._touching.items():
            for name, part in parts:
                mask = self._slot_mask(part, slots[name])
                factors[parameter] = factors[parameter] & mask if parameter in factors else mask
        return factors

    def _units(self, layer: str, structure: str) -> int:
        shape = self._canonical_shape(layer)
        units = shape[1]
        if structure == "shape":
            for extent in shape[2:]:
                units *= extent
        return units

    def _canonical_shape(self, layer: str) -> tuple[int, ...]:
        shape = list(self._shapes[f"{layer}.weight"])
        if filter_axis(self._modules[layer]) == 1:
            shape[0], shape[1] = shape[1], shape[0]
        return tuple(shape)

    def _to_canonical(self, module: nn.Module, value: Tensor) -> Tensor:
        return value.transpose(0, 1) if filter_axis(module) == 1 else value

    _from_canonical = _to_canonical

    def _left(
        self, parameter: str, value: Tensor, slots: Mapping[str, Tensor], columns: Mapping[str, Tensor], *, but: str
    ) -> Tensor:
        """`value` without what the columns and the groups other than `but` gave up in their latest turns."""
        for name, part in self._touching[parameter]:
            if name != but and name in slots:
                value = value * self._slot_mask(part, slots[name])
        layer, _, suffix = parameter.rpartition(".")
        if suffix == "weight" and layer in columns:
            value = value * self._from_canonical(self._modules[layer], columns[layer])
        return value

    def _select_columns(
        self, layer: str, values: Mapping[str, Tensor], factors: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Kept columns of one layer given the kept slots: bool [1, channels, *kernel], and the channels [channels].

        A channel that `channel` keeps stays one of the layer even where `shape` empties it: widths are as planned. With
        `n:m` the flags are those of single weights, [filters, channels, *kernel].
        """
        name = f"{layer}.weight"
        module, counts = self._modules[layer], self._column_counts[layer]
        whole = value = self._to_canonical(module, values[name])
        channels = torch.ones(value.shape[1], dtype=torch.bool, device=value.device)
        arrives = channels
        if name in factors:
            factor = self._to_canonical(module, factors[name])
            value = value * factor
            arrives = factor.any(0).reshape(factor.shape[1], -1).any(-1) & channels
        count = counts.get("channel") or (counts.get("shape") if value.ndim == 2 else None)
        if count is not None:
            # -1 ranks a channel whose producer is gone behind the weakest that arrives
            channels = select(unit_energy(value, "channel").masked_fill(~arrives, -1.0), count)
        columns = unit_mask(channels, "channel", value.shape).expand(1, *value.shape[1:])
        if value.ndim > 2 and "shape" in counts:
            live = columns & unit_mask(arrives, "channel", value.shape)
            energy = unit_energy(value, "shape").masked_fill(~live.flatten(), -1.0)
            columns = columns & unit_mask(select(energy, counts["shape"]), "shape", value.shape)
        if N_OF_M in self._columns[layer]:
            # of the filters that are gone as well: what each would be worth decides whether it stays gone
            keep = keep_count(GROUP, self._relaxed(self._columns[layer][N_OF_M]))
            columns = pattern_mask(whole, keep, arrives)
        return columns, channels

    def _select_single(self, layer: str, value: Tensor, mask: Tensor, sparsity: float) -> Tensor:
        """Unstructured selection among what the other structures left: bool [filters, channels, *kernel]."""
        canonical = self._to_canonical(self._modules[layer], value)
        full = mask.expand(canonical.shape)
        energy = canonical.detach().abs().masked_fill(~full, -1.0)
        remaining = int(full.sum())
        return select(energy.flatten(), keep_count(remaining, sparsity)).reshape(canonical.shape)


def _slot_energy(value: Tensor, part: Slices, slots: int) -> Tensor:
    """Squared norm of each slot's share of one parameter: [slots] float64."""
    energy = energy_along(value, (part.axis,)).double()
    inside = part.slot >= 0
    return torch.zeros(slots, dtype=torch.float64, device=value.device).index_add_(
        0, part.slot.clamp_min(0), torch.where(inside, energy, 0.0)
    )


def lone_ranges(group: Group) -> list[frozenset[int]]:
    """The ranges of slots of which one at least must stay: no module may lose all its filters or inputs.

    One range where every member spans all slots; one for each branch of a concat.
    """
    spans = {frozenset(m.slot) for m in group.members if m.role in ("out", "depthwise") or len(m.index) == m.width}
    return sorted((span for span in spans if not any(other < span for other in spans)), key=min)


def least_slots(group: Group, align: int = 1) -> int:
    """The fewest slots that can stay: one of each range, rounded up to a multiple of `align`, capped at dense."""
    return min(group.slots, math.ceil(len(lone_ranges(group)) / align) * align)
