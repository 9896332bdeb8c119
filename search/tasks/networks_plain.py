"""Networks of the papers without shortcuts: VGG-16 for CIFAR, AlexNet in two forms, a small C3D."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

IMAGENET_INPUT = (3, 227, 227)
"""Channels, height, width, as Caffe crops for AlexNet."""
VIDEO_INPUT = (3, 8, 32, 32)
"""Channels, frames, height, width."""

VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """VGG-16 with BatchNorm in its usual form for CIFAR: [batch, 3, 32, 32] -> [batch, classes].

    Thirteen 3x3 convolutions (configuration D of arXiv 1409.1556), of which each stage ends in 2x2 pooling, and a
    single linear layer on the 512 features that remain: 14,715,584 weights at 10 classes. `shrink` divides every width.
    """

    def __init__(self, classes: int = 10, *, shrink: int = 1) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = 3
        for stage, widths in enumerate(VGG16_WIDTHS, start=1):
            for number, full in enumerate(widths, start=1):
                width, name = full // shrink, f"{stage}_{number}"
                conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                layers |= {f"conv{name}": conv, f"bn{name}": nn.BatchNorm2d(width), f"relu{name}": nn.ReLU()}
                inputs = width
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        self.features = nn.Sequential(layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(x).flatten(1))
        return scores


class AlexNet(nn.Module):
    """AlexNet, for its shapes: [batch, 3, 227, 227] -> [batch, classes].

    `grouped` is CaffeNet, the network of the pruning papers (Han et al. 2015; Zhang et al. 2018): conv2, conv4 and
    conv5 in two groups and local response normalisation after the first two poolings; 60,954,656 weights. The other
    form has neither groups nor normalisation, so that every filter can be removed; 62,367,776 weights. `shrink` divides
    every hidden width. Build the full size under `torch.device("meta")` where only its shapes are wanted.
    """

    def __init__(self, classes: int = 1000, *, grouped: bool = False, shrink: int = 1) -> None:
        super().__init__()
        groups = 2 if grouped else 1
        narrow, middle, wide, hidden = (width // shrink for width in (96, 256, 384, 4096))
        self.conv1 = nn.Conv2d(3, narrow, 11, stride=4)
        self.conv2 = nn.Conv2d(narrow, middle, 5, padding=2, groups=groups)
        self.conv3 = nn.Conv2d(middle, wide, 3, padding=1)
        self.conv4 = nn.Conv2d(wide, wide, 3, padding=1, groups=groups)
        self.conv5 = nn.Conv2d(wide, middle, 3, padding=1, groups=groups)
        self.norm: nn.Module = nn.LocalResponseNorm(5) if grouped else nn.Identity()
        self.fc1 = nn.Linear(middle * 6 * 6, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(F.max_pool2d(F.relu(self.conv1(x)), 3, 2))  # [batch, 96, 27, 27]
        x = self.norm(F.max_pool2d(F.relu(self.conv2(x)), 3, 2))  # [batch, 256, 13, 13]
        x = F.relu(self.conv4(F.relu(self.conv3(x))))
        x = F.max_pool2d(F.relu(self.conv5(x)), 3, 2).flatten(1)  # [batch, 256 * 6 * 6]
        x = self.dropout(F.relu(self.fc1(x)))
        x = self.dropout(F.relu(self.fc2(x)))
        scores: Tensor = self.fc3(x)
        return scores


class C3D(nn.Module):
    """A small relation of C3D (Tran et al. 2015, arXiv 1412.0767): [batch, 3, 8, 32, 32] -> [batch, classes].

    Five 3x3x3 convolutions where the original has eight, narrower; as there, the first pooling spares the frames.
    292,240 weights at 10 classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv3d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv3d(32, 64, 3, padding=1)
        self.conv4 = nn.Conv3d(64, 64, 3, padding=1)
        self.conv5 = nn.Conv3d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.conv1(x)), (1, 2, 2))  # [batch, 16, 8, 16, 16]
        x = F.max_pool3d(F.relu(self.conv2(x)), 2)  # [batch, 32, 4, 8, 8]
        x = F.max_pool3d(F.relu(self.conv4(F.relu(self.conv3(x)))), 2)  # [batch, 64, 2, 4, 4]
        x = F.relu(self.conv5(x)).mean(dim=(2, 3, 4))
        scores: Tensor = self.head(x)
        return scores
