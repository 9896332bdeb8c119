"""BatchNorm statistics for a network that was just pruned: forward passes only.

A network whose filters were zeroed still normalises by the statistics of the one it was; its accuracy then says nothing
about the weights. A few batches settle it (Li et al., EagleEye, ECCV 2020, section 3.3: adaptive batch normalisation).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from admm.training import Batch, on_device

#: Batches that settle the statistics; more moved no accuracy.
BATCHES = 8


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Batch], limit: int = BATCHES) -> int:
    """Replace in place each BatchNorm's running statistics by the mean over `limit` batches; returns the samples read.

    Only BatchNorm runs in training mode (no dropout); modes and momenta are put back. Without it nothing is read.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    modes = [(m, m.training) for m in model.modules()]
    momenta = [(norm, norm.momentum) for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    samples = 0
    try:
        for inputs, _ in on_device(islice(batches, limit), next(model.parameters()).device):
            model(inputs)
            samples += len(inputs)
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
    return samples
