"""The Triton kernel of `KeptColumnsConv2d`: an implicit GEMM over kept columns, with fp32 accumulators.

Triton is optional. Without it this imports, and `require_triton` says in one line what to install.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

from evaluators.errors import RigError, RigUnavailable

try:
    triton: Any = importlib.import_module("triton")
    tl: Any = importlib.import_module("triton.language")
except ImportError:
    triton = tl = None

#: The kernel counts in 32 bits.
_MOST_ELEMENTS = 2**31 - 1
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def require_triton() -> None:
    """Raises `RigUnavailable` in one line where Triton is not installed."""
    if triton is None:
        raise RigUnavailable("kept columns on CUDA need the package triton: pip install triton")


def conv_kept_columns(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    columns: Tensor,
    *,
    output_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    padded: bool,
    dilation: tuple[int, int],
) -> Tensor:
    """x [n, channels, h, w], weight [filters, r], columns [3, r] of int32 -> [n, filters, oh, ow], laid out as x.

    `padding` is (top, left); what lies outside x is zero. Float32 is rounded as cuDNN's convolutions are told to
    (`torch.backends.cudnn.conv.fp32_precision`). On CUDA the block sizes are tuned once for every shape; tensors of
    the CPU are taken under Triton's interpreter (TRITON_INTERPRET=1) only. Raises `RigError` for what it cannot take.
    """
    require_triton()
    if x.dtype not in _TYPES or weight.dtype != x.dtype:
        raise RigError(f"the kernel computes in float32, float16 or bfloat16 alike, got {x.dtype} and {weight.dtype}")
    n, _, height, width = x.shape
    filters, kept = weight.shape
    out_h, out_w = output_size
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    y = torch.empty(
        (n, filters, out_h, out_w),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    if max(x.numel(), y.numel()) > _MOST_ELEMENTS:
        raise RigError(f"the kernel counts in 32 bits, an input of {list(x.shape)} is too large: split the batch")
    pixels = n * out_h * out_w
    if not y.numel():
        return y
    cudnn: Any = torch.backends.cudnn
    rounding = "tf32" if cudnn.conv.fp32_precision == "tf32" else "ieee"
    arguments = (
        x,
        weight.contiguous(),
        weight if bias is None else bias,
        columns.contiguous(),
        y,
        filters,
        pixels,
        kept,
        height,
        width,
        out_h,
        out_w,
        *x.stride(),
        *y.stride(),
        *stride,
        *padding,
        *dilation,
    )
    flags = {
        "HAS_BIAS": bias is not None,
        "PADDED": padded,
        "CHANNELS_LAST": channels_last,
        "ROUNDING": rounding,
    }

    def grid(blocks: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(filters, blocks["BLOCK_M"]) * triton.cdiv(pixels, blocks["BLOCK_P"]),)

    if not x.is_cuda:
        _kernel[grid](*arguments, **flags, BLOCK_M=16, BLOCK_P=16, BLOCK_K=16)
        return y
    with torch.cuda.device(x.device):
        _tuned()[grid](*arguments, **flags)
    return y


def _implicit_gemm(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    bias_ptr,
    columns_ptr,
    y_ptr,
    M,
    P,
    R,
    height,
    width,
    out_h,
    out_w,
    x_n,
    x_c,
    x_h,
    x_w,
    y_n,
    y_c,
    y_h,
    y_w,
    stride_h,
    stride_w,
    pad_top,
    pad_left,
    dilation_h,
    dilation_w,
    HAS_BIAS: tl.constexpr,
    PADDED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROUNDING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Filters [M], output pixels of all samples [P], kept columns [R]; the input tile is gathered, never unfolded.
    # Programs that share pixels run next to each other: the gathered input is the larger tile to find in L2.
    pid = tl.program_id(0)
    blocks_m = tl.cdiv(M, BLOCK_M)
    m = (pid % blocks_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    p = (pid // blocks_m) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_m = m < M
    in_p = p < P
    n = p // (out_h * out_w)
    pixel = p % (out_h * out_w)
    row = pixel // out_w
    column = pixel % out_w
    top = row * stride_h - pad_top
    left = column * stride_w - pad_left
    # May point before the tensor where there is padding; the masks keep such places from being read.
    x_pixel = n * x_n + top * x_h + left * x_w
    y_pixel = n * y_n + row * y_h + column * y_w
    # The dimension that lies densest in memory comes last in a tile, so that a warp reads and writes neighbours.
    if CHANNELS_LAST:
        total = tl.zeros((BLOCK_P, BLOCK_M), dtype=tl.float32)
    else:
        total = tl.zeros((BLOCK_M, BLOCK_P), dtype=tl.float32)
    for start in range(0, R, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        in_k = k < R
        c = tl.load(columns_ptr + k, mask=in_k, other=0)
        i = tl.load(columns_ptr + R + k, mask=in_k, other=0) * dilation_h
        j = tl.load(columns_ptr + 2 * R + k, mask=in_k, other=0) * dilation_w
        x_column = c * x_c + i * x_h + j * x_w
        if CHANNELS_LAST:
            inside = in_p[:, None] & in_k[None, :]
            if PADDED:
                y_in = top[:, None] + i[None, :]
                x_in = left[:, None] + j[None, :]
                inside = inside & (y_in >= 0) & (y_in < height) & (x_in >= 0) & (x_in < width)
            x_tile = tl.load(x_ptr + (x_pixel[:, None] + x_column[None, :]), mask=inside, other=0.0)
            w_tile = tl.load(weight_ptr + (m[None, :] * R + k[:, None]), mask=in_k[:, None] & in_m[None, :], other=0.0)
            total = tl.dot(x_tile, w_tile, total, input_precision=ROUNDING)
        else:
            inside = in_k[:, None] & in_p[None, :]
            if PADDED:
                y_in = top[None, :] + i[:, None]
                x_in = left[None, :] + j[:, None]
                inside = inside & (y_in >= 0) & (y_in < height) & (x_in >= 0) & (x_in < width)
            x_tile = tl.load(x_ptr + (x_column[:, None] + x_pixel[None, :]), mask=inside, other=0.0)
            w_tile = tl.load(weight_ptr + (m[:, None] * R + k[None, :]), mask=in_m[:, None] & in_k[None, :], other=0.0)
            total = tl.dot(w_tile, x_tile, total, input_precision=ROUNDING)
    if CHANNELS_LAST:
        if HAS_BIAS:
            total = total + tl.load(bias_ptr + m, mask=in_m, other=0.0).to(tl.float32)[None, :]
        y_places = y_ptr + (y_pixel[:, None] + m[None, :] * y_c)
        tl.store(y_places, total.to(y_ptr.dtype.element_ty), mask=in_p[:, None] & in_m[None, :])
    else:
        if HAS_BIAS:
            total = total + tl.load(bias_ptr + m, mask=in_m, other=0.0).to(tl.float32)[:, None]
        y_places = y_ptr + (m[:, None] * y_c + y_pixel[None, :])
        tl.store(y_places, total.to(y_ptr.dtype.element_ty), mask=in_m[:, None] & in_p[None, :])


def _tried() -> list[Any]:
    """Block sizes that the autotuner tries: of a batch of one only small ones make enough programs for the device."""
    shapes = (
        # (filters, pixels, columns, warps, stages)
        (16, 32, 64, 2, 4),
        (32, 16, 64, 2, 4),
        (32, 32, 32, 4, 4),
        (32, 64, 64, 4, 3),
        (64, 32, 64, 4, 3),
        (64, 64, 32, 4, 4),
        (64, 64, 64, 4, 3),
        (64, 128, 32, 4, 4),
        (128, 64, 32, 4, 4),
        (128, 64, 64, 8, 3),
        (128, 128, 32, 8, 3),
        (128, 128, 64, 8, 3),
        (128, 256, 32, 8, 3),
    )
    return [
        triton.Config({"BLOCK_M": m, "BLOCK_P": p, "BLOCK_K": k}, num_warps=warps, num_stages=stages)
        for m, p, k, warps, stages in shapes
    ]


@cache
def _tuned() -> Any:
    """The kernel with its autotuner, which some versions of Triton cannot make where there is no device."""
    return triton.autotune(configs=_tried(), key=["M", "P", "R", "PADDED", "CHANNELS_LAST", "ROUNDING"])(_kernel)


_kernel: Any = None if triton is None else triton.jit(_implicit_gemm)
