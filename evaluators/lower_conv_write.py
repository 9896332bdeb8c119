"""The nodes of each way to write a convolution."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluators.lower_columns import Box, Index, Lists, Part
from evaluators.lower_layer import Array, ConvShape, Layer
from evaluators.lower_write import Writer


def write_one_hot(
    layer: Layer,
    conv: ConvShape,
    box: Box,
    columns: Lists,
    passes: list[tuple[int, ...]],
    whole: Part | None,
    writer: Writer,
) -> None:
    groups, dims = conv.groups, len(box.kernel)
    rows = groups * columns.length
    x = _gathered(writer, layer, conv, columns.index[..., 0])
    x, begins, ends = _sliced(writer, x, conv, box)
    place = (columns.index[..., 1:] - np.asarray(box.low)).reshape(rows, dims)
    for axes in passes:
        active = np.isin(np.arange(dims), axes)
        weight = np.zeros((rows, 1, *_where(active, box.kernel, 1)), dtype=layer.weight.dtype)
        weight[(np.arange(rows), 0, *np.where(active, place, 0).T)] = 1
        x = _conv_node(
            writer,
            x,
            weight,
            groups=rows,
            strides=_where(active, conv.strides, 1),
            dilations=_where(active, conv.dilations, 1),
            pads=(*_where(active, begins, 0), *_where(active, ends, 0)),
        )
    weight = _column_weight(layer, conv, columns)
    if whole is None:
        _conv_node(writer, x, weight, groups=groups, bias=layer.bias, last=True)
        return
    rest = _conv_node(writer, x, weight, groups=groups)
    first = write_part(writer, layer, conv, whole, bias=layer.bias)
    writer.node("Add", [first, rest], last=True)


def write_slices(layer: Layer, conv: ConvShape, columns: Lists, writer: Writer) -> None:
    dims = len(conv.strides)
    x = writer.source
    if any((*conv.begins, *conv.ends)):
        pads = np.asarray([0, 0, *conv.begins, 0, 0, *conv.ends], dtype=np.int64)
        x = writer.node("Pad", [x, writer.constant("pads", pads)])
    axes = writer.constant("axes", np.arange(2, 2 + dims, dtype=np.int64))
    steps = writer.constant("steps", np.asarray(conv.strides, dtype=np.int64))
    pieces = []
    # `columns` is in the order of positions, so that each position is one run of it.
    index = columns.index[0]
    starts = np.flatnonzero(np.r_[True, (np.diff(index[:, 1:], axis=0) != 0).any(axis=1)])
    for first, behind in zip(starts, [*starts[1:], len(index)], strict=True):
        channels = writer.constant("channels", index[first:behind, 0])
        piece = writer.node("Gather", [x, channels], axis=1)
        begin = index[first, 1:] * np.asarray(conv.dilations)
        end = begin + np.asarray(conv.strides) * (np.asarray(layer.output_shape[2:]) - 1) + 1
        names = [writer.constant("begin", begin), writer.constant("end", end)]
        pieces.append(writer.node("Slice", [piece, *names, axes, steps]))
    x = pieces[0] if len(pieces) == 1 else writer.node("Concat", pieces, axis=1)
    _conv_node(writer, x, _column_weight(layer, conv, columns), groups=1, bias=layer.bias, last=True)


def write_part(
    writer: Writer, layer: Layer, conv: ConvShape, part: Part, *, bias: str | None = None, last: bool = False
) -> str:
    groups, box, channels = conv.groups, part.box, part.channels
    weight = layer.weight[(slice(None), slice(None), *box.slices())]
    x = writer.source
    if channels is not None:
        x = _gathered(writer, layer, conv, channels.index[..., 0])
        split = weight.reshape(groups, -1, *weight.shape[1:])
        chosen = np.stack([w[:, index] for w, index in zip(split, channels.index[..., 0], strict=True)])
        real = channels.real.reshape(groups, 1, -1, *(1,) * len(box.kernel))
        weight = np.where(real, chosen, 0).reshape(len(weight), -1, *box.kernel).astype(weight.dtype)
    x, begins, ends = _sliced(writer, x, conv, box)
    return _conv_node(
        writer,
        x,
        weight,
        groups=groups,
        strides=conv.strides,
        dilations=conv.dilations,
        pads=(*begins, *ends),
        bias=bias,
        last=last,
    )


def _conv_node(
    writer: Writer,
    x: str,
    weight: Array,
    *,
    groups: int,
    strides: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    bias: str | None = None,
    last: bool = False,
) -> str:
    dims = weight.ndim - 2
    return writer.node(
        "Conv",
        [x, writer.constant("weight", weight), *([bias] if bias else [])],
        last=last,
        kernel_shape=weight.shape[2:],
        group=groups,
        strides=strides or (1,) * dims,
        dilations=dilations or (1,) * dims,
        pads=pads or (0,) * 2 * dims,
    )


def _gathered(writer: Writer, layer: Layer, conv: ConvShape, index: Index) -> str:
    """The input's channels [groups, r], numbered within each group, as one tensor of groups * r channels."""
    per_group = layer.weight.shape[1]
    flat = (index + per_group * np.arange(conv.groups)[:, None]).reshape(-1)
    return writer.node("Gather", [writer.source, writer.constant("channels", flat.astype(np.int64))], axis=1)


