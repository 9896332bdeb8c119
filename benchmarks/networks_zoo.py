"""The whole networks whose speed-ups are measured: two of the built-in ones, and two for ImageNet's size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from search.tasks.networks import CIFAR_INPUT, ResidualBlock, resnet20
from search.tasks.networks_plain import VGG16

IMAGE = (3, 224, 224)


class ResNet18(nn.Module):
    """ResNet-18 for ImageNet (He et al. 2016, arXiv 1512.03385): [batch, 3, 224, 224] -> [batch, 1000]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(64)
        blocks, inputs = [], 64
        for stage, width in enumerate((64, 128, 256, 512)):
            blocks += [ResidualBlock(inputs, width, 1 if stage == 0 else 2), ResidualBlock(width, width)]
            inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.stem(x))), 3, 2, padding=1)
        scores: Tensor = self.head(self.blocks(x).mean(dim=(2, 3)))
        return scores


class Inverted(nn.Module):
    """An inverted residual (Sandler et al. 2018, arXiv 1801.04381): 1x1, 3x3 depthwise, 1x1 without activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = []
        if expand > 1:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """MobileNetV2 (arXiv 1801.04381, table 2): [batch, 3, 224, 224] -> [batch, 1000]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        rows = (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
        inputs = 32
        for expand, width, count, stride in rows:
            for i in range(count):
                layers.append(Inverted(inputs, width, stride if i == 0 else 1, expand))
                inputs = width
        layers += [nn.Conv2d(inputs, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(x).mean(dim=(2, 3)))
        return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One network and its input, channels first, without the batch."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


NETWORKS = {
    "resnet-18": Network(name="ResNet-18 at 224", make=ResNet18, shape=IMAGE),
    "resnet-20": Network(name="ResNet-20 at 32", make=resnet20, shape=CIFAR_INPUT),
    "vgg-16": Network(name="VGG-16 at 32", make=VGG16, shape=CIFAR_INPUT),
    "mobilenet-v2": Network(name="MobileNetV2 at 224", make=MobileNetV2, shape=IMAGE),
}
