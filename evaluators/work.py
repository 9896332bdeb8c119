"""Work of a network from its shapes: multiply-accumulates in whole blocks of channels, weights and outputs.

What a device computes for 17 channels is what it computes for its next block (`evaluators.blocks`), so channel counts
are rounded up to it. From an ONNX graph, or from a module in one forward pass that computes shapes only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from evaluators.errors import EvaluationError, one_line
from evaluators.modes import evaluating

#: Up to so many input channels are an image's own: first layers read them as they are, in no block.
_IMAGE_CHANNELS = 4
#: Tensors of this size and more hold weights, of which the shape is all that counts.
_WEIGHT_BYTES = 4096
#: Weights that stay in the near caches from one inference to the next, about: 2 MB in fp32. Larger networks read theirs
#: from further away each time.
_NEAR_WEIGHTS = 500_000


@dataclass(frozen=True, slots=True)
class Work:
    """What a network computes for one sample, in whole blocks of channels; works add up."""

    macs: float = 0.0
    """Multiply-accumulates of convolutions, transposed ones and matrix products."""
    weights: float = 0.0
    """Elements of their weights (of a product of two activations: of its second factor)."""
    elements: float = 0.0
    """Elements of their outputs."""

    @property
    def streamed(self) -> float:
        """Weights read from beyond the near caches in each inference: few in small networks, all in large ones."""
        # A cache gone through in a circle keeps nothing once it is too small: a step, softened.
        share = 1.0 / (1.0 + (_NEAR_WEIGHTS / self.weights) ** 4) if self.weights else 0.0
        return self.weights * share

    def __add__(self, other: Work) -> Work:
        return Work(self.macs + other.macs, self.weights + other.weights, self.elements + other.elements)


@dataclass(frozen=True, slots=True)
class Blocks:
    """The device's blocks, and how they round the work of each kind of layer."""

    block: int
    depthwise: int

    def convolution(self, filters: int, channels: int, groups: int, kernel: int, positions: int, outputs: int) -> Work:
        """`kernel` weights a pair of channels meet `positions`; the output has `outputs` positions."""
        if groups > 1 and channels == groups:
            filters = _round_up(filters, self.depthwise)
            weights = filters * kernel
        else:
            inputs = channels // groups
            inputs = inputs if channels <= _IMAGE_CHANNELS else _round_up(inputs, self.block)
            filters = groups * _round_up(filters // groups, self.block)
            weights = filters * inputs * kernel
        return Work(weights * positions, weights, filters * outputs)

    def product(self, batch: int, rows: int, inner: int, columns: int) -> Work:
        """[rows, inner] @ [inner, columns], `batch` times."""
        inner, columns = _round_up(inner, self.block), _round_up(columns, self.block)
        return Work(batch * rows * inner * columns, batch * inner * columns, batch * rows * columns)


def aligned_macs(model: bytes | Path, block: int, *, depthwise: int | None = None) -> float:
    """Multiply-accumulates of one sample of an ONNX graph, channels rounded up to whole blocks.

    See `onnx_work`, of which this is the first figure.
    """
    return onnx_work(model, block, depthwise=depthwise).macs


def module_macs(module: nn.Module, example_input: Tensor, block: int, *, depthwise: int | None = None) -> float:
    """`aligned_macs` of the module's export, without exporting it. See `module_work`."""
    return module_work(module, example_input, block, depthwise=depthwise).macs


def onnx_work(model: bytes | Path, block: int, *, depthwise: int | None = None) -> Work:
    """The work in Conv, ConvTranspose, Gemm and MatMul of an ONNX graph, for one sample.

    `depthwise` is the block of depthwise convolutions, `block` unless given; grouped ones round inside each group.
    Shapes are inferred with a free batch set to one; a fixed batch is divided out. Raises `EvaluationError` for a
    file that is no ONNX model and for a layer whose shape cannot be inferred.
    """
    blocks = rounding(block, depthwise)
    try:
        content = model if isinstance(model, bytes) else model.read_bytes()
    except OSError as error:
        raise EvaluationError(f"cannot read {error.filename}: {error.strerror or error}") from error
    try:
        proto = onnx.load_model_from_string(content)
    except Exception as error:
        raise EvaluationError(f"not an ONNX model: {one_line(error)}") from error
    shapes, batch = _inferred_shapes(proto)
    total = Work()
    for node in proto.graph.node:
        work = _node_work(node, shapes, blocks)
        if work is not None:
            total += work
    return Work(total.macs / batch, total.weights, total.elements / batch)


def module_work(module: nn.Module, example_input: Tensor, block: int, *, depthwise: int | None = None) -> Work:
    """`onnx_work` of the module's export, from one forward pass of one sample that computes shapes only.

    `example_input` is [batch, ...]; functional calls count as in the graph. A module that reads values, or holds
    tensors that are neither parameters nor buffers, is run on real ones. It stays as it was. Raises
    `EvaluationError` for a module that does not run.
    """
    sample = example_input[:1].detach()
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes_only = {name: tensor.detach().to("meta") for name, tensor in held.items()}
    place = next((tensor.device for tensor in held.values()), sample.device)
    runs: tuple[Callable[[], object], ...] = (
        lambda: torch.func.functional_call(module, shapes_only, (sample.to("meta"),)),
        lambda: module(sample.to(place)),
    )
    with _plain_attention(), evaluating(module), torch.random.fork_rng(devices=[]):
        for run in runs:
            counter = _Counter(rounding(block, depthwise))
            try:
                with counter:
                    run()
            except Exception as error:
                failure = error
                continue
            return counter.total
    raise EvaluationError(f"the model does not run on the example input: {one_line(failure)}") from failure


def rounding(block: int, depthwise: int | None) -> Blocks:
    for name, value in (("block", block), ("depthwise", depthwise)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise EvaluationError(f"{name} must be an integer >= 1, got {value!r}")
    return Blocks(block, block if depthwise is None else depthwise)


def _round_up(count: int, block: int) -> int:
    return -(-count // block) * block


def _inferred_shapes(proto: onnx.ModelProto) -> tuple[dict[str, list[int | None]], int]:
    """Shape of every tensor of the graph with a free batch at one (None: unknown), and the batch if it is fixed.

    Takes large initialisers out of the model, since inference would copy them.
    """
    graph = proto.graph
    weights = {t.name: t for t in graph.initializer}
    data = [value for value in graph.input if value.name not in weights]
    batch = 1
    for value in data:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
        elif dims and value is data[0]:
            batch = max(int(dims[0].dim_value), 1)
    small = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    small.graph.name = "shapes"
    small.graph.node.extend(graph.node)
    small.graph.input.extend(data)
    for tensor in weights.values():
        if tensor.ByteSize() < _WEIGHT_BYTES:
            small.graph.initializer.append(tensor)
        else:
            small.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for value in graph.output:
        small.graph.output.append(onnx.ValueInfoProto(name=value.name))
    try:
        inferred = onnx.shape_inference.infer_shapes(small, data_prop=True)
    except Exception as error:
        raise EvaluationError(f"the shapes of the ONNX model cannot be inferred: {one_line(error)}") from error
    shapes: dict[str, list[int | None]] = {t.name: list(t.dims) for t in weights.values()}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = [d.dim_value if d.HasField("dim_value") else None for d in dims]
    return shapes, batch


def _node_work(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int | None]], blocks: Blocks) -> Work | None:
    """What one node computes; None for an operator that is not counted."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return None
    sizes: list[list[int]] = []
    for name in (*node.input[:2], node.output[0]):
        shape = shapes.get(name)
        if shape is None or any(size is None for size in shape):
            label = node.name or node.output[0]
            raise EvaluationError(f"{node.op_type} {label!r}: the shape of {name!r} cannot be inferred: fix its sizes")
        sizes.append([int(size) for size in shape if size is not None])
    left, right, out = sizes
    attributes = {a.name: a for a in node.attribute}
    if node.op_type in ("Conv", "ConvTranspose"):
        groups = attributes["group"].i if "group" in attributes else 1
        return _convolution_work(left, right, out, groups, node.op_type == "ConvTranspose", blocks)
    if node.op_type == "Gemm":
        rows, inner = left[::-1] if "transA" in attributes and attributes["transA"].i else left
        return blocks.product(1, rows, inner, out[-1])
    if len(left) == 1 or len(right) == 1:
        columns = right[-1] if len(right) > 1 else 1
        return blocks.product(1, math.prod(left[:-1]), left[-1], columns)
    if len(right) == 2:  # a weight, met by all rows of the batch
        return blocks.product(1, math.prod(left[:-1]), left[-1], right[-1])
    return blocks.product(math.prod(out[:-2]), left[-2], left[-1], right[-1])


def _convolution_work(
    source: Sequence[int], weight: Sequence[int], out: Sequence[int], groups: int, transposed: bool, blocks: Blocks
) -> Work:
    """`source` [batch, channels, *size] and `out` [batch, filters, *size]; every weight of a transposed convolution
    meets every input position, of another every output position.
    """
    outputs = out[0] * math.prod(out[2:])
    positions = source[0] * math.prod(source[2:]) if transposed else outputs
    return blocks.convolution(out[1], source[1], groups, math.prod(weight[2:]), positions, outputs)


class _Counter(TorchDispatchMode):
    """Adds up the work of all convolutions and matrix products that run under it, functional ones too."""

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = Work()
        self._blocks = blocks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        aten = torch.ops.aten
        if packet in (aten.native_batch_norm, aten.relu) and args[0].is_meta:
            # PyTorch works these shapes out in Python, which would be most of the time of a residual network.
            nothing = args[0].new_empty(0)
            same = torch.empty_like(args[0])
            return same if packet is aten.relu else (same, nothing, nothing)
        out = func(*args, **(kwargs or {}))
        if packet is aten.convolution:
            source, weight, transposed, groups = args[0], args[1], args[6], args[8]
            self.total += _convolution_work(source.shape, weight.shape, out.shape, groups, transposed, self._blocks)
        elif packet in (aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv):
            left, right = args[-2:] if packet in (aten.mm, aten.bmm, aten.mv) else args[1:3]
            batch = left.shape[0] if left.ndim == 3 else 1
            columns = right.shape[-1] if right.ndim > 1 else 1
            self.total += self._blocks.product(batch, left.shape[-2], left.shape[-1], columns)
        return out


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in the products that an exported graph has, not in one fused call."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
