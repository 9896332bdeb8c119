"""Regression: one number a sample, mean squared error as the loss and R² as the metric.

`prunefront search examples/regression/job.yaml`. Copy this file and put your network and data in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.tasks import Arrays, DenseRecipe, Task


@dataclass
class Estimate:
    """What the network returns: the number asked for, and what it was read from."""

    value: Tensor
    features: Tensor


class Reader(nn.Module):
    """[batch, 1, 64] -> the pitch of a wave, [batch, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, width, 7, padding=3), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Conv1d(width, 2 * width, 5, stride=2, padding=2), nn.BatchNorm1d(2 * width), nn.ReLU(),
            nn.Conv1d(2 * width, 2 * width, 5, stride=2, padding=2), nn.BatchNorm1d(2 * width), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(2 * width, 1)

    def forward(self, x: Tensor) -> Estimate:
        features = self.body(x).mean(2)
        return Estimate(value=self.head(features), features=features)


def waves(samples: int, seed: int) -> Arrays:
    """Sine waves in noise, [samples, 1, 64], and their pitch, [samples, 1], scaled to a variance of 1."""
    generator = torch.Generator().manual_seed(seed)
    pitch, phase = torch.rand(2, samples, 1, generator=generator)
    angle = 6.283 * (phase + (2.0 + 6.0 * pitch) * torch.linspace(0, 1, 64))
    x = torch.sin(angle) + 0.2 * torch.randn(samples, 64, generator=generator)
    return Arrays(x.unsqueeze(1), (pitch - 0.5) * 12**0.5)


def r_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 - squared error / variance of the targets, which is 1 here, [batch]: its mean over all samples is R².

    It is 1 at best, 0 for a network that always says the mean, and below 0 for a worse one. Tables call the mean
    accuracy and count its drop in hundredths (pp). Another metric that serves: the negative error,
    -(outputs - targets).abs().flatten(1).mean(1).
    """
    return 1.0 - (outputs - targets).square().flatten(1).mean(1)


def task(width: int = 16, samples: int = 800, epochs: int = 8) -> Task:
    """What job.yaml names."""
    return Task(
        name="pitch",
        model=lambda: Reader(width),
        output="value",
        train=waves(samples, seed=0),
        val=waves(samples // 4, seed=1),
        loss=F.mse_loss,
        metric=r_squared,
        dense=DenseRecipe(epochs=epochs, lr=5e-3, optimizer="adamw", min_accuracy=0.5),
    )
