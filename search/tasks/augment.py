"""Augmentations of a batch of images, vectorised: whatever is random comes from the generator alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Augment: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""(images [batch, channels, h, w], generator) -> images of the same shape."""


def shift_by(pixels: int, fill: float = 0.0) -> Augment | None:
    """Move each image by up to `pixels` along each axis, every offset alike, filling with `fill`; None for 0 pixels."""
    if pixels == 0:
        return None

    def shift(x: Tensor, generator: torch.Generator) -> Tensor:
        return _shift(x, pixels, fill, generator)

    return shift


def crop_and_flip(pixels: int, fill: float = 0.0) -> Augment:
    """Pad by `pixels`, crop back at random and mirror every other image (He et al. 2016, section 4.2)."""

    def change(x: Tensor, generator: torch.Generator) -> Tensor:
        x = _shift(x, pixels, fill, generator)
        mirrored = torch.rand(len(x), 1, 1, 1, generator=generator).to(x.device) < 0.5
        return torch.where(mirrored, x.flip(3), x)

    return change


def _shift(x: Tensor, pixels: int, fill: float, generator: torch.Generator) -> Tensor:
    height, width = x.shape[-2:]
    windows = F.pad(x, (pixels,) * 4, value=fill).unfold(2, height, 1).unfold(3, width, 1)
    offsets = torch.randint(2 * pixels + 1, (2, len(x)), generator=generator).to(x.device)
    return windows[torch.arange(len(x), device=x.device), :, offsets[0], offsets[1]]
