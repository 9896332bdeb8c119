"""Which modules can be sliced, along which axes, and the slicing itself: the one place that knows layer types.

A weight is seen as V = [filters, channels, *kernel] (Linear: no kernel). PyTorch stores transposed convolutions
as [channels, filters, *kernel]; `filter_axis` and `channel_axis` say where to look.
"""

from __future__ import annotations

from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy

Kind = Literal["layer", "depthwise", "grouped", "norm"]
Side = Literal["out", "in"]

_PLAIN = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})


def is_prunable(module: nn.Module) -> TypeGuard[_ConvNd | nn.Linear]:
    """Convolutions (1-3d, transposed too) and Linear; not the projection that attention calls by its weight."""
    return isinstance(module, _ConvNd | nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


def prunable_layers(model: nn.Module) -> dict[str, _ConvNd | nn.Linear]:
    """All prunable layers by name, in model order; a layer registered twice has its first name."""
    return {name: module for name, module in model.named_modules() if is_prunable(module)}


def kind_of(module: nn.Module) -> Kind | None:
    """How the module takes part in filter removal; None: it has nothing that could be sliced.

    "depthwise" means groups == in == out; "grouped" is any other groups > 1 and is never sliced. "norm" keeps one
    value a channel: BatchNorm, InstanceNorm, PReLU with more than one parameter.
    """
    if isinstance(module, _ConvNd):
        if module.groups == 1:
            return "layer"
        return "depthwise" if module.groups == module.in_channels == module.out_channels else "grouped"
    if is_prunable(module):
        return "layer"
    if isinstance(module, _NormBase):
        return "norm"
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return "norm"
    return None


def filter_axis(module: nn.Module) -> int:
    """The axis of `module.weight` that counts filters: 0, or 1 for transposed convolutions.

    A depthwise transposed convolution is stored [filters, 1, *kernel] like a plain one.
    """
    return 1 if isinstance(module, _ConvTransposeNd) and kind_of(module) != "depthwise" else 0


def channel_axis(module: nn.Module) -> int:
    """The axis of `module.weight` that counts input channels: the other one of the first two."""
    return 1 - filter_axis(module)


def input_axis(module: nn.Module) -> int:
    """The axis of the layer's *input* that counts channels, from the end: right with and without a batch."""
    return 1 - module.weight.ndim if isinstance(module, _ConvNd) else -1


def width_of(module: nn.Module, side: Side) -> int:
    """Filters (`out`) or input channels (`in`) of a sliceable module; a norm's one width on both sides."""
    if isinstance(module, _ConvNd):
        return module.out_channels if side == "out" else module.in_channels
    if isinstance(module, nn.Linear):
        return module.out_features if side == "out" else module.in_features
    if isinstance(module, _NormBase):
        return module.num_features
    if isinstance(module, nn.PReLU):
        return module.num_parameters
    raise TypeError(f"{type(module).__name__} has no channels that could be removed")


def obstacle(module: nn.Module) -> str | None:
    """Why a module of a known kind cannot be sliced all the same: weights that are computed or not its own."""
    if "weight" not in module._parameters:
        return "its weight is computed (a parametrization or torch.nn.utils.prune): make it permanent first"
    if any(True for _ in module.children()):
        return f"its class {type(module).__name__} holds modules of its own"
    known = _STATISTICS if isinstance(module, _NormBase) else frozenset[str]()
    own = sorted((set(module._parameters) - {"weight", "bias"}) | (set(module._buffers) - known))
    if own:
        return f"its class {type(module).__name__} has {own[0]!r} beside weight and bias"
    if any(is_lazy(parameter) for parameter in module._parameters.values() if parameter is not None):
        return "it is lazy and not initialised: run the model once first"
    return None


def select_obstacle(module: nn.Module) -> str | None:
    """Why `channel` sparsity cannot drop this layer's inputs by indexing, or None.

    No group proof covers a single layer, so only the plain classes of torch.nn are believed: a subclass may use
    its weight in another way (weight standardisation divides by a spread over all input channels).
    """
    kind = kind_of(module)
    if kind in ("grouped", "depthwise"):
        return "in a grouped convolution each group of filters has input channels of its own"
    if type(module) not in _PLAIN:
        return f"its class {type(module).__name__} is no plain layer of torch.nn, so indexing its input is unproved"
    return obstacle(module)


def shared_parameters(model: nn.Module) -> dict[str, str]:
    """Module name -> one line about a parameter of it that another module holds too (tied weights)."""
    holders: dict[int, list[tuple[str, str]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((name, key))
    return {
        name: f"its {key} is shared with {next((o for o, _ in held if o != name), name)!r}"
        for held in holders.values()
        if len(held) > 1
        for name, key in held
    }


def slice_module(module: nn.Module, out: Tensor | None, channels: Tensor | None) -> None:
    """Keep only the filters `out` and the input channels `channels` (int64 indices; None: all), in place.

    A depthwise convolution and a norm take `out` alone. Parameters become new contiguous leaves with the same
    requires_grad; the module's size attributes follow.
    """
    kind = kind_of(module)
    if out is not None:
        for key in ("weight", "bias"):
            _cut(module, key, filter_axis(module) if key == "weight" else 0, out)
        if isinstance(module, _NormBase):
            for key in ("running_mean", "running_var"):
                value = module._buffers.get(key)
                if value is not None:
                    module._buffers[key] = value.index_select(0, out.to(value.device))
    if channels is not None:
        _cut(module, "weight", channel_axis(module), channels)
    kept_out = width_of(module, "out") if out is None else len(out)
    if isinstance(module, _ConvNd):
        module.out_channels = kept_out
        if kind == "depthwise":
            module.in_channels = module.groups = kept_out
        elif channels is not None:
            module.in_channels = len(channels)
    elif isinstance(module, nn.Linear):
        module.out_features = kept_out
        if channels is not None:
            module.in_features = len(channels)
    elif isinstance(module, _NormBase):
        module.num_features = kept_out
    elif isinstance(module, nn.PReLU):
        module.num_parameters = kept_out


def _cut(module: nn.Module, key: str, axis: int, index: Tensor) -> None:
    old = module._parameters.get(key)
    if old is not None:
        kept = old.detach().index_select(axis, index.to(old.device)).contiguous()
        module._parameters[key] = nn.Parameter(kept, requires_grad=old.requires_grad)


def removed(kept: list[int], width: int, device: torch.device) -> Tensor:
    """The indices of range(width) that are not kept, as int64 on `device`."""
    gone = torch.ones(width, dtype=torch.bool, device=device)
    gone[torch.tensor(kept, dtype=torch.int64, device=device)] = False
    return gone.nonzero().flatten()
