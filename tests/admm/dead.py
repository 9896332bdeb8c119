"""What a purified choice must not hold: weights that are kept and serve nothing."""

from __future__ import annotations

from torch import Tensor, nn

from admm.connections import kept_flags, prunable_weights
from admm.groupmap import GroupMap
from admm.projector import Masks
from admm.purify import purify


def dead_weights(model: nn.Module, groups: GroupMap, masks: Masks) -> dict[str, Tensor]:
    """Weights that `masks` keeps and nothing needs: prunable weight name -> bool of the weight's shape.

    Only layers that have such weights appear. A budget spent on them is lost.
    """
    after = purify(model, groups, masks)
    found: dict[str, Tensor] = {}
    for name, module in prunable_weights(model):
        if after.parameters.get(name) is not masks.parameters.get(name):
            useless = kept_flags(name, module, masks) & ~kept_flags(name, module, after)
            if bool(useless.any()):
                found[name] = useless
    return found
