"""MNIST with the two networks of the pruning papers: LeNet-300-100 and LeNet-5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from search.errors import UserError
from search.tasks.augment import shift_by
from search.tasks.base import DenseRecipe, Task
from search.tasks.idx import read_split
from search.tasks.images import check_limit, check_network, data_folder
from search.tasks.networks import MNIST_INPUT, LeNet5, LeNet300

TRAINING_IMAGES = 60_000
MEAN, STD = (0.1307,), (0.3081,)
"""Of the training pixels, in [0, 1]."""
BLACK = -MEAN[0] / STD[0]
"""What surrounds a digit, normalised."""
NETWORKS: dict[str, Callable[[], nn.Module]] = {"lenet-300-100": LeNet300, "lenet-5": LeNet5}
RECIPES = {
    "lenet-300-100": DenseRecipe(epochs=20, lr=0.1, min_accuracy=0.984),
    "lenet-5": DenseRecipe(epochs=20, lr=0.05, min_accuracy=0.992),
}
"""What they reach with shifts of a pixel is in `benchmarks/results/mnist.json`: dense accuracy, for each seed."""


def task(
    data: str = "data/mnist",
    network: str = "lenet-5",
    shifts: int = 1,
    batch_size: int = 128,
    epochs: int | None = None,
    lr: float | None = None,
    min_accuracy: float | None = None,
    limit: int | None = None,
) -> Task:
    """MNIST from the four idx files in the folder `data`: 55,000 images to train on, 5,000 for validation, 10,000 test.

    `network` is `lenet-300-100` or `lenet-5`. Training images are moved by up to `shifts` pixels (0: not at all).
    `epochs`, `lr` and `min_accuracy` replace those of the network's dense recipe. `limit` keeps the first so many
    images of the training and of the test files, and asks for no accuracy: a smoke test. Raises `UserError` for files
    that are missing or damaged.
    """
    recipe = RECIPES[check_network(network, tuple(NETWORKS))]
    asked: dict[str, Any] = {"epochs": epochs, "lr": lr, "min_accuracy": min_accuracy}
    if not isinstance(shifts, int) or not 0 <= shifts <= 14:
        raise UserError(f"task_args.shifts: must lie in 0..14 pixels, got {shifts!r}")
    limit, folder = check_limit(limit), data_folder(data)
    train, val = read_split(folder, "train").first(limit).hold_out(full=TRAINING_IMAGES)
    test = read_split(folder, "t10k").first(limit)
    if limit is not None:
        recipe = replace(recipe, min_accuracy=None)
    return Task(
        name="mnist",
        model=NETWORKS[network],
        train=train.arrays(MEAN, STD, shift_by(shifts, fill=BLACK)),
        val=val.arrays(MEAN, STD),
        test=test.arrays(MEAN, STD),
        example_input=torch.zeros(1, *MNIST_INPUT),
        dense=replace(recipe, **{name: value for name, value in asked.items() if value is not None}),
        batch_size=batch_size,
    )
