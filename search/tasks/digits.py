"""scikit-learn's 1797 handwritten digits and a small residual network: the task of the demonstration."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.errors import UserError
from search.tasks.base import DenseRecipe, Task
from search.tasks.data import Arrays
from search.tasks.networks import ResidualBlock

VAL_SAMPLES = TEST_SAMPLES = 300
SPLIT_SEED = 0


class DigitsResNet(nn.Module):
    """[batch, 1, 8, 8] -> [batch, 10]: a stem and a block at `width`, then two at twice that.

    The shortcuts couple the filters of the stem with those of the first block, and those of the two later
    blocks with each other, so that they can only be removed together.
    """

    def __init__(self, width: int = 80, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.block1 = ResidualBlock(width, width)
        self.block2 = ResidualBlock(width, 2 * width, stride=2)
        self.block3 = ResidualBlock(2 * width, 2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = self.block3(self.block2(self.block1(x)))
        scores: Tensor = self.head(x.mean(dim=(2, 3)))
        return scores


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image of [batch, channels, h, w] by up to a pixel either way, filling with zeros."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1))
    windows = torch.stack(
        [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
    )  # [9, batch, channels, h, w]
    choice = torch.randint(9, (len(x),), generator=generator)
    return windows[choice, torch.arange(len(x))]


def task(width: int = 80, epochs: int = 8, lr: float = 0.1, batch_size: int = 64, min_accuracy: float = 0.98) -> Task:
    """The digits: 1197 to train on, 300 for validation, 300 for the test, stratified, fixed seed."""
    if width < 16 or width % 16:
        raise UserError(f"task_args.width: must be a multiple of 16, got {width}: try {max(16, width // 16 * 16)}")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise UserError("the digits need scikit-learn: pip install 'prunefront[digits]'") from None
    digits = load_digits()
    x = torch.from_numpy(digits.images).float().div(16.0).unsqueeze(1)  # [1797, 1, 8, 8] in [0, 1]
    x = (x - x.mean()) / x.std()
    y = torch.from_numpy(digits.target).long()
    order = torch.arange(len(y))
    rest, test = train_test_split(order, test_size=TEST_SAMPLES, stratify=y, random_state=SPLIT_SEED)
    train, val = train_test_split(rest, test_size=VAL_SAMPLES, stratify=y[rest], random_state=SPLIT_SEED)
    return Task(
        name="digits",
        model=lambda: DigitsResNet(width),
        train=Arrays(x[train], y[train], augment=shift),
        val=Arrays(x[val], y[val]),
        test=Arrays(x[test], y[test]),
        example_input=torch.zeros(1, 1, 8, 8),
        dense=DenseRecipe(epochs=epochs, lr=lr, min_accuracy=min_accuracy),
        batch_size=batch_size,
    )
