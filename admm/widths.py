"""How wide every layer becomes under a plan, without pruning it: what a forecast of time asks by thousands.

Units are ranked once, by magnitude in the dense network; a plan then keeps the first so many of each ranking. Where
plans remove filters only, and every member of a group spans all of its slots, that is what the hard prune gives to the
filter. Elsewhere choices meet (see `projector`), and a ranking of the dense weights is near, not exact: how the slots
of a concatenation fall to its branches, and which filters of a coupled group no `channel` choice reads any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from admm.connections import slot_of
from admm.cost import LayerShape, layer_shapes
from admm.errors import PlanError
from admm.groupmap import GroupMap
from admm.projection import keep_count
from admm.projector import least_slots
from admm.slicing import kind_of, prunable_layers
from admm.target import Target
from admm.unit_sets import Chosen, UnitSets

Flags = NDArray[np.bool_]
#: Structures that change how wide a layer is, or which of its columns are zero.
SHAPING = ("filter", "channel", "shape")
#: Combinations remembered of all groups together, before they are forgotten and worked out anew.
REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class Width:
    """What is left of one layer."""

    filters: int
    channels: int
    """Input channels that its weight reads, zero or not; of one group where it is grouped."""
    live: int
    """Channels in which at least one column is kept: fewer than `channels` by `shape` only."""
    columns: int
    """GEMM columns (input channel x kernel position) that are kept."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """One decision: its units, most worth first, and how many stay at each of its steps."""

    structure: str
    order: NDArray[np.int64]
    counts: tuple[int, ...]
    kept: Flags
    """The first `counts` of them, [steps, units]."""


@dataclass(slots=True)
class _Layer:
    """A layer, and where its filters and channels lie in groups: [(group, slot of each or -1)]."""

    shape: LayerShape
    grouped: bool
    out: list[tuple[str, NDArray[np.int64]]] = field(default_factory=list)
    into: list[tuple[str, NDArray[np.int64]]] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    """Numbers of its own decisions on channels and columns."""


class Widths:
    """Widths of all layers at steps of given decisions.

    `decisions` are (layer or group, structure, the sparsities of its steps) in any order, each once; `unstructured`
    ones change no width. `steps[i]` below is a step of decision i. Raises `PlanError` for a decision that the network
    does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: GroupMap,
        decisions: Sequence[tuple[str, str, Sequence[float]]],
        *,
        align: int = 1,
    ) -> None:
        self._align = align
        self._groups = groups.groups
        modules, shapes = prunable_layers(model), layer_shapes(model)
        self._layers = {n: _Layer(shapes[n], kind_of(m) in ("grouped", "depthwise")) for n, m in modules.items()}
        for group in groups.groups.values():
            for member in group.members:
                if member.module in self._layers:
                    slot = slot_of(member, torch.device("cpu")).numpy()
                    if member.role != "in":
                        self._layers[member.module].out.append((group.name, slot))
                    elif not self._layers[member.module].grouped:
                        self._layers[member.module].into.append((group.name, slot))
        self._choices: dict[int, _Choice] = {}
        self._of_group: dict[str, int] = {}
        rankings = _rankings(model, groups, align)
        for number, (name, structure, sparsities) in enumerate(decisions):
            if structure not in SHAPING:
                continue
            if (structure, name) not in rankings and structure == "shape":
                structure = "channel"  # which it is on Linear
            if (structure, name) not in rankings:
                raise PlanError(f"{name!r} has no {structure} to remove: build the space of this network")
            self._choices[number] = self._choice(name, structure, sparsities, rankings[structure, name])
            if structure == "filter":
                self._of_group[name] = number
            else:
                self._layers[name].own.append(number)
        self._readers = {
            name: [layer for layer, side in self._layers.items() if any(g == name for g, _ in side.into)]
            for name in groups.groups
        }
        self._settled: dict[str, tuple[int, ...]] = {name: self._touching(name) for name in groups.groups}
        self._known: dict[tuple[str, tuple[int, ...]], Flags] = {}
        self.depends: dict[str, tuple[int, ...]] = {name: self._depends(name) for name in self._layers}

    def width(self, layer: str, steps: Sequence[int]) -> Width:
        """One layer at these steps; it depends on the decisions `depends[layer]` alone."""
        of = self._layers[layer]
        filters = of.shape.filters
        for group, slot in of.out:
            filters -= int((~self._slots(group, steps))[slot[slot >= 0]].sum())
        if of.grouped:
            return Width(filters, of.shape.channels, of.shape.channels, of.shape.channels * of.shape.kernel)
        arriving = self._arriving(of, steps, settled=True)
        channels, columns = self._columns(of, arriving, steps)
        return Width(filters, int(channels.sum()), int(columns.any(1).sum()), int(columns.sum()))

    def _choice(self, name: str, structure: str, sparsities: Sequence[float], order: NDArray[np.int64]) -> _Choice:
        least = least_slots(self._groups[name], self._align) if structure == "filter" else 1
        counts = tuple(max(keep_count(len(order), sparsity, self._align), least) for sparsity in sparsities)
        kept = np.zeros((len(counts), len(order)), dtype=np.bool_)
        for flags, count in zip(kept, counts, strict=True):
            flags[order[:count]] = True
        return _Choice(structure, order, counts, kept)

    def _touching(self, group: str) -> tuple[int, ...]:
        """Decisions that settle which slots of a group stay: its own, and what its readers leave unread."""
        numbers = {self._of_group[group]} if group in self._of_group else set[int]()
        readers = [self._layers[name] for name in self._readers[group]]
        if readers and all(reader.own for reader in readers):
            for reader in readers:
                numbers.update(reader.own, (self._of_group[g] for g, _ in reader.into if g in self._of_group))
        return tuple(sorted(numbers))

    def _depends(self, name: str) -> tuple[int, ...]:
        layer = self._layers[name]
        numbers = set(layer.own)
        for group, _ in (*layer.out, *layer.into):
            numbers.update(self._settled[group])
        return tuple(sorted(numbers))

    def _asked(self, group: str, steps: Sequence[int]) -> Flags:
        """Slots that the plan's own choice keeps."""
        number = self._of_group.get(group)
        if number is None:
            return np.ones(self._groups[group].slots, dtype=np.bool_)
        kept: Flags = self._choices[number].kept[steps[number]]
        return kept

    def _slots(self, group: str, steps: Sequence[int]) -> Flags:
        """Slots that stay: those asked for, without whole blocks of what nobody reads (`purify`)."""
        numbers = self._settled[group]
        if numbers == ((self._of_group[group],) if group in self._of_group else ()):
            return self._asked(group, steps)
        key = (group, tuple(steps[n] for n in numbers))
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known[key] = self._read(group, steps)
        return known

    def _read(self, group: str, steps: Sequence[int]) -> Flags:
        asked = self._asked(group, steps)
        read = np.zeros_like(asked)
        for name in self._readers[group]:
            layer = self._layers[name]
            _, columns = self._columns(layer, self._arriving(layer, steps, settled=False), steps)
            live = columns.any(1)
            for other, slot in layer.into:
                if other == group:
                    read[slot[live & (slot >= 0)]] = True
        lost = asked & ~read
        spared = min(-int((asked & read).sum()) % self._align, int(lost.sum()))
        return asked & ~(lost & (lost.cumsum() > spared))

    def _arriving(self, layer: _Layer, steps: Sequence[int], *, settled: bool) -> Flags:
        """Input channels that some filter before the layer still makes: [channels]."""
        arriving = np.ones(layer.shape.channels, dtype=np.bool_)
        for group, slot in layer.into:
            kept = self._slots(group, steps) if settled else self._asked(group, steps)
            arriving &= np.where(slot >= 0, kept[np.maximum(slot, 0)], True)
        return arriving

    def _columns(self, layer: _Layer, arriving: Flags, steps: Sequence[int]) -> tuple[Flags, Flags]:
        """Channels [channels] and columns [channels, kernel] that the layer's own choices leave of what arrives."""
        channels, columns = arriving, np.ones((layer.shape.channels, layer.shape.kernel), dtype=np.bool_)
        for number in layer.own:
            choice = self._choices[number]
            order, count = choice.order, choice.counts[steps[number]]
            if choice.structure == "channel":
                channels = channels & _first_there(order, arriving, count)
            else:
                there = np.repeat(channels, layer.shape.kernel)
                columns = _first_there(order, there, count).reshape(columns.shape)
        return channels, columns & channels[:, None]


def _first_there(order: NDArray[np.int64], there: Flags, count: int) -> Flags:
    """Flags of the first `count` in `order` of the units that are there."""
    found = np.zeros_like(there)
    found[order[there[order]][:count]] = True
    return found


def _rankings(model: nn.Module, groups: GroupMap, align: int) -> Mapping[tuple[str, str], NDArray[np.int64]]:
    """(structure, layer or group) -> its units, the most energy first, each tensor by shares of its own energy."""
    sets = UnitSets(model, groups, Target(compression_x=1.0, structures=SHAPING), align=align)
    values = {name: p.detach().cpu() for name, p in model.named_parameters() if name in sets.variables}
    rho = {name: 1.0 / max(float(v.square().sum()), 1e-12) for name, v in values.items()}
    squares, found = sets.squares(values), {}
    for number, units in enumerate(sets.sets):
        order = sets.rank(number, squares, rho, Chosen()).order
        assert order is not None, "only single weights have no order"
        found[units.structure, units.name] = order.numpy()
    return found
