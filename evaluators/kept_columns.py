"""A convolution that computes with its kept GEMM columns only: the module, its reference path, and the kernel's guard.

Shape sparsity removes columns V[:, c, i, j] of a weight [filters, channels, kh, kw]. What is left is a GEMM of
[filters, r] with the r kept columns of the unfolded input, which no dense convolution can express. On the CPU the
columns are gathered, which pays against an eager convolution of PyTorch where most are gone; on CUDA a Triton kernel
reads them where they lie.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluators import kept_columns_triton as kernel
from evaluators.errors import EvaluationError

#: (top, bottom, left, right) and (vertical, horizontal)
Padding = tuple[int, int, int, int]
Pair = tuple[int, int]


class KeptColumnsConv2d(nn.Module):
    """Conv2d over kept columns: [n, channels, h, w] -> [n, filters, oh, ow], exact up to the order of the sums.

    `weight` [filters, r] holds the kept columns, `columns` [3, r] their (channel, row, column) in the dense kernel,
    ordered by place in the kernel and then by channel, so that neighbours lie near each other in channels_last memory.
    """

    columns: Tensor

    def __init__(
        self,
        weight: Tensor,
        columns: Tensor,
        bias: Tensor | None,
        *,
        channels: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Padding,
        dilation: Pair,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.register_buffer("columns", columns.to(torch.int32))
        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> KeptColumnsConv2d:
        """The same convolution without its dead columns (those that are zero in every filter).

        Raises `EvaluationError` for grouped convolutions and padding with anything but zeros.
        """
        if not isinstance(conv, nn.Conv2d):
            raise EvaluationError(f"kept columns are those of a Conv2d, got {type(conv).__name__}")
        if conv.groups != 1:
            raise EvaluationError(f"kept columns need groups=1, got {conv.groups}: leave this layer as it is")
        if conv.padding_mode != "zeros":
            raise EvaluationError(f"kept columns need padding with zeros, got {conv.padding_mode!r}")
        weight = conv.weight.detach()
        # [kh, kw, channels]: ordered by place, then channel.
        alive = (weight != 0).any(0).permute(1, 2, 0)
        i, j, c = alive.nonzero(as_tuple=True)
        bias = None if conv.bias is None else conv.bias.detach().clone()
        return cls(
            weight[:, c, i, j].contiguous(),
            torch.stack([c, i, j]),
            bias,
            channels=conv.in_channels,
            kernel_size=_pair(conv.kernel_size),
            stride=_pair(conv.stride),
            padding=_padding(conv),
            dilation=_pair(conv.dilation),
        )

    @property
    def sparsity(self) -> float:
        """Fraction of the dense layer's columns that is gone."""
        return 1.0 - self.weight.shape[1] / (self.channels * self.kernel_size[0] * self.kernel_size[1])

    def output_size(self, height: int, width: int) -> Pair:
        """(oh, ow) for an input of [height, width]; raises `EvaluationError` where the kernel does not fit."""
        top, bottom, left, right = self.padding
        spans = (height + top + bottom, width + left + right)
        sizes = [
            (span - dilation * (size - 1) - 1) // stride + 1
            for span, size, stride, dilation in zip(spans, self.kernel_size, self.stride, self.dilation, strict=True)
        ]
        if min(sizes) < 1:
            raise EvaluationError(f"an input of {height}x{width} is smaller than the kernel {self.kernel_size}")
        return sizes[0], sizes[1]

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise EvaluationError(f"input must be [n, {self.channels}, h, w], got {list(x.shape)}")
        if not x.is_cuda:
            return self.reference(x)
        # No silent fallback: gathered columns on a GPU are slower than the dense convolution.
        kernel.require_triton()
        return kernel.conv_kept_columns(
            x,
            self.weight,
            self.bias,
            self.columns,
            output_size=self.output_size(x.shape[2], x.shape[3]),
            stride=self.stride,
            padding=(self.padding[0], self.padding[2]),
            padded=any(self.padding),
            dilation=self.dilation,
        )

    def reference(self, x: Tensor) -> Tensor:
        """The same by gathering the kept columns [n, r, oh, ow] and one matrix product: any device."""
        top, bottom, left, right = self.padding
        x = functional.pad(x, (left, right, top, bottom)).contiguous()
        n, channels, height, width = x.shape
        out = self.output_size(height - top - bottom, width - left - right)
        s_n, s_c, s_h, s_w = x.stride()
        windows = x.as_strided(
            (n, channels, *self.kernel_size, *out),
            (s_n, s_c, s_h * self.dilation[0], s_w * self.dilation[1], s_h * self.stride[0], s_w * self.stride[1]),
        )
        c, i, j = self.columns.long()
        columns = windows[:, c, i, j].flatten(2)
        y: Tensor = torch.matmul(self.weight, columns).unflatten(2, out)
        return y if self.bias is None else y + self.bias[:, None, None]

    def extra_repr(self) -> str:
        filters, kept = self.weight.shape
        return f"{self.channels}, {filters}, kernel_size={self.kernel_size}, columns={kept}, stride={self.stride}"


def with_kept_columns(model: nn.Module, *, least_sparsity: float = 0.0) -> tuple[str, ...]:
    """Replace, in place, the children of `model` that can be and have more dead columns than `least_sparsity`.

    Gives their names. Which of them are faster for it, a rig says.
    """
    replaced: list[str] = []
    for name, layer in list(model.named_modules()):
        if not (isinstance(layer, nn.Conv2d) and name and layer.groups == 1 and layer.padding_mode == "zeros"):
            continue
        lean = KeptColumnsConv2d.from_conv(layer)
        if lean.sparsity > least_sparsity:
            model.set_submodule(name, lean.train(layer.training))
            replaced.append(name)
    return tuple(replaced)


def _pair(value: tuple[int, ...]) -> Pair:
    return value[0], value[1]


def _padding(conv: nn.Conv2d) -> Padding:
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if conv.padding == "same":
        # An even span puts the odd row or column at the end, as torch does.
        spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return spans[0] // 2, spans[0] - spans[0] // 2, spans[1] // 2, spans[1] - spans[1] // 2
    vertical, horizontal = (int(size) for size in conv.padding)
    return vertical, vertical, horizontal, horizontal
