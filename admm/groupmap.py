"""What filter removal touches: the coupled groups of a network, as plain frozen data with JSON in and out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from admm.errors import GroupError

Role = Literal["out", "in", "norm", "depthwise"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Member:
    """One module's part in a group: its channel `index[i]` lives and dies with slot `slot[i]`.

    `out`: filters of a convolution or Linear; `in`: input channels of a consumer (several indices a slot for
    a Linear after flatten); `norm`: BatchNorm features and the like; `depthwise`: filters and channels at once.
    `width` is the module's dense channel count on that side: a member may own a part of it only (concat).
    """

    module: str
    role: Role
    index: tuple[int, ...]
    slot: tuple[int, ...]
    width: int


@dataclass(frozen=True, slots=True)
class Group:
    """Layers whose filters are removed together, named by the first one in model order."""

    name: str
    slots: int
    members: tuple[Member, ...]

    @property
    def owners(self) -> tuple[Member, ...]:
        """The members that produce filters; none of them may become empty."""
        return tuple(member for member in self.members if member.role in ("out", "depthwise"))


@dataclass(frozen=True)
class GroupMap:
    """All coupled groups of one network, and by name the layers whose filters cannot be removed.

    `excluded` maps such a layer to its one-line reason; `layers` lists all prunable layers in model order, so
    every layer is owner in exactly one group or excluded.
    """

    groups: Mapping[str, Group]
    excluded: Mapping[str, str]
    layers: tuple[str, ...]
    _group_of: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", MappingProxyType(dict(self.groups)))
        object.__setattr__(self, "excluded", MappingProxyType(dict(self.excluded)))
        owned = {owner.module: name for name, group in self.groups.items() for owner in group.owners}
        object.__setattr__(self, "_group_of", MappingProxyType(owned))

    def group_of(self, layer: str) -> Group | None:
        """The group that owns this layer's filters; None where they cannot be removed."""
        name = self._group_of.get(layer)
        return None if name is None else self.groups[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return GroupMap, (dict(self.groups), dict(self.excluded), self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` gives back an equal map."""
        return {
            "groups": [
                {
                    "name": group.name,
                    "slots": group.slots,
                    "members": [
                        {
                            "module": member.module,
                            "role": member.role,
                            "index": list(member.index),
                            "slot": list(member.slot),
                            "width": member.width,
                        }
                        for member in group.members
                    ],
                }
                for group in self.groups.values()
            ],
            "excluded": dict(self.excluded),
            "layers": list(self.layers),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> GroupMap:
        """Read what `to_dict` wrote; `GroupError` in one line where the content is something else."""
        try:
            groups = [_group_of_dict(group) for group in content["groups"]]
            excluded = {str(name): str(reason) for name, reason in content["excluded"].items()}
            layers = tuple(str(name) for name in content["layers"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise GroupError(f"not a group map: {type(error).__name__}: {error}") from None
        return cls({group.name: group for group in groups}, excluded, layers)


def _group_of_dict(content: Mapping[str, Any]) -> Group:
    slots = int(content["slots"])
    members = []
    for raw in content["members"]:
        index, slot = tuple(map(int, raw["index"])), tuple(map(int, raw["slot"]))
        member = Member(str(raw["module"]), raw["role"], index, slot, int(raw["width"]))
        inside = all(0 <= i < member.width for i in index) and all(0 <= s < slots for s in slot)
        if member.role not in ROLES or len(index) != len(slot) or not inside:
            raise ValueError(f"member {member.module!r} ({member.role!r}) does not fit its group")
        members.append(member)
    return Group(str(content["name"]), slots, tuple(members))
