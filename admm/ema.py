"""An exponential moving average of a network's weights (Polyak and Juditsky 1992), with a start-up."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """The averaged network beside one in training: `update()` after each step, then use `model`.

    A weight's average moves by 1 − d of the gap each step, d = min(decay, (1 + n) / (10 + n)) after n steps, so that
    the random start is forgotten. BatchNorm statistics and other buffers are copied. A weight that has been zero since
    the average began is zero in it. Memory: one copy of weights and buffers.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must lie in [0, 1), got {decay}: 0.999 averages over about 1000 steps")
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._source = model

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages = [p.data for p in self.model.parameters()]
        if averages:
            torch._foreach_lerp_(averages, [p.data for p in self._source.parameters()], 1.0 - decay)
        buffers = list(self.model.buffers())
        if buffers:
            torch._foreach_copy_(buffers, list(self._source.buffers()))

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put averages and buffers into a network of the same form, in place."""
        model.load_state_dict(self.model.state_dict())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON-ready values) to continue from; buffers that torch does not save are left out."""
        return dict(self.model.state_dict()), {"decay": self.decay, "updates": self.updates}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take up what `state` gave. Raises `ValueError` for a state of another decay."""
        if values["decay"] != self.decay:
            raise ValueError(f"the average was made with decay {values['decay']}, this one has {self.decay}")
        self.model.load_state_dict(tensors)
        self.updates = int(values["updates"])
