"""What a layer costs, as a table handed in from outside: admm knows weights and ideal MACs, and no latency.

A table is additive over layers and never falls when a layer grows. What the layers' sizes are is read off masks here,
so that what a projection leaves is charged for what it really keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from admm.connections import canonical, kept_flags
from admm.errors import PlanError
from admm.groupmap import GroupMap
from admm.messages import nearest
from admm.projector import Masks
from admm.slicing import filter_axis, prunable_layers


@dataclass(frozen=True, slots=True)
class LayerSize:
    """What is kept of one layer: all a cost may depend on."""

    filters: int
    """Filters that stay in the network, zero or not."""
    columns: int
    """GEMM columns (input channel x kernel position) in which at least one weight stays."""
    weights: int
    """Weights that are not zero."""


class CostTable(Protocol):
    """Cost of one layer at a size; the network's cost is the sum.

    Must not fall when `filters`, `columns` or `weights` rises, and must be finite and not negative. Weights, MACs,
    bytes, predicted milliseconds at aligned widths: the allocation asks nothing else of it.
    """

    def cost(self, layer: str, size: LayerSize) -> float:
        """What `layer` (its module name) costs at `size`."""
        ...


@dataclass(frozen=True, slots=True)
class WeightCost:
    """Non-zero weights: what `compression_x` counts."""

    def cost(self, layer: str, size: LayerSize) -> float:
        return float(size.weights)


@dataclass(frozen=True, slots=True)
class MacCost:
    """Ideal multiply-accumulates of one sample: non-zero weights x the positions at which each is used.

    Zeros are free here wherever they stand; what a runtime makes of unstructured ones is for measurement to say.
    """

    positions: Mapping[str, int]
    """Layer -> positions a sample, as `output_positions` counts them."""

    def cost(self, layer: str, size: LayerSize) -> float:
        try:
            return float(size.weights * self.positions[layer])
        except KeyError:
            hint = nearest(layer, self.positions)
            raise PlanError(f"no positions for layer {layer!r} ({hint}): count them by output_positions") from None


@torch.no_grad()
def output_positions(model: nn.Module, example_input: Tensor) -> dict[str, int]:
    """Positions of one sample at which each prunable layer's weights are used, by one forward pass.

    `example_input` is [batch, ...]. Every weight of a transposed convolution meets each input position, of the other
    layers each output position; a layer called twice counts both, one never called has 0. Modes and random state stay.
    """
    layers = prunable_layers(model)
    found = dict.fromkeys(layers, 0)

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            transposed = isinstance(module, _ConvTransposeNd)
            values = inputs[0] if transposed else output
            width = module.weight.shape[0]  # the axis that counts channels of a transposed convolution, else filters
            found[name] += values.numel() // width

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in layers.items()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.random.fork_rng(devices=[]):
            model(example_input.to(next(model.parameters()).device))
    finally:
        for module, training in modes:
            module.training = training
        for handle in handles:
            handle.remove()
    return {name: positions // len(example_input) for name, positions in found.items()}


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A dense layer as V = [filters, channels, kernel positions]; `channels` of one group where it is grouped."""

    filters: int
    channels: int
    kernel: int

    @property
    def size(self) -> LayerSize:
        """What the whole layer is charged for."""
        columns = self.channels * self.kernel
        return LayerSize(filters=self.filters, columns=columns, weights=self.filters * columns)


def layer_shapes(model: nn.Module) -> dict[str, LayerShape]:
    """The dense shape of every prunable layer, in model order."""
    found: dict[str, LayerShape] = {}
    for name, module in prunable_layers(model).items():
        shape = module.weight.shape
        axis = filter_axis(module)
        found[name] = LayerShape(filters=shape[axis], channels=shape[1 - axis], kernel=shape[2:].numel())
    return found


def layer_sizes(model: nn.Module, groups: GroupMap, masks: Masks) -> dict[str, LayerSize]:
    """What `masks` keeps of every prunable layer of `model` (whose shapes alone are looked at)."""
    sizes = {name: shape.size for name, shape in layer_shapes(model).items()}
    filters = {name: size.filters for name, size in sizes.items()}
    for group, keep in masks.slots.items():
        for owner in groups.groups[group].owners:
            kept = keep.tolist()
            filters[owner.module] -= sum(not kept[slot] for slot in owner.slot)
    for name, module in prunable_layers(model).items():
        if f"{name}.weight" in masks.parameters:
            mask = canonical(module, kept_flags(f"{name}.weight", module, masks))
            columns = int(mask.any(0).sum())
            sizes[name] = LayerSize(filters=filters[name], columns=columns, weights=int(mask.sum()))
    return sizes


@dataclass(slots=True)
class Ledger:
    """A cost table that is asked only once for the same layer at the same size, and checked when it is."""

    table: CostTable
    _known: dict[tuple[str, LayerSize], float] = field(default_factory=dict)

    def cost(self, layer: str, size: LayerSize) -> float:
        key = (layer, size)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = float(self.table.cost(layer, size))
            if not 0.0 <= known < float("inf"):
                raise PlanError(f"the cost table says {known} for layer {layer!r} at {size}: costs are finite and >= 0")
        return known

    def total(self, sizes: Mapping[str, LayerSize]) -> float:
        """Cost of the whole network."""
        return sum(self.cost(layer, size) for layer, size in sizes.items())

    def forget(self) -> None:
        """Give the memory back."""
        self._known.clear()
