"""The task that search methods are compared on: a small convolutional network reads MNIST at half its resolution.

Small enough for a trial of seconds on one core, with so many validation images that their noise does not decide, and
with so few filters to spare that careless pruning costs more than the three points that the comparison looks at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from admm.plan import PruningPlan
from search.errors import UserError
from search.tasks.base import DenseRecipe, Task
from search.tasks.data import Arrays
from search.tasks.idx import read_split
from search.tasks.images import LabelledImages, data_folder
from search.tasks.mnist import BLACK, MEAN, STD

#: Filters of each layer: multiples of 16, which is the block of most devices.
WIDTHS = (32, 48, 48, 64, 64, 96, 96)
STRIDES = (2, 1, 2, 1, 2, 1, 1)
SIDE = 14
#: Digits are turned by up to so much: a task that needs the filters it has.
DEGREES = 60.0


class SmallNet(nn.Module):
    """[batch, 1, 14, 14] -> [batch, 10]: 3x3 convolutions with BatchNorm and ReLU, a mean over the image, a layer.

    `widths` are the filters of the seven convolutions.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS, classes: int = 10) -> None:
        super().__init__()
        inputs = 1
        for i, (width, stride) in enumerate(zip(widths, STRIDES, strict=True), start=1):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(width))
            inputs = width
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, len(WIDTHS) + 1):
            x = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x)))
        scores: Tensor = self.head(x.mean(dim=(2, 3)))
        return scores


def kept_widths(plan: PruningPlan) -> list[int]:
    """Filters of each convolution under a plan that is aligned already."""
    return [w - round(w * plan.sparsity(f"conv{i}", "filter")) for i, w in enumerate(WIDTHS, start=1)]


def halved(images: LabelledImages) -> Arrays:
    """Means of 2x2 pixels, normalised."""
    full = images.arrays(MEAN, STD)
    return Arrays(F.avg_pool2d(full.x, 2), full.y)


def turned(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turn each image of [batch, 1, h, w] by up to `DEGREES` either way, filling with black."""
    angle = (torch.rand(len(x), generator=generator) * 2.0 - 1.0) * math.radians(DEGREES)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(len(x))
    turns = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)  # [batch, 2, 3]
    grid = F.affine_grid(turns, list(x.shape), align_corners=False)
    return F.grid_sample(x - BLACK, grid, align_corners=False) + BLACK


def task(
    data: str, train: int = 2_000, val: int = 3_000, test: int = 2_000, epochs: int = 16, batch_size: int = 50
) -> Task:
    """MNIST from the idx files in `data`: the first `train` training images, the `val` behind them for validation.

    Training images are turned anew in each epoch, the others once and for all. Raises `UserError` for files that are
    missing or damaged, or hold fewer images.
    """
    folder = data_folder(data)
    given, tested = read_split(folder, "train"), read_split(folder, "t10k")
    if len(given.labels) < train + val:
        raise UserError(
            f"task_args: train {train} and val {val} are more than the {len(given.labels)} images: ask less"
        )
    first = halved(given.first(train + val))
    order = torch.arange(train + val)
    fit, held, last = first.take(order[:train]), first.take(order[train:]), halved(tested.first(test))
    still = torch.Generator().manual_seed(0)
    return Task(
        name="mnist-turned",
        model=SmallNet,
        train=Arrays(fit.x, fit.y, augment=turned),
        val=Arrays(turned(held.x, still), held.y),
        test=Arrays(turned(last.x, still), last.y),
        example_input=torch.zeros(1, 1, SIDE, SIDE),
        dense=DenseRecipe(epochs=epochs, lr=0.05),
        batch_size=batch_size,
    )
