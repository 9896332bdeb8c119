"""Small networks and data that train in a second, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from admm.groupmap import GroupMap
from admm.kept import Kept, kept_from_slots
from admm.kept_masks import add_selected
from admm.plan import PruningPlan
from admm.projector import Projector
from admm.shapes import masks_by_magnitude

Batch = tuple[Tensor, Tensor]


class TinyResNet(nn.Module):
    """Stem, one residual block and a head: a coupled group, BatchNorm and an inner group."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        y = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(y)))
        return self.head(x.mean((2, 3)))


class Tiny3d(nn.Module):
    """Two Conv3d layers and a head after flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv3d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x))
        return self.head(nn.functional.avg_pool3d(x, 2).flatten(1))


def seeded(factory: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network with the same initial weights each time; the global generator is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return factory()


def patterns(samples: int = 256, size: int = 6, dims: int = 2, seed: int = 1) -> Batch:
    """Four noisy patterns to tell apart: inputs [samples, 1, size, ...], labels [samples]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4, 1, *(size,) * dims)
    prototypes = torch.randn(shape, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, 4, (samples,), generator=generator)
    return prototypes[labels] + 0.7 * torch.randn((samples, *shape[1:]), generator=generator), labels


def epochs_of(data: Batch, batch: int = 32, seed: int = 0) -> Callable[[int], Iterator[Batch]]:
    """`train_batches(epoch)` over the data: shuffled by (seed, epoch)."""

    def batches(epoch: int) -> Iterator[Batch]:
        order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for index in order.split(batch):
            yield data[0][index], data[1][index]

    return batches


def accuracy(model: nn.Module, data: Batch) -> float:
    """Share of right answers in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).double().mean())


def trained(factory: Callable[[], nn.Module], data: Batch, epochs: int = 6, lr: float = 0.05) -> nn.Module:
    """A network trained for a moment with SGD."""
    model = seeded(factory)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for epoch in range(epochs):
        model.train()
        for x, y in epochs_of(data)(epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def kept_by_magnitude(model: nn.Module, groups: GroupMap, plan: PruningPlan, *, align: int = 1) -> Kept:
    """What `compact` needs for the plan's filters and channels, from the present weights."""
    masks = masks_by_magnitude(model, Projector(model, groups, plan, align=align))
    if masks is None:
        return {}
    return add_selected(kept_from_slots(groups, {n: s.tolist() for n, s in masks.slots.items()}), masks)
