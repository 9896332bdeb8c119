"""Which channels are coupled, read off torch-pruning's dependency graph channel by channel.

The graph (nodes, triggers, index maps) is torch-pruning's (Fang et al., DepGraph, CVPR 2023, arXiv 2301.12900). The
walk is ours: its own merges indices per root and loses couplings where two channels meet in one (`a * sigmoid(b)` of
one convolution), and what it finds depends on which member is the root. Here every edge is a union of two channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch_pruning
from torch import Tensor, nn

from admm.errors import GroupError
from admm.groupmap import Role
from admm.messages import one_line
from admm.slicing import is_prunable, kind_of, obstacle, prunable_layers, shared_parameters, width_of


class Channel(NamedTuple):
    """One channel of one side of a module, or of an operation between modules (`role` None)."""

    node: int
    role: Role | None
    idx: int


class _Mapped(NamedTuple):
    """What torch-pruning's index maps read and write: here `root_idx` is the channel that the edge starts from."""

    idx: int
    root_idx: int


@dataclass
class Coupling:
    """Channels that live or die together. `names` gives a node's module name; `blocked` why a node cannot shrink;
    `failed` the layers whose own walk broke, or that the output never reaches."""

    names: dict[int, str]
    components: list[list[Channel]] = field(default_factory=list)
    blocked: dict[int, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def couple(model: nn.Module, example_input: Tensor) -> Coupling:
    """Trace `model` (a copy that may be altered: eval mode, all parameters require grad) and couple its channels.

    Raises whatever the model or torch-pruning raises when the trace as a whole breaks.
    """
    model.eval().requires_grad_(True)
    graph = torch_pruning.DependencyGraph()
    with torch.inference_mode(False), torch.enable_grad():
        graph.build_dependency(model, example_input, forward_fn=lambda net, x: net(x), verbose=False)
    return _Walk(model, graph).run()


class _Walk:
    def __init__(self, model: nn.Module, graph: Any) -> None:
        self.model = model
        self.graph = graph
        self.parents: dict[Channel, Channel] = {}
        self.names = {id(module): name for name, module in model.named_modules()}
        self.parameters = {id(parameter): name for name, parameter in model.named_parameters()}
        self.shared = shared_parameters(model)
        self.finished: set[Channel] = set()
        self.result = Coupling(names={})

    def run(self) -> Coupling:
        for name, layer in prunable_layers(self.model).items():
            node = self.graph.module2node.get(layer)
            if node is None:
                self.result.failed[name] = (
                    "not seen on the way from the example input to the output: unused, or cut off (detach, no_grad)"
                )
                continue
            handler = self.graph.get_pruner_of_module(layer).prune_out_channels
            try:
                self._walk(node, handler, range(width_of(layer, "out")))
            except Exception as error:
                self.result.failed[name] = f"torch-pruning cannot follow its channels: {one_line(error)}"
        components: dict[Channel, list[Channel]] = {}
        for channel in list(self.parents):
            components.setdefault(self._find(channel), []).append(channel)
        self.result.components = [sorted(c, key=lambda x: (x.node, x.idx)) for c in components.values()]
        return self.result

    def _walk(self, start: Any, handler: Any, indices: Iterable[int]) -> None:
        stack: list[tuple[Any, Any, Iterable[int]]] = [(start, handler, indices)]
        visited: set[Channel] = set()
        while stack:
            node, handler, indices = stack.pop()
            role = self._role(node, handler)
            fresh = []
            for idx in indices:
                channel = Channel(id(node), role, idx)
                if channel not in visited and channel not in self.finished:
                    visited.add(channel)
                    self.parents.setdefault(channel, channel)
                    fresh.append(idx)
            for edge in node.dependencies if fresh else ():
                if not edge.is_triggered_by(handler):
                    continue
                pairs: Sequence[Any] = [_Mapped(idx, idx) for idx in fresh]
                for mapping in edge.index_mapping:
                    if mapping is not None:
                        pairs = mapping(pairs)
                self._join(node, role, edge, pairs)
                stack.append((edge.target, edge.handler, [pair.idx for pair in pairs]))
        # Only now: a walk that broke half-way must break again for the next layer that meets it.
        self.finished |= visited

    def _join(self, node: Any, role: Role | None, edge: Any, pairs: Sequence[Any]) -> None:
        target_role = self._role(edge.target, edge.handler)
        width = self._width(edge.target, target_role)
        for pair in pairs:
            if pair.root_idx is None or not 0 <= pair.idx < width:
                where = self.result.names.get(id(edge.target)) or type(edge.target.module).__name__
                raise GroupError(f"it maps a channel to index {pair.idx} of {where!r}, which has {width}")
            self._union(Channel(id(node), role, pair.root_idx), Channel(id(edge.target), target_role, pair.idx))

    def _width(self, node: Any, role: Role | None) -> int:
        if role is None:
            # Only to stop index maps that run away around a cycle: no real network is as wide.
            return 1 << 22
        return width_of(node.module, "in" if role == "in" else "out")

    def _role(self, node: Any, handler: Any) -> Role | None:
        """Which side of the node a pruning function of torch-pruning removes; notes nodes that cannot shrink."""
        module = node.module
        key = id(node)
        name = self.names.get(id(module))
        kind = None
        if isinstance(module, nn.Parameter):
            what = self.parameters.get(id(module), "a parameter")
            self.result.blocked[key] = f"parameter {what!r} stands outside a known layer"
        elif name is None:
            if isinstance(module, torch_pruning.ops._OutputOp):
                self.result.blocked[key] = "its filters are the network's output"
            return None
        else:
            self.result.names[key] = name
            kind = kind_of(module)
            reason = self._blocker(name, module)
            if reason is not None:
                self.result.blocked[key] = reason
        if kind == "norm" or kind == "depthwise":
            return kind
        if is_prunable(module):
            return "out" if handler == self.graph.get_pruner_of_module(module).prune_out_channels else "in"
        return None

    def _blocker(self, name: str, module: nn.Module) -> str | None:
        kind = kind_of(module)
        label = f"{type(module).__name__} {name!r}"
        if kind == "grouped":
            return f"{label} is a grouped convolution (groups={module.groups})"
        if kind is None and (module._parameters or module._buffers or isinstance(module, _MIXES_CHANNELS)):
            # PReLU with one parameter for all channels is no obstacle: nothing of it is sliced.
            return None if isinstance(module, nn.PReLU) else f"{label} mixes or keeps its channels"
        if kind is None:
            return None
        problem = obstacle(module) or self.shared.get(name)
        return None if problem is None else f"{label}: {problem}"

    def _find(self, channel: Channel) -> Channel:
        root = channel
        while self.parents[root] != root:
            root = self.parents[root]
        while self.parents[channel] != root:
            self.parents[channel], channel = root, self.parents[channel]
        return root

    def _union(self, a: Channel, b: Channel) -> None:
        self.parents.setdefault(a, a)
        self.parents.setdefault(b, b)
        first, second = self._find(a), self._find(b)
        if first != second:
            self.parents[second] = first


_MIXES_CHANNELS = (nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention, nn.RNNBase)
