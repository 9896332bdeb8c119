"""Running a module without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; every submodule's own mode is put back afterwards.

    Not `torch.inference_mode`: a tensor that a module caches in there could never be trained with again.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def module_output(module: nn.Module, batch: Tensor) -> Tensor:
    """The module's output for a batch, on the CPU whatever device the module is on; it must be one tensor."""
    place = next(module.parameters(), torch.empty(0)).device
    output = module(batch.to(place))
    if not isinstance(output, Tensor):
        raise TypeError(f"the model must return one tensor, got {type(output).__name__}")
    return output.cpu()
