"""`Kept`: the indices that remain, module by module; from group decisions, or read with distrust from JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from admm.errors import GroupError
from admm.groupmap import GroupMap
from admm.messages import nearest
from admm.slicing import Kind, kind_of, obstacle, select_obstacle, shared_parameters, width_of

#: Module name -> what remains of it, as ascending dense indices: "out" filters (or features of a norm), "in"
#: input channels left by its producers, "select" input channels left by its own `channel` sparsity.
#: Only what loses something is listed.
Kept = dict[str, dict[str, list[int]]]

_ALLOWED: Mapping[Kind, tuple[str, ...]] = {
    "layer": ("out", "in", "select"),
    "depthwise": ("out",),
    "norm": ("out",),
    "grouped": (),
}


def kept_from_slots(groups: GroupMap, slots: Mapping[str, Sequence[bool]]) -> Kept:
    """The remaining indices of every module, from one keep flag a slot of each named group.

    Groups not named stay whole. Raises `GroupError` for an unknown group, a wrong number of flags, and a
    module that would lose every channel.
    """
    gone: dict[tuple[str, str], set[int]] = {}
    widths: dict[tuple[str, str], int] = {}
    for name, keep in slots.items():
        group = groups.groups.get(name)
        if group is None:
            reason = groups.excluded.get(name) or nearest(name, groups.groups)
            raise GroupError(f"no group is called {name!r}: {reason}")
        if len(keep) != group.slots:
            raise GroupError(f"group {name!r} has {group.slots} slots, got {len(keep)} keep flags")
        for member in group.members:
            key = (member.module, "in" if member.role == "in" else "out")
            widths[key] = member.width
            lost = {i for i, slot in zip(member.index, member.slot, strict=True) if not keep[slot]}
            gone.setdefault(key, set()).update(lost)
    kept: Kept = {}
    for (module, side), lost in gone.items():
        if len(lost) == widths[module, side]:
            what = "filters" if side == "out" else "input channels"
            raise GroupError(f"{module!r} would lose all its {len(lost)} {what}: keep at least one")
        if lost:
            kept.setdefault(module, {})[side] = [i for i in range(widths[module, side]) if i not in lost]
    return kept


def kept_of_json(obj: Any, model: nn.Module) -> Kept:
    """Check what an untrusted plan.json calls `kept` against the dense model; drops entries that keep all.

    Raises `GroupError` naming the module for anything that `compact` could not obey exactly: unknown modules
    and sides, wrong types, indices out of range, repeated, unsorted or none.
    """
    if not isinstance(obj, Mapping):
        raise GroupError(f"kept maps module names to indices, got {type(obj).__name__}")
    modules = dict(model.named_modules())
    shared = shared_parameters(model)
    kept: Kept = {}
    for name, sides in obj.items():
        if not isinstance(name, str) or name not in modules:
            raise GroupError(f"kept names {name!r}, which the model has not: {nearest(name, modules)}")
        checked = _check_module(name, modules[name], sides)
        if checked and name in shared:
            raise GroupError(f"{name!r} cannot be made smaller: {shared[name]}")
        if checked:
            kept[name] = checked
    return kept


def _check_module(name: str, module: nn.Module, sides: Any) -> dict[str, list[int]]:
    if not isinstance(sides, Mapping):
        raise GroupError(f"kept of {name!r} maps sides to indices, got {type(sides).__name__}")
    kind = kind_of(module)
    allowed = () if kind is None else _ALLOWED[kind]
    checked: dict[str, list[int]] = {}
    for side, index in sides.items():
        if side not in allowed:
            what = type(module).__name__ + (f", {kind}" if kind in ("grouped", "depthwise") else "")
            can = f"use one of {', '.join(allowed)}" if allowed else "nothing of it can be removed"
            raise GroupError(f"kept of {name!r} ({what}) says {side!r}: {can}")
        width = width_of(module, "out" if side == "out" else "in")
        checked[side] = _check_index(f"kept of {name!r}, side {side!r}", index, width)
        if len(checked[side]) == width:
            del checked[side]
    if "select" in checked and "in" in checked and not set(checked["select"]) & set(checked["in"]):
        raise GroupError(f"kept of {name!r}: none of the channels that arrive is selected: keep one")
    if checked:
        problem = obstacle(module) or (select_obstacle(module) if "select" in checked else None)
        if problem is not None:
            raise GroupError(f"{name!r} cannot be made smaller: {problem}")
    return checked


def _check_index(where: str, index: Any, width: int) -> list[int]:
    if not isinstance(index, list | tuple):
        raise GroupError(f"{where} must be a list of indices, got {type(index).__name__}")
    if not index:
        raise GroupError(f"{where} is empty: keep at least one of {width}")
    last = -1
    for value in index:
        if isinstance(value, bool) or not isinstance(value, int):
            raise GroupError(f"{where}: an index is a whole number, got {str(value)[:40]!r}")
        if not 0 <= value < width:
            raise GroupError(f"{where}: index {str(value)[:40]} lies outside [0, {width})")
        if value <= last:
            raise GroupError(f"{where}: indices must ascend, got {value} after {last}")
        last = value
    return list(index)
