"""Retraining after the hard prune in a loop of one's own: what is zero stays zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from admm.errors import PruneError
from admm.unwrap import inner_model, plain_optimizer


def hold_zeros(model: nn.Module, optimizer: Optimizer, zeros: Mapping[str, Tensor]) -> RemovableHandle:
    """Keep at zero what `zeros` (from `finish`) masks in `model`, after each step of `optimizer`; remove() ends it.

    Raises `PruneError` where `zeros` do not fit the model or the optimiser does not train it.
    """
    optimizer = plain_optimizer(optimizer)
    parameters = dict(inner_model(model).named_parameters())
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, mask in zeros.items():
        if name not in parameters:
            raise PruneError(f"the model has no parameter {name}: hold_zeros() wants the small model of finish()")
        shape = parameters[name].shape
        if mask.shape != shape:
            raise PruneError(
                f"{name} is {list(shape)}, its mask {list(mask.shape)}: use the zeros of the same finish()"
            )
        if id(parameters[name]) not in trained:
            raise PruneError(f"the optimiser does not train {name} of this model: make one of its parameters()")
    held = [parameters[name] for name in zeros]
    masks = list(zeros.values())

    @torch.no_grad()
    def hold(*_: Any) -> None:
        if not held:
            return
        if masks[0].device != held[0].device:  # the model was moved since
            masks[:] = [mask.to(p.device) for p, mask in zip(held, masks, strict=True)]
        torch._foreach_mul_([p.data for p in held], masks)

    hold()
    return optimizer.register_step_post_hook(hold)