def _pads(conv: ConvShape, kernel: tuple[int, ...], box: Box) -> tuple[list[int], list[int]]:
    """Padding for a kernel cut to `box`; negative where its positions never reach the border of the input."""
    begins = [b - d * low for b, d, low in zip(conv.begins, conv.dilations, box.low, strict=True)]
    ends = [e - d * (k - h) for e, d, k, h in zip(conv.ends, conv.dilations, kernel, box.high, strict=True)]
    return begins, ends


def fits(layer: Layer, conv: ConvShape, box: Box) -> bool:
    """Whether the cut kernel reads the input at all: positions that only ever meet padding are left as they are."""
    begins, ends = _pads(conv, layer.weight.shape[2:], box)
    return all(
        size + min(b, 0) + min(e, 0) >= 1 for size, b, e in zip(layer.input_shape[2:], begins, ends, strict=True)
    )


def _sliced(writer: Writer, x: str, conv: ConvShape, box: Box) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """The input without the borders that the cut kernel never reads, and the padding left to do."""
    begins, ends = _pads(conv, writer.layer.weight.shape[2:], box)
    axes = [axis for axis, (b, e) in enumerate(zip(begins, ends, strict=True)) if min(b, e) < 0]
    if axes:
        sizes = writer.layer.input_shape[2:]
        starts = np.asarray([max(0, -begins[axis]) for axis in axes], dtype=np.int64)
        behind = np.asarray([sizes[axis] + min(0, ends[axis]) for axis in axes], dtype=np.int64)
        where = np.asarray([2 + axis for axis in axes], dtype=np.int64)
        names = [writer.constant(h, v) for h, v in (("starts", starts), ("ends", behind), ("axes", where))]
        x = writer.node("Slice", [x, *names])
    return x, tuple(max(0, b) for b in begins), tuple(max(0, e) for e in ends)


def _column_weight(layer: Layer, conv: ConvShape, columns: Lists) -> Array:
    """The weight of the 1x1 convolution: [filters, r, 1, ...], zero for padding."""
    split = layer.weight.reshape(conv.groups, -1, *layer.weight.shape[1:])
    chosen = np.stack([w[(slice(None), *index.T)] for w, index in zip(split, columns.index, strict=True)])
    kept = np.where(columns.real[:, None, :], chosen, 0).astype(layer.weight.dtype)
    return np.asarray(kept.reshape(len(layer.weight), columns.length, *(1,) * len(conv.strides)))


def _where(active: NDArray[np.bool_], values: tuple[int, ...], other: int) -> tuple[int, ...]:
    return tuple(value if on else other for on, value in zip(active, values, strict=True))
