"""The search space: one dimension for each structure of each layer, and the plans they stand for.

A dimension counts steps of removal from dense: step 0 keeps all, each further step removes one block of the device's
channel block (`filter`, `channel`), one `sparsity.step` (`shape`, `unstructured`), or goes to the next pattern (`n:m`).
Only plans that are already aligned are drawn, so two proposals never turn out to be the same network after rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from admm.groupmap import GroupMap
from admm.plan import N_OF_M, PATTERNS, PruningPlan
from admm.projection import effective_sparsity, keep_count
from admm.projector import least_slots
from admm.slicing import filter_axis
from admm.structures import unit_count
from admm.validate import weight_obstacle
from search.errors import UserError
from search.precision import PRECISIONS, Precision

BLOCKED = ("filter", "channel")
#: The sampler's name for the choice between fp32 and int8: no layer's dimension, since none has a slash-free name.
PRECISION = "precision"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One structure of one layer (or coupled group): the sparsities that may be drawn, rising from the least."""

    layer: str
    structure: str
    sparsities: tuple[float, ...]

    @property
    def name(self) -> str:
        """The sampler's name for it: `conv1/filter`."""
        return f"{self.layer}/{self.structure}"

    def nearest(self, sparsity: float) -> int:
        """The largest step that removes no more than `sparsity`; the first step if all remove more."""
        below = [i for i, s in enumerate(self.sparsities) if s <= sparsity + 1e-6]
        return below[-1] if below else 0


@dataclass(frozen=True, slots=True)
class Space:
    """All dimensions of one search, in model order, and the precisions its trials may be shipped in."""

    dimensions: tuple[Dimension, ...]
    precisions: tuple[Precision, ...] = PRECISIONS[:1]

    @property
    def sizes(self) -> dict[str, int]:
        """Steps of everything that is drawn, by the sampler's names: the dimensions, and where there is a choice the
        precision."""
        sizes = {d.name: len(d.sparsities) for d in self.dimensions}
        return sizes | {PRECISION: len(self.precisions)} if len(self.precisions) > 1 else sizes

    def precision(self, params: Mapping[str, Any]) -> Precision:
        """What the file of these steps computes in."""
        return self.precisions[int(params.get(PRECISION, 0))]

    def identity(self, digest: str, precision: str, stretch: float = 1.0) -> str:
        """What makes two trials the same: the plan, its precision where both are searched, and a longer schedule."""
        same = f"{digest}/{precision}" if len(self.precisions) > 1 else digest
        return same if stretch == 1.0 else f"{same}/x{stretch:g}"

    def plan(self, params: Mapping[str, Any]) -> PruningPlan:
        """The plan that these steps stand for. Raises `KeyError` for a missing dimension."""
        layers: dict[str, dict[str, float]] = {}
        for d in self.dimensions:
            layers.setdefault(d.layer, {})[d.structure] = d.sparsities[int(params[d.name])]
        return PruningPlan(layers)

    def params(self, plan: PruningPlan, precision: str | None = None) -> dict[str, int]:
        """The nearest steps to a plan, never removing more than it says; the first precision unless one is named.

        Raises `ValueError` for a precision that this space does not hold.
        """
        return self._with(precision, {d.name: d.nearest(plan.sparsity(d.layer, d.structure)) for d in self.dimensions})

    def uniform(self, sparsity: float) -> dict[str, int]:
        """The same sparsity for every dimension, rounded to the space's steps."""
        return self._with(None, {d.name: d.nearest(sparsity) for d in self.dimensions})

    def _with(self, precision: str | None, steps: dict[str, int]) -> dict[str, int]:
        names: tuple[str, ...] = self.precisions
        if len(names) == 1:
            return steps
        return steps | {PRECISION: 0 if precision is None else names.index(precision)}

    def extreme(self, structures: Sequence[str] = BLOCKED) -> PruningPlan:
        """The plan that removes most in these structures: the smallest shapes the space can reach."""
        return self.plan({d.name: len(d.sparsities) - 1 if d.structure in structures else 0 for d in self.dimensions})

    def to_dict(self) -> list[dict[str, Any]]:
        """JSON-ready form, for profile.json."""
        return [{"layer": d.layer, "structure": d.structure, "sparsities": list(d.sparsities)} for d in self.dimensions]

    @classmethod
    def from_dict(cls, content: Sequence[Mapping[str, Any]], precisions: Sequence[Precision] = PRECISIONS[:1]) -> Space:
        """Read what `to_dict` wrote; the precisions are the job's, and stand beside it."""
        return cls(
            tuple(
                Dimension(layer=d["layer"], structure=d["structure"], sparsities=tuple(d["sparsities"]))
                for d in content
            ),
            tuple(precisions),
        )


