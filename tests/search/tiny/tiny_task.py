"""A task that trains in about a second and can be told to break: what the reliability tests search on."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.tasks import Arrays, DenseRecipe, Task

SAMPLES, CLASSES, SIDE, BATCH = 512, 4, 8, 32
#: While a file of this name is there, no training gets beyond its second epoch.
HOLD = "hold"


class Tiny(nn.Module):
    """A convolutional stem and one residual block with BatchNorm: [batch, 1, 8, 8] -> [batch, 4].

    `faults` maps the widths of stem and inner convolution after pruning, as in "8x8", to what then goes wrong.
    """

    def __init__(self, width: int, faults: Mapping[str, str]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, CLASSES)
        self.faults = dict(faults)

    def forward(self, x: Tensor) -> Tensor:
        fault = self.faults.get(f"{self.stem.weight.shape[0]}x{self.conv1.weight.shape[0]}")
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        logits: Tensor = self.head(x.mean((2, 3)))
        if fault == "nan" and self.training:
            logits = logits * float("nan")
        if fault == "export" and torch.compiler.is_exporting():
            raise RuntimeError("this width cannot be traced")
        if fault == "parity" and torch.compiler.is_exporting():
            logits = logits + 0.01
        return logits


def stripes(samples: int, seed: int) -> Arrays:
    """Stripes in four directions, in noise."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(CLASSES, (samples,), generator=generator)
    angle = kind * torch.pi / CLASSES
    phase = torch.rand(samples, generator=generator) * 2 * torch.pi
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    along = x * torch.cos(angle)[:, None, None] + y * torch.sin(angle)[:, None, None]
    waves = torch.sin(1.5 * along + phase[:, None, None])
    noise = 0.8 * torch.randn(waves.shape, generator=generator)
    return Arrays((waves + noise).unsqueeze(1), kind)


def task(width: int = 16, log: str = "", pause: float = 0.0, faults: Mapping[str, str] | None = None) -> Task:
    """`log` is a file that gets a line for each epoch that was trained to its end; `pause` seconds lengthen it."""
    data = stripes(SAMPLES, seed=0)

    def train(epoch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        while epoch == 2 and Path(HOLD).exists():
            time.sleep(0.01)
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        for part in torch.randperm(SAMPLES, generator=generator).split(BATCH):
            time.sleep(pause * BATCH / SAMPLES)
            yield data.x[part], data.y[part]
        if log:
            _note(Path(log), epoch)

    return Task(
        name="tiny",
        model=lambda: Tiny(width, faults or {}),
        train=train,
        train_size=SAMPLES,
        val=stripes(256, seed=1),
        dense=DenseRecipe(epochs=4, lr=0.1, min_accuracy=0.7),
        batch_size=BATCH,
    )


def _note(log: Path, epoch: int) -> None:
    """Whose epoch it was is known to a caller far up: the data of a task do not know of trials."""
    number = None
    frame = sys._getframe(1)
    while frame is not None:
        if type(frame.f_locals.get("self")).__name__ == "TrialRun":
            number = frame.f_locals["self"].spec.number
        frame = frame.f_back
    # The file system's clock, which a result's time of publication is read on too: it may lag by a tick.
    with tempfile.TemporaryFile(dir=log.parent) as stamp:
        now = os.fstat(stamp.fileno()).st_mtime
    line = json.dumps({"trial": number, "epoch": epoch, "pid": os.getpid(), "time": now})
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(handle, line.encode() + b"\n")
    finally:
        os.close(handle)
