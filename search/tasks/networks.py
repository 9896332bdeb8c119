"""The networks of the papers that this project is compared with: LeNets for MNIST, ResNets for CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

MNIST_INPUT = (1, 28, 28)
CIFAR_INPUT = (3, 32, 32)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes (arXiv 1512.03385).

    [batch, inputs, h, w] -> [batch, outputs, h / stride, w / stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class LeNet300(nn.Module):
    """LeNet-300-100 (LeCun et al. 1998): [batch, 1, 28, 28] or [batch, 784] -> [batch, 10]; 266,200 weights."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        scores: Tensor = self.fc3(x)
        return scores


class LeNet5(nn.Module):
    """LeNet-5 as Caffe has it: [batch, 1, 28, 28] -> [batch, 10]; 430,500 weights.

    That is the network of the pruning papers (Han et al. 2015; Zhang et al. 2018), not LeCun's of 60,000 weights. As in
    Caffe, the convolutions are followed by max pooling alone and the only ReLU stands behind the first linear layer.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x), 2)  # [batch, 20, 12, 12]
        x = F.max_pool2d(self.conv2(x), 2)  # [batch, 50, 4, 4]
        scores: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return scores


class CifarResNet(nn.Module):
    """A residual network for CIFAR: [batch, 3, 32, 32] -> [batch, classes].

    A 3x3 stem, then one stage of `blocks[i]` basic blocks at `widths[i]` filters each; every stage but the first halves
    the image. Where the shape changes the shortcut is a 1x1 projection with BatchNorm (option B of He et al. 2016,
    arXiv 1512.03385). Their CIFAR networks pad with zeros there (option A), which ties a filter of one stage to a
    shifted one of the next, so that these could not be removed on their own; the projections are 1 % of
    ResNet-20's weights.
    """

    def __init__(self, widths: Sequence[int], blocks: Sequence[int], classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        stages, inputs = [], widths[0]
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            first = ResidualBlock(inputs, width, stride=1 if i == 0 else 2)
            stages.append(nn.Sequential(first, *(ResidualBlock(width, width) for _ in range(count - 1))))
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu(self.bn(self.stem(x))))
        scores: Tensor = self.head(x.mean(dim=(2, 3)))
        return scores


def resnet20(classes: int = 10) -> CifarResNet:
    """ResNet-20 (He et al. 2016, section 4.2): 6n+2 layers with n = 3; 270,896 weights at 10 classes."""
    return CifarResNet((16, 32, 64), (3, 3, 3), classes)


def resnet56(classes: int = 10) -> CifarResNet:
    """ResNet-56 (He et al. 2016, section 4.2): 6n+2 layers with n = 9; 851,504 weights at 10 classes."""
    return CifarResNet((16, 32, 64), (9, 9, 9), classes)


def resnet18(classes: int = 10) -> CifarResNet:
    """ResNet-18 in its usual form for CIFAR, a 3x3 stem without pooling; 11,164,352 weights at 10 classes."""
    return CifarResNet((64, 128, 256, 512), (2, 2, 2, 2), classes)
