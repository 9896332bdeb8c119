"""A network and data of your own: `prunefront search examples/own_model/job.yaml`. Copy this file and change it."""

import numpy as np
import torch
from torch import nn

from search.tasks import Arrays, DenseRecipe, Task


def network(width: int) -> nn.Module:
    """Any torch.nn.Module: here a 1-D convolutional network, [batch, 1, 128] -> [batch, 4]."""
    return nn.Sequential(
        nn.Conv1d(1, width, 7, stride=2, padding=3), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Conv1d(width, 2 * width, 5, stride=2, padding=2), nn.BatchNorm1d(2 * width), nn.ReLU(),
        nn.Conv1d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm1d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * width, 4),
    )  # fmt: skip


def signals(samples: int, seed: int) -> Arrays:
    """Sine, square, triangle and saw-tooth waves of random pitch and phase, in noise."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, samples)
    turns = (rng.uniform(2, 6, (samples, 1)) * np.linspace(0, 1, 128) + rng.uniform(0, 1, (samples, 1))) % 1.0
    sine = np.sin(2 * np.pi * turns)
    waves = np.stack([sine, np.sign(sine), 4 * np.abs(turns - 0.5) - 1, 2 * turns - 1])  # [4, samples, 128]
    x = waves[kind, np.arange(samples)] + rng.normal(0, 0.4, (samples, 128))
    return Arrays(torch.from_numpy(x).float().unsqueeze(1), torch.from_numpy(kind))


def task(width: int = 64, samples: int = 1500) -> Task:
    """What job.yaml names; with trained weights, load them in `model` and leave `dense` out."""
    return Task(
        name="waves",
        model=lambda: network(width),
        train=signals(samples, seed=0),  # no `val`: a tenth of this is held out
        test=signals(500, seed=1),
        dense=DenseRecipe(epochs=8, lr=0.05, min_accuracy=0.9),
    )
