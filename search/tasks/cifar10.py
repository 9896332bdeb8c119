"""CIFAR-10 with the networks that pruning papers report on: ResNet-20, -56 and -18, and VGG-16 with BatchNorm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from search.errors import UserError
from search.tasks.augment import crop_and_flip
from search.tasks.base import DenseRecipe, Task
from search.tasks.cifar_files import read_split
from search.tasks.images import check_limit, check_network, data_folder
from search.tasks.networks import CIFAR_INPUT, resnet18, resnet20, resnet56
from search.tasks.networks_plain import VGG16

TRAINING_IMAGES = 50_000
TRAINING_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCHES = ("test_batch",)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of the training pixels a channel, in [0, 1]."""
PADDING = 4
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet-20": resnet20,
    "resnet-56": resnet56,
    "resnet-18": resnet18,
    "vgg-16-bn": VGG16,
}


def task(
    data: str = "data/cifar10",
    network: str = "resnet-20",
    augment: bool = True,
    batch_size: int = 128,
    epochs: int = 200,
    lr: float = 0.1,
    min_accuracy: float | None = None,
    limit: int | None = None,
) -> Task:
    """CIFAR-10 from `data`/cifar-10-batches-py: 45,000 images to train on, 5,000 for validation, 10,000 test.

    `network` is `resnet-20`, `resnet-56`, `resnet-18` or `vgg-16-bn`. `augment` crops from images padded by 4 and
    mirrors. The dense recipe (SGD, weight decay 5e-4, a short rise of the rate, then a cosine to zero) is one for a
    GPU; `benchmarks/results/cifar.json` says what has been run.
    `limit` keeps the first so many images of the training and of the test files: a smoke test. Raises `UserError` for
    files that are missing, damaged or not data.
    """
    build = NETWORKS[check_network(network, tuple(NETWORKS))]
    if not isinstance(augment, bool):
        raise UserError(f"task_args.augment: must be true or false, got {augment!r}")
    limit, folder = check_limit(limit), data_folder(data)
    train, val = read_split(folder, TRAINING_BATCHES).first(limit).hold_out(full=TRAINING_IMAGES)
    test = read_split(folder, TEST_BATCHES).first(limit)
    return Task(
        name="cifar10",
        model=build,
        train=train.arrays(MEAN, STD, crop_and_flip(PADDING) if augment else None),
        val=val.arrays(MEAN, STD),
        test=test.arrays(MEAN, STD),
        example_input=torch.zeros(1, *CIFAR_INPUT),
        dense=DenseRecipe(epochs=epochs, lr=lr, weight_decay=5e-4, warmup=0.05, min_accuracy=min_accuracy),
        batch_size=batch_size,
    )
