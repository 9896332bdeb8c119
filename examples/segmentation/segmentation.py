"""Segmentation: a small encoder and decoder with transposed convolutions, judged by mean IoU.

`prunefront search examples/segmentation/job.yaml`. Copy this file and put your network and data in.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.tasks import Arrays, DenseRecipe, Task

CLASSES = 3
"""Background, disc, bar."""


class Encoder(nn.Module):
    """Down by four and up again, with one connection past the bottom: as torchvision's networks do, it returns a dict.

    [batch, 1, side, side] -> {"out": [batch, classes, side, side], "aux": the same, from the bottom}
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.down = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        )  # fmt: skip
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up2 = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.head = nn.Conv2d(width, CLASSES, 1)
        self.aux = nn.Conv2d(2 * width, CLASSES, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        entered = self.enter(x)
        bottom = self.down(entered)
        up = entered + torch.relu(self.up2(torch.relu(self.up1(bottom))))
        aux = F.interpolate(self.aux(bottom), scale_factor=4.0)
        return {"out": self.head(up), "aux": aux}


def shapes(samples: int, side: int, seed: int) -> Arrays:
    """A disc and a bar of random place in noise; the label of each pixel is what lies there."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")

    def place() -> Tensor:
        return (torch.rand(samples, 1, 1, generator=generator) * 0.6 + 0.2) * side

    disc = (rows - place()) ** 2 + (columns - place()) ** 2 < (side / 5) ** 2
    bar = (rows - place()).abs() < side / 12
    labels = torch.zeros(samples, side, side, dtype=torch.long)
    labels[bar] = 2
    labels[disc] = 1
    noise = torch.randn(samples, side, side, generator=generator)
    return Arrays((labels.float() + 0.3 * noise).unsqueeze(1), labels)


def mean_iou(outputs: Tensor, labels: Tensor) -> Tensor:
    """Of each image, intersection over union of each class in it or in the prediction, and the mean of them: [batch].

    A metric gives one value a sample, at most 1; its mean is what tables call accuracy. The mean IoU of papers, which
    counts the pixels of all images together, is another number.
    """
    told = F.one_hot(outputs.argmax(1), CLASSES).bool().flatten(1, 2)  # [batch, pixels, classes]
    true = F.one_hot(labels, CLASSES).bool().flatten(1, 2)
    both, either = (told & true).sum(1), (told | true).sum(1)
    seen = either > 0
    return (both / either.clamp(min=1) * seen).sum(1) / seen.sum(1)


def task(width: int = 16, side: int = 32, samples: int = 400, epochs: int = 6) -> Task:
    """What job.yaml names."""
    return Task(
        name="shapes",
        model=lambda: Encoder(width),
        output="out",
        train=shapes(samples, side, seed=0),
        val=shapes(samples // 4, side, seed=1),
        loss=F.cross_entropy,  # over pixels as it is
        metric=mean_iou,
        dense=DenseRecipe(epochs=epochs, lr=0.05, min_accuracy=0.6),
        batch_size=16,
    )
