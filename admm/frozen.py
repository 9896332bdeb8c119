"""Layers that the user froze (`requires_grad` False on their weight) and that stay as they are."""

from __future__ import annotations

from torch import nn

from admm.groupmap import GroupMap

__all__ = ["frozen_layers", "without_frozen"]


def frozen_layers(model: nn.Module, groups: GroupMap) -> tuple[str, ...]:
    """The prunable layers whose weight is frozen, in model order."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    weights = {layer: parameters.get(f"{layer}.weight" if layer else "weight") for layer in groups.layers}
    return tuple(layer for layer, weight in weights.items() if weight is not None and not weight.requires_grad)


def without_frozen(model: nn.Module, groups: GroupMap) -> GroupMap:
    """The groups that leave every frozen layer whole, its inputs too; the owners of the others are `excluded`.

    Norms do not count: a frozen one loses the channels whose filters go and keeps the others' values.
    """
    frozen = frozen_layers(model, groups)
    kept, excluded = {}, dict(groups.excluded)
    for name, group in groups.groups.items():
        held = next((member.module for member in group.members if member.module in frozen), None)
        if held is None:
            kept[name] = group
            continue
        for owner in group.owners:
            alone = owner.module == held
            reason = (
                "its weight is frozen (requires_grad False)" if alone else f"coupled with {held!r}, which is frozen"
            )
            excluded[owner.module] = reason
    ordered = {layer: excluded[layer] for layer in groups.layers if layer in excluded}
    return GroupMap(kept, ordered, groups.layers)
