"""What is asked of each network on CIFAR-10, what the literature has, and the schedules."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import torch

from admm.settings import AdmmSettings, FinetuneSettings
from admm.target import Target

#: `--quick`: images and epochs of the smoke test, which shows that a row runs, not what it reaches.
QUICK_IMAGES, QUICK_ROWS = 500, ("resnet-20-2x",)
#: `--tiny`: the same for the large networks, in less: one epoch of each part and small batches.
TINY_IMAGES, TINY_BATCH = 100, 32
ADMM = AdmmSettings(iterations=60, lr=0.02, weight_decay=5e-4, progressive=0.6)
RETRAIN = FinetuneSettings(epochs=140, lr=0.05, weight_decay=5e-4, schedule="one-cycle", distillation_weight=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is asked of one network, and what the literature has. One of the two bars is given."""

    network: str
    target: Target
    published: str
    most_loss: float | None = None
    """Test accuracy that may be lost against our dense network, of 1, mean over the seeds."""
    least_accuracy: float | None = None
    """Mean test accuracy to reach."""

    @property
    def bar(self) -> str:
        """The bar in words."""
        if self.most_loss is not None:
            return f"at most {100 * self.most_loss:g} points below dense"
        return f"at least {100 * (self.least_accuracy or 0.0):.2f} %"

    def holds(self, accuracy: float, dense: float) -> bool:
        """Whether mean accuracies keep the bar."""
        if self.most_loss is not None:
            return dense - accuracy <= self.most_loss
        return accuracy >= (self.least_accuracy or 0.0)


_HALF = Target(mac_fraction=0.5, structures=("filter",))
#: As in AutoCompress and P-RM: filters and columns together.
_MIXED = ("filter", "shape")
ROWS = {
    "resnet-20-2x": Row(
        network="resnet-20",
        target=_HALF,
        most_loss=0.003,
        published="none at 2x MACs known to us; dense 91.25 % (He et al., arXiv 1512.03385)",
    ),
    "resnet-56-2x": Row(
        network="resnet-56",
        target=_HALF,
        most_loss=0.003,
        published="2x MACs, 92.8 -> 91.9 (AMC, ECCV 2018, arXiv 1802.03494); 93.2+ in later work",
    ),
    "resnet-18-18.1x": Row(
        network="resnet-18",
        target=Target(compression_x=18.1, structures=_MIXED),
        least_accuracy=0.93,
        published="18.1x at 93.00 % (NNI's AutoCompress)",
    ),
    "resnet-18-37.6x": Row(
        network="resnet-18",
        target=Target(compression_x=37.6, structures=_MIXED),
        least_accuracy=0.9072,
        published="37.6x at 90.72 % (NNI's AutoCompress)",
    ),
    "resnet-18-60x": Row(
        network="resnet-18",
        target=Target(compression_x=60.0, structures=_MIXED),
        least_accuracy=0.932,
        published="54.2x at 93.81 % (AutoCompress, arXiv 1907.03141, as NNI quotes it); 60x (P-RM, arXiv 1905.00136)",
    ),
    "vgg-16-bn-54x": Row(
        network="vgg-16-bn",
        target=Target(compression_x=54.0, structures=_MIXED),
        least_accuracy=0.932,
        published="52.2x at 93.21 % (AutoCompress, arXiv 1907.03141, as NNI quotes it)",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Epochs of the three parts of a row."""

    dense_epochs: int | None
    """None: as the task's recipe has it."""
    admm: AdmmSettings
    finetune: FinetuneSettings
    limit: int | None = None
    """Images of the smoke test."""
    batch_size: int | None = None
    """None: the task's."""
    short: bool = False
    """Whether it is one for a CPU: dense networks are then not what they could be, and ADMM trains them further."""


def schedule_of(options: argparse.Namespace, device: torch.device) -> Schedule | str:
    """The epochs asked for, or one line saying what is missing."""
    given = {
        "--dense-epochs": options.dense_epochs,
        "--iterations": options.iterations,
        "--finetune-epochs": options.finetune_epochs,
    }
    missing = [name for name, value in given.items() if value is None]
    if options.quick and len(missing) < len(given):
        name = "--tiny" if options.tiny else "--quick"
        return f"{name} has a schedule of its own: leave --dense-epochs, --iterations and --finetune-epochs out"
    if options.tiny:
        tiny = replace(ADMM, iterations=1), replace(RETRAIN, epochs=1)
        return Schedule(
            dense_epochs=1,
            admm=tiny[0],
            finetune=tiny[1],
            limit=TINY_IMAGES,
            batch_size=TINY_BATCH,
            short=True,
        )
    if options.quick:
        tiny = replace(ADMM, iterations=2), replace(RETRAIN, epochs=1)
        return Schedule(dense_epochs=2, admm=tiny[0], finetune=tiny[1], limit=QUICK_IMAGES, short=True)
    if not missing:
        return Schedule(
            dense_epochs=options.dense_epochs,
            admm=replace(ADMM, iterations=options.iterations),
            finetune=replace(RETRAIN, epochs=options.finetune_epochs),
            short=True,
        )
    if len(missing) < len(given):
        return f"a schedule of your own needs all three: {' and '.join(missing)} not given"
    if device.type == "cpu":
        return (
            "no CUDA device at hand, and the full schedule would take days on a CPU: give --quick, or a short schedule "
            "by --dense-epochs, --iterations and --finetune-epochs"
        )
    return Schedule(dense_epochs=None, admm=ADMM, finetune=RETRAIN)
