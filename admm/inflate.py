"""The way back from a pruned network to the dense one's shape, so that it can be pruned further.

What was removed is zero there, as in the network that `mask_removed` leaves, and pruning by magnitude takes it first.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from admm.compact import compact, load_pruned, mask_removed, read_kept
from admm.errors import GroupError


@torch.no_grad()
def inflate(dense: nn.Module, folder: Path | str) -> nn.Module:
    """A copy of `dense` that computes what the pruned network in `folder` (of `save_pruned`) computes.

    `dense` is the network that was pruned, in its own shape; its weights are used nowhere. Removed filters have no
    weights and no BatchNorm offset, and their consumers no weights for them. Raises `GroupError` as `load_pruned` does.
    """
    small = load_pruned(dense, folder)
    kept = read_kept(dense, folder)
    large = copy.deepcopy(dense)
    mask_removed(large, kept)
    # Whatever cuts a network to size cuts the places of its elements alike, and so says where each has come from.
    places, size = _places(dense)
    where = compact(places, kept).state_dict()
    state = large.state_dict()
    names, starts = list(state), [0]
    for name in names:
        starts.append(starts[-1] + state[name].numel())
    if starts[-1] != size:
        raise GroupError(f"the network has {starts[-1]} elements in its state and {size} in its parameters and buffers")
    flat = {name: state[name].contiguous().view(-1) for name in names}
    bounds = torch.tensor(starts[1:])
    for name, values in small.state_dict().items():
        index = where[name].reshape(-1).long()
        if not len(index):
            continue
        source = names[int(torch.bucketize(index[0], bounds, right=True))]
        start = starts[names.index(source)]
        flat[source][index - start] = values.to(flat[source]).reshape(-1)
    large.load_state_dict({name: flat[name].view(state[name].shape) for name in names})
    return large.train(dense.training)


def _places(model: nn.Module) -> tuple[nn.Module, int]:
    """(the model with each element of its state replaced by the element's place in it, elements in all).

    Places are counted through the state dict in its order; float64 holds them exactly.
    """
    numbered = copy.deepcopy(model)
    offset = 0
    owners: dict[str, tuple[nn.Module, str]] = {}
    for prefix, module in numbered.named_modules(remove_duplicate=False):
        for part in (module._parameters, module._buffers):
            for key in part:
                owners[f"{prefix}.{key}" if prefix else key] = (module, key)
    for name, tensor in model.state_dict().items():
        place = torch.arange(offset, offset + tensor.numel(), dtype=torch.float64).view(tensor.shape)
        offset += tensor.numel()
        module, key = owners[name]
        if key in module._parameters:
            module._parameters[key] = nn.Parameter(place, requires_grad=False)
        else:
            module._buffers[key] = place
    return numbered, offset
