"""The exact ways to write a convolution whose GEMM columns are partly zero.

A column is one (channel, kernel position) of the weight [filters, channels / groups, *kernel]. Every way adds up the
same products without those of zero columns, and reads nothing that the dense layer does not multiply by something: so
where the layer's own output is finite, the rewritten one is finite and the same. An infinite or undefined input is
another matter: an infinity may come out as NaN where the dense layer gives an infinity (a one-hot kernel multiplies it
by zero), or not at all where the dense layer gives NaN (nobody reads its column).
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from evaluators.lower_columns import Box, Lists, Part, box_of, lists_of, passes_of
from evaluators.lower_conv_write import fits, write_one_hot, write_part, write_slices
from evaluators.lower_layer import ConvShape, Layer
from evaluators.lower_write import Candidate, Writer, numbers

#: Costs in multiply-accumulates of a dense kernel, of one element or one node. They order what is worth measuring.
PER_GATHERED, PER_DEPTHWISE, PER_SLICED, PER_NODE = 8.0, 3.0, 20.0, 5e4
#: ONNX Runtime has fast depthwise kernels for two dimensions only.
PER_DEPTHWISE_ELSEWHERE = 15.0
#: A channel with this share of its positions is cheaper as a whole: a one-hot column costs more than a dense one.
_NEARLY_WHOLE = 0.75
_MOST_BOXES = 3


def dense_cost(layer: Layer, conv: ConvShape, block: int) -> float:
    """Multiply-accumulates of the layer as it is, widths rounded up to what the kernels compute."""
    return _conv_cost(layer, conv, layer.weight.shape[1], math.prod(layer.weight.shape[2:]), block)


def conv_candidates(layer: Layer, conv: ConvShape, block: int) -> list[Candidate]:
    """What could be written in place of this convolution; empty where no column is zero."""
    live = layer.live
    if live.all():
        return []
    whole, box = Box((0,) * (live.ndim - 2), live.shape[2:]), box_of(np.asarray(live.any(axis=(0, 1))))
    used = np.asarray(live.any(axis=tuple(range(2, live.ndim))))
    channels = lists_of([np.argwhere(group) for group in used], block)
    fewer = channels if channels.length < live.shape[1] else None
    found: list[Candidate | None] = [_one_hot(layer, conv, box, block), _slice(layer, conv, block)]
    if fewer is not None:
        found.append(_parts("gather", layer, conv, [Part(whole, fewer)], block))
    if box != whole:
        found.append(_parts("crop", layer, conv, [Part(box, fewer)], block))
    if conv.groups == 1:
        found.append(_boxes(layer, conv, block))
        found.append(_hybrid(layer, conv, box, block))
    return [candidate for candidate in found if candidate is not None]


def _one_hot(
    layer: Layer, conv: ConvShape, box: Box, block: int, columns: Lists | None = None, *, whole: Part | None = None
) -> Candidate | None:
    """Gather of the columns' channels, a depthwise convolution that shifts each, a 1x1 convolution that adds up.

    With `whole`, the rest of the layer: a dense convolution, added.
    """
    if columns is None:
        columns = lists_of([np.argwhere(group) for group in layer.live], block)
    if box.volume == 1 or not fits(layer, conv, box) or (whole and not fits(layer, conv, whole.box)):
        return None  # one position only: gather or crop, without shifting anything
    passes = passes_of(box.kernel)
    two_dimensional = len(box.kernel) == 2
    per_product = PER_DEPTHWISE if two_dimensional else PER_DEPTHWISE_ELSEWHERE
    rows, out = conv.groups * columns.length, layer.input_shape[0] * layer.positions
    cost = (
        PER_GATHERED * rows * math.prod(layer.input_shape[2:]) * layer.input_shape[0]
        + per_product * rows * out * sum(math.prod(box.kernel[axis] for axis in axes) for axes in passes)
        + _conv_cost(layer, conv, columns.length, 1, block)
        + PER_NODE * (1 + len(passes))
    )
    text = numbers(r=columns.length, k=box.kernel)
    if whole is not None:
        assert whole.channels is not None
        cost += _part_cost(layer, conv, whole, block)
        text += " whole " + numbers(c=whole.channels.length)
    write = partial(write_one_hot, layer, conv, box, columns, passes, whole)
    return Candidate(choice="one-hot" if whole is None else "hybrid", numbers=text, cost=cost, write=write)


def _slice(layer: Layer, conv: ConvShape, block: int) -> Candidate | None:
    """Per kernel position a Gather and a strided Slice, put one behind another for a 1x1 convolution."""
    if conv.groups > 1:
        return None  # the slices of a position would have to be dealt out to the groups
    order = np.argwhere(np.moveaxis(layer.live[0], 0, -1))
    columns = lists_of([order[:, [-1, *range(order.shape[1] - 1)]]], block)
    places = np.unique(columns.index[0, :, 1:], axis=0)
    out, batch = layer.positions, layer.input_shape[0]
    source = math.prod(size + b + e for size, b, e in zip(layer.input_shape[2:], conv.begins, conv.ends, strict=True))
    cost = (
        batch * (PER_GATHERED * columns.length * source + PER_SLICED * columns.length * out)
        + batch * PER_GATHERED * layer.input_shape[1] * source * any((*conv.begins, *conv.ends))
        + _conv_cost(layer, conv, columns.length, 1, block)
        + PER_NODE * (2 + 2 * len(places))
    )
    write = partial(write_slices, layer, conv, columns)
    return Candidate(choice="slice", numbers=numbers(r=columns.length, places=len(places)), cost=cost, write=write)


def _hybrid(layer: Layer, conv: ConvShape, box: Box, block: int) -> Candidate | None:
    """The channels with most of their positions as a dense convolution, the other columns one-hot."""
    live = layer.live[0]
    counts = live.reshape(len(live), -1).sum(axis=1)
    # A multiple of the block, filled up with the next fullest channels: they are computed in any case.
    dense = math.ceil((counts >= _NEARLY_WHOLE * box.volume).sum() / block) * block
    order = np.argsort(-counts, kind="stable")
    if not 0 < dense < len(live) or not counts[order[dense:]].any():
        return None
    rest = live.copy()
    rest[order[:dense]] = False
    channels = Lists(np.sort(order[:dense])[None, :, None], np.ones((1, dense), dtype=bool))
    columns = lists_of([np.argwhere(rest)], block)
    return _one_hot(layer, conv, box, block, columns, whole=Part(box, channels))


def _boxes(layer: Layer, conv: ConvShape, block: int) -> Candidate | None:
    """A few dense convolutions, each by the channels whose positions lie in one box, added up."""
    live = layer.live[0]
    by_box: dict[Box, list[int]] = {}
    for channel, mask in enumerate(live):
        if mask.any():
            by_box.setdefault(box_of(mask), []).append(channel)

    def cost(box: Box, channels: list[int]) -> int:
        return math.ceil(len(channels) / block) * block * box.volume

    # Greedily: unite the two sets that cost least together, as long as it saves work or there are too many.
    while len(by_box) > 1:
        pairs = [(a, b, a.around(b)) for i, a in enumerate(by_box) for b in list(by_box)[:i]]
        a, b, both = min(
            pairs,
            key=lambda p: cost(p[2], by_box[p[0]] + by_box[p[1]]) - cost(p[0], by_box[p[0]]) - cost(p[1], by_box[p[1]]),
        )
        united = by_box[a] + by_box[b]
        extra = cost(both, united) - cost(a, by_box[a]) - cost(b, by_box[b])
        if extra > 0 and len(by_box) <= _MOST_BOXES:
            break
        del by_box[a], by_box[b]
        by_box[both] = sorted(by_box.get(both, []) + united)
    if len(by_box) < 2:
        return None
    ordered = sorted(by_box.items(), key=lambda item: (item[0].low, item[0].high))
    parts = [Part(box, lists_of([np.asarray(sorted(c), dtype=np.int64)[:, None]], block)) for box, c in ordered]
    return _parts("box", layer, conv, parts, block)


def _parts(choice: str, layer: Layer, conv: ConvShape, parts: list[Part], block: int) -> Candidate | None:
    if not all(fits(layer, conv, part.box) for part in parts):
        return None
    described = [numbers(c=part.channels.length if part.channels else 0, k=part.box.kernel) for part in parts]
    cost = sum(_part_cost(layer, conv, part, block) for part in parts)

    def write(writer: Writer) -> None:
        if len(parts) == 1:
            write_part(writer, layer, conv, parts[0], bias=layer.bias, last=True)
            return
        total = write_part(writer, layer, conv, parts[0], bias=layer.bias)
        for part in parts[1:]:
            total = writer.node("Add", [total, write_part(writer, layer, conv, part)], last=part is parts[-1])

    return Candidate(choice=choice, numbers=" ".join(described), cost=cost, write=write)


def _part_cost(layer: Layer, conv: ConvShape, part: Part, block: int) -> float:
    width = layer.weight.shape[1] if part.channels is None else part.channels.length
    gathered = 0 if part.channels is None else conv.groups * width * math.prod(layer.input_shape[2:])
    copied = PER_GATHERED * gathered * layer.input_shape[0] + PER_NODE * (1 + (part.channels is not None))
    return copied + _conv_cost(layer, conv, width, part.box.volume, block)


def _conv_cost(layer: Layer, conv: ConvShape, width: int, volume: int, block: int) -> float:
    """Multiply-accumulates of a convolution to this layer's filters from `width` channels per group."""
    step = block if len(conv.strides) == 2 else 1
    filters = math.ceil(len(layer.weight) / conv.groups / step) * step * conv.groups
    inputs = math.ceil(width / step) * step if width >= step else width
    return float(filters * inputs * volume * layer.positions * layer.input_shape[0])
