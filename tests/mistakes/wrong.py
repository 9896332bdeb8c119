"""A user's own module, each function of it wrong in its own way; `small` beside it is the one that is right."""

from __future__ import annotations

import small
import torch
from torch import nn

from search.tasks import Arrays, DenseRecipe, Task


def task_of(**parts):
    """A right task, quick to read, but for these parts."""
    right = {"name": "bars", "model": lambda: small.Network(16), "train": small.bars(40, 0), "val": small.bars(20, 1)}
    return Task(**{**right, **parts})


def fails():
    raise ValueError("no such file: data.npz")


def leaves():
    raise SystemExit("set DATA first")


def gives_a_number():
    return 3


def gives_the_network():
    return small.Network(16)


def network_not_function():
    return task_of(model=small.Network(16))


def model_fails():
    return task_of(model=lambda: torch.load("weights.pt"))


class NoTensor(small.Network):
    def forward(self, x):
        return {"loss": "none"}


def no_tensor():
    return task_of(model=lambda: NoTensor(16))


class TwoTensors(small.Network):
    def forward(self, x):
        return {"scores": super().forward(x), "features": x}


def two_tensors():
    return task_of(model=lambda: TwoTensors(16))


class Unexportable(small.Network):
    def forward(self, x):
        return super().forward(x) * float(torch.tensor(x.mean().item() > 1e9) + 1)


def unexportable():
    return task_of(model=lambda: Unexportable(16))


def no_layers():
    return task_of(model=nn.Flatten)


def broken_weights():
    network = small.Network(16)
    network.head.weight.data.fill_(float("nan"))
    return task_of(model=lambda: network)


def frozen():
    return task_of(model=lambda: small.Network(16).requires_grad_(False))


def hopeless():
    return task_of(dense=DenseRecipe(epochs=1, lr=1e-9, min_accuracy=0.99))


def empty():
    return task_of(train=Arrays(torch.zeros(0, 1, 12, 12), torch.zeros(0, dtype=torch.long)))


def no_batches():
    return task_of(val=[])


def read_once():
    return task_of(val=(batch for batch in ()))


def not_a_number():
    task = task_of(train=small.bars(320, 0))
    task.train.x[17] = float("nan")
    return task


def infinite():
    return task_of(train=Arrays(torch.full((40, 1, 12, 12), torch.inf), torch.zeros(40)))


def lengths_differ():
    return task_of(train=Arrays(torch.zeros(40, 1, 12, 12), torch.zeros(39)))


def colours():
    return task_of(train=Arrays(torch.zeros(40, 3, 12, 12), torch.zeros(40, dtype=torch.long)))


def bytes_of_an_image():
    return task_of(train=Arrays(torch.zeros(40, 1, 12, 12, dtype=torch.uint8), torch.zeros(40, dtype=torch.long)))


def too_many_classes():
    x = small.bars(400, 0).x
    y = torch.arange(400) % 4
    y[399] = 4
    return task_of(train=Arrays(x, y), batch_size=4, dense=DenseRecipe(epochs=1, lr=0.01))


def numbered_from_one():
    data = small.bars(40, 0)
    return task_of(val=Arrays(data.x, data.y + 1))


def float_labels():
    data = small.bars(40, 0)
    return task_of(train=Arrays(data.x, data.y.float()))


def loss_a_sample():
    return task_of(loss=lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, reduction="none"))


def metric_in_percent():
    return task_of(metric=lambda outputs, targets: 100.0 * (outputs.argmax(1) == targets))


def metric_of_the_batch():
    return task_of(metric=lambda outputs, targets: (outputs.argmax(1) == targets).float().mean())
