"""Small modules of every kind that must survive export: name -> (factory, shape of one sample)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class Residual(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.inner = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.norm(self.inner(x)))
        output: Tensor = self.head(x.mean((2, 3)))
        return output


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.out = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.out(torch.cat([self.a(x).relu(), self.b(x).sigmoid()], dim=1))
        return output


class Selecting(nn.Module):
    """A consumer that keeps some of its input channels: index, then a smaller layer."""

    def __init__(self, index: tuple[int, ...] = (0, 2)) -> None:
        super().__init__()
        self.index: Tensor
        self.register_buffer("index", torch.tensor(index))
        self.layer = nn.Conv2d(len(index), 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(torch.index_select(x, 1, self.index))
        return output


class SelectingLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.index: Tensor
        self.register_buffer("index", torch.tensor([1, 3, 4]))
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(torch.index_select(x, -1, self.index))
        return output


class BatchOfOne(nn.Module):
    """Its author flattened with a batch of one in mind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.conv(x).reshape(1, 4 * 36))
        return output


def lenet_like() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(6 * 9, 10)
    )


def randomise(model: Network, seed: int = 0) -> Network:
    """Parameters and statistics as after training, none of them at its neutral starting value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return model


ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet": (lenet_like, (3, 8, 8)),
    "residual": (Residual, (3, 8, 8)),
    "concat": (Concat, (3, 6, 6)),
    "linear": (lambda: nn.Sequential(nn.Linear(7, 9), nn.GELU(), nn.Linear(9, 3)), (7,)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 6, 5, stride=2), nn.BatchNorm1d(6), nn.PReLU(6)), (2, 16)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU()), (2, 4, 4, 4)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2), nn.Sigmoid()), (3, 4, 4)),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=12), nn.Hardswish()),
        (3, 6, 6),
    ),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, dilation=2), nn.GroupNorm(2, 8)), (4, 8, 8)),
    "layernorm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.SiLU()), (6,)),
    "index_select": (Selecting, (3, 6, 6)),
    "index_select_linear": (SelectingLinear, (6,)),
}