def build_space(
    model: nn.Module,
    groups: GroupMap,
    layers: Sequence[str],
    structures: Sequence[str],
    *,
    least: float,
    most: float,
    step: float,
    align: int,
) -> tuple[Space, list[str]]:
    """The space over the chosen `layers`, and notes on what is left out and why.

    Raises `UserError` when nothing is left to search.
    """
    dimensions: list[Dimension] = []
    notes: list[str] = []
    modules = dict(model.named_modules())
    for layer in layers:
        for structure in structures:
            if structure == "filter":
                group = groups.group_of(layer)
                if group is None:
                    notes.append(f"{layer}: filters stay: {groups.excluded.get(layer, 'it belongs to no group')}")
                    continue
                held = [o.module for o in group.owners if o.module not in layers]
                if held:
                    notes.append(f"{layer}: filters stay: coupled with {held[0]!r}, which the job excludes")
                    continue
                if layer != group.name:
                    continue  # the group's dimension stands at its first member
                choices = _blocks(group.slots, least, most, align, least_slots(group, align))
            else:
                if structure == "shape" and "channel" in structures and isinstance(modules[layer], nn.Linear):
                    continue  # on Linear, shape is channel
                obstacle = weight_obstacle(model, layer, structure)
                if obstacle is not None:
                    notes.append(f"{layer}: no {structure} sparsity: {obstacle}")
                    continue
                choices = (
                    _patterns(least, most)
                    if structure == N_OF_M
                    else _weight_choices(modules[layer], structure, least, most, step, align)
                )
            if len(choices) > 1 or (choices and choices[0] > 0):
                dimensions.append(Dimension(layer=layer, structure=structure, sparsities=choices))
            elif structure == N_OF_M:
                known = ", ".join(f"{sparsity:g}" for sparsity in PATTERNS)
                notes.append(f"{layer}: no pattern n:m within [{least:g}, {most:g}]: they remove {known}")
            else:
                blocks = f" in blocks of {align}" if align > 1 and structure != "unstructured" else ""
                notes.append(f"{layer}: too narrow for {structure} sparsity within [{least:g}, {most:g}]{blocks}")
    if not dimensions:
        why = f" ({notes[0]})" if notes else ""
        raise UserError(
            f"nothing can be pruned with structures {', '.join(structures)} in the chosen layers{why}: "
            f"lower sparsity.align or choose others"
        )
    return Space(tuple(dimensions)), notes


def _patterns(least: float, most: float) -> tuple[float, ...]:
    """Dense and the patterns that hardware knows, within [least, most]: there is no step between them."""
    return tuple(s for s in (0.0, *sorted(PATTERNS)) if least - 1e-9 <= s <= most + 1e-9)


def _blocks(units: int, least: float, most: float, align: int, fewest: int = 1) -> tuple[float, ...]:
    """Sparsities whose kept count is a multiple of `align`, or the full width, within [least, most]."""
    kept = [units, *range((units - 1) // align * align, 0, -align)]
    choices = [effective_sparsity(units, k) for k in kept if k >= fewest]
    return tuple(s for s in choices if least - 1e-9 <= s <= most + 1e-9)


def _weight_choices(
    module: nn.Module, structure: str, least: float, most: float, step: float, align: int
) -> tuple[float, ...]:
    """Sparsities of one layer's weight; of two that keep the same count, the lower."""
    weight: Any = module.weight
    shape = tuple(weight.shape)
    if filter_axis(module) == 1:
        shape = (shape[1], shape[0], *shape[2:])
    units = unit_count(shape, structure)
    if structure == "channel":
        return _blocks(units, least, most, align)
    grid = [round(least + i * step, 6) for i in range(math.floor((most - least) / step + 1e-9) + 1)]
    if structure == "unstructured":
        # a fraction of what the other structures leave: there is no count to round to
        return tuple({keep_count(units, s): s for s in reversed(grid)}.values())[::-1]
    rounded = {effective_sparsity(units, keep_count(units, s, align)) for s in grid}
    return tuple(sorted(s for s in rounded if s >= least - 1e-9))
