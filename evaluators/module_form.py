"""Modules and inputs in the form that a rig runs them in: of its precision, in memory of their own, as it lays them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NoReturn

import torch
from torch import Tensor, nn

from evaluators.errors import RigError, RigUnavailable, one_line
from evaluators.semi_structured import holds_semi_structured

#: Ways of running a layer without its zeros: by its kept GEMM columns, or by sparse tensor cores.
KEPT_COLUMNS, TWO_OF_FOUR = "kept-columns", "2:4"
#: What a model computes in -> (its type, how float32 products are rounded).
PRECISIONS: dict[str, tuple[torch.dtype, str]] = {
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
}


def require_precision(precision: str, known: Iterable[str] = PRECISIONS) -> str:
    """`precision` if it is one of `known`; raises `RigUnavailable`."""
    if precision not in known:
        raise RigUnavailable(f"precision must be one of {', '.join(known)}, got {precision!r}")
    return precision


def refuse_onnx(rig: str, instead: str) -> NoReturn:
    """Raises `RigError` for an ONNX file given to a rig of modules."""
    raise RigError(
        f"rig {rig!r} measures torch modules, which measure_modules takes: give those or a run folder, "
        f"or measure the ONNX file on {instead}"
    )


def prepared_module(module: nn.Module, precision: str, channels_last: bool) -> nn.Module:
    """A copy of `module` in eval mode, of the precision's type and in the asked memory layout.

    One with 2:4 weights, which can be neither copied nor converted, is taken as it is.
    """
    if holds_semi_structured(module):
        if module.training:
            raise RigError("a module with 2:4 weights is measured as it is: put it in eval mode first")
        return module
    try:
        copied = copy.deepcopy(module).eval().requires_grad_(False)
    except Exception as error:
        raise RigError(f"the module cannot be copied: {one_line(error)}") from error
    copied = copied.to(PRECISIONS[precision][0])
    if channels_last:
        for value in copied.parameters():
            if value.ndim == 4:
                value.data = value.data.contiguous(memory_format=torch.channels_last)
    return copied


def prepared_input(example: Tensor, batch: int, precision: str, channels_last: bool) -> Tensor:
    """`batch` samples [batch, ...] of the precision's type, in memory of their own and the asked layout."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise RigError(f"batch must be an integer >= 1, got {batch!r}")
    if not isinstance(example, Tensor) or example.ndim < 1:
        raise RigError(f"example_input must be a tensor [samples, ...], got {type(example).__name__}")
    if len(example) not in (1, batch):
        raise RigError(f"example_input holds {len(example)} samples where batch is {batch}: give one sample or {batch}")
    dtype = PRECISIONS[precision][0] if example.is_floating_point() else example.dtype
    whole = example.detach().expand(batch, *example.shape[1:]) if len(example) == 1 else example.detach()
    layout = torch.channels_last if channels_last and example.ndim == 4 else torch.contiguous_format
    return whole.to(dtype).clone(memory_format=layout)
