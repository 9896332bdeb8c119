"""The network and the optimiser themselves, under what other libraries wrap around them."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer


def inner_model(model: nn.Module) -> nn.Module:
    """The network itself, under DDP and `torch.compile`: plans name its layers."""
    while True:
        inner = model.module if isinstance(model, DataParallel | DistributedDataParallel) else None
        inner = getattr(model, "_orig_mod", inner)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def plain_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimiser that steps, under the wrappers of Accelerate and Lightning."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer
