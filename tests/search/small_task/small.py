"""The smallest search worth the name: seconds a trial, one coupled group, a layer of its own, a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search.tasks import Arrays, DenseRecipe, Task

SIDE, CLASSES = 12, 4


class Network(nn.Module):
    """[batch, 1, 12, 12] -> [batch, 4]: a stem, one residual block, a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))
        return self.head(x.mean((2, 3)))


def bars(samples: int, seed: int) -> Arrays:
    """Horizontal, vertical and the two diagonal waves, in noise."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(samples) % CLASSES
    grid = torch.arange(SIDE, dtype=torch.float32)
    rows, columns = grid[:, None].expand(SIDE, SIDE), grid[None].expand(SIDE, SIDE)
    across = torch.stack([rows, columns, (rows + columns) / 1.4, (rows - columns) / 1.4])[kind]
    phase = torch.rand(samples, 1, 1, generator=generator) * 6.3
    noise = torch.randn(samples, SIDE, SIDE, generator=generator)
    return Arrays((torch.sin(1.6 * across + phase) + 1.3 * noise)[:, None], kind)


def task(width: int = 32, samples: int = 320) -> Task:
    """What job.yaml names."""
    return Task(
        name="bars",
        model=lambda: Network(width),
        train=bars(samples, 0),
        val=bars(120, 1),
        dense=DenseRecipe(epochs=4, lr=0.05, min_accuracy=0.9),
        batch_size=32,
    )
