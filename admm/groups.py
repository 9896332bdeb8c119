"""Find the coupled groups of a network: traced with torch-pruning, then proved one by one and all together."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from admm.coupling import Channel, Coupling, couple
from admm.groupmap import Group, GroupMap, Member, Role
from admm.kept import kept_from_slots
from admm.messages import one_line
from admm.slicing import prunable_layers, width_of
from admm.verify import Prover, random_slots

__all__ = ["Group", "GroupMap", "Member", "find_groups"]

#: Share of slots kept in the removals of all groups at once. The extremes keep one slot or remove one: even halves
#: can hide a `chunk` or a shuffle, and a single channel broadcasts.
JOINT_PROOFS = (0.0, 0.35, 0.65, 1.0)
#: Networks tried until the removal shows in the output at all (dead ReLUs can hide it).
ATTEMPTS = 6
_OWNING: tuple[Role, ...] = ("out", "depthwise")


def find_groups(model: nn.Module, example_input: Tensor, *, seed: int = 0) -> GroupMap:
    """The groups of layers whose filters must be removed together, each one proved, and the layers left out.

    `example_input` [1, ...] is what the model takes. Nothing is believed because it was traced: per group, and for
    all groups together, a randomised float64 copy with the removed parts masked must equal the compacted copy to
    1e-9. What fails or cannot be traced is `excluded` by name with its reason; such layers can still be pruned by
    `channel`, `shape` and `unstructured`. The model, its mode and the global random state are left as they were.
    """
    layers = prunable_layers(model)
    names = tuple(layers)
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
        try:
            traced = copy.deepcopy(model).cpu()
            coupling = couple(traced, example_input.detach().cpu().clone())
            prover = Prover(model, example_input, seed=seed)
        except Exception as error:
            reason = f"the network cannot be traced: {one_line(error)}"
            return GroupMap({}, dict.fromkeys(names, reason), names)
        candidates, excluded = _candidates(traced, coupling, names)
        proved: list[Group] = []
        for group in candidates:
            reason_or_none = _prove_alone(prover, group, names)
            if reason_or_none is None:
                proved.append(group)
            else:
                excluded.update({owner.module: reason_or_none for owner in group.owners})
        proved = _prove_together(prover, proved, excluded, names)
    ordered = {name: excluded[name] for name in names if name in excluded}
    return GroupMap({group.name: group for group in proved}, ordered, names)


def _candidates(model: nn.Module, coupling: Coupling, names: tuple[str, ...]) -> tuple[list[Group], dict[str, str]]:
    """Components joined into groups by the layers that own them, in model order; blocked ones are excluded."""
    excluded = {name: coupling.failed[name] for name in names if name in coupling.failed}
    leader = {name: name for name in names}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    owned: list[tuple[list[str], list[Channel]]] = []
    for component in coupling.components:
        owners = sorted({coupling.names[c.node] for c in component if c.role in _OWNING}, key=names.index)
        if owners:
            owned.append((owners, component))
            for other in owners[1:]:
                leader[find(other)] = find(owners[0])
    by_leader: dict[str, list[list[Channel]]] = {}
    for owners, component in owned:
        by_leader.setdefault(find(owners[0]), []).append(component)
    groups = []
    for components in by_leader.values():
        owners = sorted(
            {coupling.names[c.node] for component in components for c in component if c.role in _OWNING},
            key=names.index,
        )
        reason = _blocked(coupling, components, owners)
        if reason is None:
            groups.append(_group(model, coupling, components, names))
            continue
        for owner in owners:
            excluded.setdefault(owner, reason)
    groups.sort(key=lambda group: names.index(group.name))
    return groups, excluded


def _blocked(coupling: Coupling, components: list[list[Channel]], owners: list[str]) -> str | None:
    for name in owners:
        if name in coupling.failed:
            return f"coupled with {name!r}: {coupling.failed[name]}" if len(owners) > 1 else coupling.failed[name]
    reasons = sorted(
        {coupling.blocked[c.node] for component in components for c in component if c.node in coupling.blocked}
    )
    return reasons[0] if reasons else None


def _group(model: nn.Module, coupling: Coupling, components: list[list[Channel]], names: tuple[str, ...]) -> Group:
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}

    def first_owner(component: list[Channel]) -> tuple[int, int]:
        return min((order[coupling.names[c.node]], c.idx) for c in component if c.role in _OWNING)

    parts: dict[tuple[int, str, Role], list[tuple[int, int]]] = {}
    for slot, component in enumerate(sorted(components, key=first_owner)):
        for channel in component:
            if channel.role is not None:
                name = coupling.names[channel.node]
                parts.setdefault((order[name], name, channel.role), []).append((channel.idx, slot))
    members = tuple(
        Member(
            name,
            role,
            tuple(i for i, _ in sorted(pairs)),
            tuple(s for _, s in sorted(pairs)),
            width_of(model.get_submodule(name), "in" if role == "in" else "out"),
        )
        for (_, name, role), pairs in sorted(parts.items())
    )
    owners = [member.module for member in members if member.role == "out"]
    owners += [member.module for member in members if member.role == "depthwise"]
    return Group(owners[0], len(components), members)


def _prove_alone(prover: Prover, group: Group, names: tuple[str, ...]) -> str | None:
    """Why the group cannot be believed, or None."""
    alone = GroupMap({group.name: group}, {}, names)
    for attempt in range(ATTEMPTS):
        if attempt:
            try:
                prover.refresh()
            except Exception as error:
                return f"nothing can be proved: {one_line(error)}"
        flags = random_slots(group, prover.generator)
        if flags is None:
            return f"nothing can be removed from {group.name!r}: it has too few filters"
        outcome = prover.compare(kept_from_slots(alone, {group.name: flags}))
        if outcome.reason is not None or outcome.visible:
            return outcome.reason
    return "removing its filters never changed the output on random data: nothing can be proved"


def _prove_together(
    prover: Prover, groups: list[Group], excluded: dict[str, str], names: tuple[str, ...]
) -> list[Group]:
    """All groups at once; where that fails, build the set up again and leave out what breaks it."""
    if _joint_reason(prover, groups, names) is None:
        return groups
    believed: list[Group] = []
    for group in groups:
        reason = _joint_reason(prover, [group], names)
        if reason is None:
            reason = _joint_reason(prover, [*believed, group], names)
            reason = None if reason is None else f"together with other groups: {reason}"
        if reason is None:
            believed.append(group)
        else:
            excluded.update({owner.module: reason for owner in group.owners})
    return believed


def _joint_reason(prover: Prover, groups: list[Group], names: tuple[str, ...]) -> str | None:
    whole = GroupMap({group.name: group for group in groups}, {}, names)
    for keep in JOINT_PROOFS:
        slots = {group.name: random_slots(group, prover.generator, keep) for group in groups}
        kept = kept_from_slots(whole, {name: flags for name, flags in slots.items() if flags is not None})
        reason = prover.compare(kept).reason
        if reason is not None:
            return reason
    return None
