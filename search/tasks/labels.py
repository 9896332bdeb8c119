"""Class numbers against the outputs there are: cross-entropy itself stops at the first batch with a wrong one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.errors import UserError

#: What cross-entropy leaves out unless it is told otherwise.
IGNORED = -100


def require_labels(task: str, part: str, outputs: Tensor, targets: Tensor, loss: Callable[..., Tensor]) -> None:
    """Raises `UserError` for a class that the network has no output for.

    `outputs` are [batch, classes, ...] of any batch, `targets` [samples, ...] those of the part called `part`, all of
    them where they are in memory. Only for cross-entropy, and class numbers: what another loss makes of its targets is
    its own.
    """
    ignored = getattr(loss, "ignore_index", IGNORED)
    numbers = not targets.is_floating_point() and targets.dtype != torch.bool
    if loss is not F.cross_entropy and not isinstance(loss, nn.CrossEntropyLoss):
        return
    if not numbers or outputs.ndim < 2 or targets.ndim != outputs.ndim - 1:
        return
    classes = outputs.shape[1]
    wrong = targets[((targets < 0) | (targets >= classes)) & (targets != ignored)]
    if len(wrong):
        raise UserError(
            f"task {task!r}: the {part} labels hold class {int(wrong[0])}, and the network has {classes} outputs, for "
            f"classes 0 to {classes - 1}: give it an output for each class, or number them from 0"
        )
