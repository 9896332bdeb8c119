"""ADMM pruning under a Lightning `Trainer`; Lightning itself is not a dependency of prunefront.

    net = ...                                              # any torch.nn.Module that Classifier(net) trains
    pruning = AdmmPruning(net, plan, example_input=x[:1], settings=AdmmSettings(iterations=10))
    Trainer(max_epochs=10, callbacks=[pruning]).fit(Classifier(net), data)
    small = pruning.small                                  # as AttachedAdmm.finish() returns it
    Trainer(max_epochs=5, callbacks=[HoldZeros(small)]).fit(Classifier(small.model), data)

`net` is the network inside the LightningModule: that is what is copied and shrunk. Training ends with the last ADMM
epoch. Checkpoints carry the state of ADMM; where there is validation, write them with
`ModelCheckpoint(save_on_train_epoch_end=True)`, so that they hold whole epochs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from admm import AttachedAdmm, PruningPlan, Shrunk, Target, attach, hold_zeros


class AdmmPruning(Callback):
    """Prunes `net` by `plan` while a Trainer trains it; `options` are those of `admm.attach`.

    `batches`, a data loader of (inputs, targets), settles the BatchNorm statistics of the small network.
    """

    def __init__(
        self, net: nn.Module, plan: PruningPlan | Target, *, batches: Iterable[Any] | None = None, **options: Any
    ) -> None:
        self.net, self.plan, self.batches, self.options = net, plan, batches, options
        self.admm: AttachedAdmm | None = None
        self.small: Shrunk | None = None
        self._restored: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # here the model is on its device and the optimiser is made
        self.admm = attach(self.net, trainer.optimizers[0], self.plan, **self.options)
        if self._restored:
            self.admm.load_state(**self._restored)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.admm is not None
        self.admm.end_epoch(trainer.callback_metrics.get("train_loss"))  # where the module logs one
        trainer.should_stop |= self.admm.done

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.admm is not None
        if self.admm.done:
            self.small = self.admm.finish(self.batches)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.admm is None else dict(zip(("tensors", "values"), self.admm.state(), strict=True))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict  # the model is attached later


class HoldZeros(Callback):
    """Keeps the zeros of a pruned network while a Trainer retrains it."""

    def __init__(self, small: Shrunk) -> None:
        self.small = small

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        hold_zeros(self.small.model, trainer.optimizers[0], self.small.zeros)
