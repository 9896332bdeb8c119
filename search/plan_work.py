"""The work of the network that a plan leads to (`evaluators.work`), from widths alone: no file and no module made.

Each layer's work depends on a few dimensions of the space, and is remembered for the steps it was asked at. For plans
that remove filters of whole groups it is `module_work` of the pruned network to the last digit. Where columns go
(`shape`) and files are rewritten, it is that of the likely rewriting by the costs that order them there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from admm.groupmap import GroupMap
from admm.slicing import filter_axis, prunable_layers
from admm.widths import Width, Widths
from evaluators.lower_columns import passes_of
from evaluators.lower_conv import PER_DEPTHWISE, PER_DEPTHWISE_ELSEWHERE, PER_GATHERED, PER_NODE
from evaluators.modes import evaluating
from evaluators.work import Blocks, Work, module_work, rounding
from search.space import Space

#: Work of one layer that is remembered, before all of it is forgotten.
REMEMBERED = 50_000
Figures = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One use of a layer in the forward pass of one sample."""

    kernel: tuple[int, ...]
    """() of a Linear."""
    groups: int
    """0 of a Linear, which is a product."""
    depthwise: bool
    inputs: int
    """Places of the input, over all but channels; rows of a Linear."""
    positions: int
    """Places at which each weight is used."""
    outputs: int
    """Places of the output."""
    rewritable: bool
    """Whether a rewriting may leave out its zero columns."""


class PlanWork:
    """Work of any plan of a space; `rewritten` where its files are rewritten for their rig.

    `model` is ranked by its present weights and left alone. Raises `EvaluationError` for a model that does not run on
    `example` [batch, ...].
    """

    def __init__(
        self,
        model: nn.Module,
        groups: GroupMap,
        space: Space,
        example: Tensor,
        *,
        align: int,
        block: int,
        depthwise: int | None = None,
        rewritten: bool = False,
    ) -> None:
        decisions = [(d.layer, d.structure, d.sparsities) for d in space.dimensions]
        self._names = [d.name for d in space.dimensions]
        self._widths = Widths(model, groups, decisions, align=align)
        self._blocks, self._block, self._rewritten = rounding(block, depthwise), block, rewritten
        self._calls = {name: calls for name, calls in _calls(model, example).items() if calls}
        self.dense = module_work(model, example, block, depthwise=depthwise)
        """Of the network as it is."""
        shapes = {name: module.weight for name, module in prunable_layers(model).items()}
        modules = prunable_layers(model)
        apart = Work()
        for name in self._calls:
            axis, shape = filter_axis(modules[name]), shapes[name].shape
            whole = Width(shape[axis], shape[1 - axis], shape[1 - axis], shape[1 - axis] * shape[2:].numel())
            apart += self._layer(name, whole)
        #: what no layer does: products of activations, functional calls
        self._apart = (
            self.dense.macs - apart.macs,
            self.dense.weights - apart.weights,
            self.dense.elements - apart.elements,
        )
        self._tables: list[tuple[str, tuple[int, ...], dict[tuple[int, ...], Figures]]] = [
            (name, self._widths.depends[name], {}) for name in self._calls
        ]

    def __call__(self, params: Mapping[str, Any]) -> Work:
        """Work of the plan that these steps stand for, one for each dimension of the space."""
        return self.at([int(params[name]) for name in self._names])

    def at(self, steps: Sequence[int]) -> Work:
        """The same, the steps in the order of the space's dimensions."""
        macs, weights, elements = self._apart
        for name, depends, table in self._tables:
            key = tuple([steps[i] for i in depends])
            known = table.get(key)
            if known is None:
                if len(table) >= REMEMBERED:
                    table.clear()
                work = self._layer(name, self._widths.width(name, steps))
                known = table[key] = (work.macs, work.weights, work.elements)
            macs += known[0]
            weights += known[1]
            elements += known[2]
        return Work(macs, weights, elements)

    def _layer(self, name: str, width: Width) -> Work:
        total = Work()
        for call in self._calls[name]:
            total += self._call(call, width)
        return total

    def _call(self, call: Call, width: Width) -> Work:
        if not call.groups:
            return self._blocks.product(1, call.positions, width.channels, width.filters)
        if call.depthwise:
            return self._convolution(call, width.filters, width.filters, width.filters)
        dense = self._convolution(call, width.filters, width.channels * call.groups, call.groups)
        if not (self._rewritten and call.rewritable) or width.columns == width.channels * math.prod(call.kernel):
            return dense
        return min(_ways(self._blocks, self._block, call, width, dense), key=lambda way: way[0])[1]

    def _convolution(self, call: Call, filters: int, channels: int, groups: int) -> Work:
        return self._blocks.convolution(filters, channels, groups, math.prod(call.kernel), call.positions, call.outputs)


def _ways(blocks: Blocks, block: int, call: Call, width: Width, dense: Work) -> list[tuple[float, Work]]:
    """(cost, work) of a convolution with zero columns as it is, by its live channels alone, and one-hot."""
    ways = [(dense.macs, dense)]
    live = min(-(-max(width.live, 1) // block) * block, width.channels)
    if live < width.channels:
        fewer = blocks.convolution(width.filters, live, 1, math.prod(call.kernel), call.positions, call.outputs)
        ways.append((fewer.macs + PER_GATHERED * live * call.inputs + PER_NODE, fewer))
    if len(call.kernel) and math.prod(call.kernel) > 1:
        rows = -(-max(width.columns, 1) // block) * block
        passes = [math.prod(call.kernel[axis] for axis in axes) for axes in passes_of(call.kernel)]
        one_hot = blocks.convolution(width.filters, rows, 1, 1, call.outputs, call.outputs)
        per_product = PER_DEPTHWISE if len(call.kernel) == 2 else PER_DEPTHWISE_ELSEWHERE
        cost = one_hot.macs + PER_GATHERED * rows * call.inputs + per_product * rows * call.outputs * sum(passes)
        for kernel in passes:
            one_hot += blocks.convolution(rows, rows, rows, kernel, call.outputs, call.outputs)
        ways.append((cost + PER_NODE * (1 + len(passes)), one_hot))
    return ways


@torch.no_grad()
def _calls(model: nn.Module, example: Tensor) -> dict[str, list[Call]]:
    """Every use of each prunable layer in one forward pass of one sample. The model stays as it was."""
    layers = prunable_layers(model)
    found: dict[str, list[Call]] = {name: [] for name in layers}

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            source = inputs[0]
            if isinstance(module, nn.Linear):
                rows = source.numel() // source.shape[-1]
                call = Call(
                    kernel=(), groups=0, depthwise=False, inputs=rows, positions=rows, outputs=rows, rewritable=False
                )
            else:
                outputs, transposed = output.shape[2:].numel(), isinstance(module, _ConvTransposeNd)
                places = source.shape[2:].numel()
                call = Call(
                    kernel=tuple(module.kernel_size),
                    groups=module.groups,
                    depthwise=module.groups > 1 and module.groups == module.in_channels,
                    inputs=places,
                    positions=places if transposed else outputs,
                    outputs=outputs,
                    rewritable=not transposed and module.groups == 1,
                )
            found[name].append(call)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in layers.items()]
    try:
        with evaluating(model), torch.random.fork_rng(devices=[]):
            model(example[:1].to(next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return found
