"""From what a projection keeps to what the shrunk network looks like: indices for `compact`, zeros that stay masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from admm.compact import SelectedInput
from admm.kept import Kept
from admm.plan import PruningPlan
from admm.projector import Masks
from admm.slicing import channel_axis, filter_axis

#: Structures that leave zeros in the shrunk layer.
LEAVE_ZEROS = ("shape", "unstructured", "n:m")


def add_selected(kept: Kept, masks: Masks) -> Kept:
    """`kept` with each layer's own `channel` choice added under "select"; layers that keep all are left out."""
    for layer, flags in masks.channels.items():
        if not bool(flags.all()):
            kept.setdefault(layer, {})["select"] = flags.nonzero().flatten().tolist()
    return kept


def zeros_after_compaction(
    dense: nn.Module, small: nn.Module, kept: Kept, masks: Masks, plan: PruningPlan
) -> dict[str, Tensor]:
    """Masks of the zeros that stay, by the parameter names of `small`: bool, shaped as the small weights.

    `dense` gives the shapes the masks were made for; only layers with a structure that leaves zeros appear.
    """
    zeros: dict[str, Tensor] = {}
    for layer in plan:
        if not any(structure in plan[layer] for structure in LEAVE_ZEROS):
            continue
        module = dense.get_submodule(layer)
        weight = module.weight
        assert isinstance(weight, Tensor)
        mask = masks.parameters[f"{layer}.weight"].expand(weight.shape)
        sides = kept.get(layer, {})
        if "out" in sides:
            mask = mask.index_select(filter_axis(module), torch.tensor(sides["out"], device=mask.device))
        if "in" in sides or "select" in sides:
            chosen = set(sides.get("in", range(weight.shape[channel_axis(module)])))
            chosen &= set(sides.get("select", chosen))
            mask = mask.index_select(channel_axis(module), torch.tensor(sorted(chosen), device=mask.device))
        inner = small.get_submodule(layer)
        name = f"{layer}.layer.weight" if isinstance(inner, SelectedInput) else f"{layer}.weight"
        if not bool(mask.all()):
            zeros[name] = mask.contiguous()
    return zeros
