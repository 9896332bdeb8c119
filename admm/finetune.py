"""Masked retraining of the shrunk network: what is zero stays zero, the dense model teaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from admm.checkpoint import pack_optimizer, unpack_optimizer
from admm.compute import PLAIN, Compute
from admm.ema import Ema
from admm.settings import FinetuneSettings
from admm.training import Batch, EpochStats, Loss, cosine, make_optimizer, one_cycle, train_epoch

if TYPE_CHECKING:
    from admm.team import Team

#: Share of the steps over which `one-cycle` rises.
WARMUP = 0.1
#: The share of the rate at a progress in [0, 1], by the schedule's name.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "cosine": cosine,
    "one-cycle": partial(one_cycle, warmup=WARMUP),
}


class Finetune:
    """Retrains `model` for `settings.epochs` epochs; `zeros` maps parameter names to bool masks of what may live."""

    def __init__(
        self,
        model: nn.Module,
        zeros: dict[str, Tensor],
        settings: FinetuneSettings,
        *,
        loss: Loss,
        teacher: Callable[[Tensor], Tensor] | None = None,
        compute: Compute = PLAIN,
        steps_per_epoch: int | None = None,
    ) -> None:
        self._model = model
        self._settings = settings
        self._loss = loss
        self._teacher = teacher
        self._compute = compute
        self.epoch = 0
        self._steps_per_epoch = steps_per_epoch or 0
        self._optimizer = make_optimizer(
            model.parameters(),
            kind=settings.optimizer,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self._set_masks(zeros)
        self._ema = Ema(model, settings.ema) if settings.ema > 0.0 else None

    @property
    def done(self) -> bool:
        """Whether all epochs have been run."""
        return self.epoch >= self._settings.epochs

    def step(self, batches: Iterable[Batch], team: Team | None = None) -> EpochStats:
        """One epoch, shared with a `team`.

        The rate follows its schedule step by step; in a first epoch of unknown length it stands still.
        """
        settings = self._settings
        stats = train_epoch(
            self._model,
            batches,
            self._loss,
            self._optimizer,
            phase=f"retraining epoch {self.epoch + 1}",
            teacher=self._teacher,
            before_step=self._set_lr,
            after_step=self._after_step,
            distillation=(settings.distillation_weight, settings.temperature),
            max_grad_norm=settings.max_grad_norm,
            compute=self._compute,
            team=team,
        )
        self.epoch += 1
        self._steps_per_epoch = stats.steps
        if self.done and self._ema is not None:
            self._ema.copy_to(self._model)
        return stats

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON-ready values) to continue from."""
        tensors, optimizer = pack_optimizer(self._optimizer)
        tensors = {f"optimizer.{n}": t for n, t in tensors.items()}
        tensors |= {f"mask.{n}": m for n, m in self._masks.items()}
        values = {"epoch": self.epoch, "steps": self._steps_per_epoch, "optimizer": optimizer}
        if self._ema is not None:
            averages, values["ema"] = self._ema.state()
            tensors |= {f"ema.{n}": t for n, t in averages.items()}
        return tensors, values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.epoch = int(values["epoch"])
        self._steps_per_epoch = int(values["steps"])
        moments = {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith("optimizer.")}
        unpack_optimizer(self._optimizer, moments, values["optimizer"])
        self._set_masks({n.partition(".")[2]: t for n, t in tensors.items() if n.startswith("mask.")})
        if self._ema is not None:
            averages = {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith("ema.")}
            self._ema.load_state(averages, values["ema"])

    def _set_masks(self, masks: dict[str, Tensor]) -> None:
        parameters = dict(self._model.named_parameters())
        self._masks = {n: m.to(parameters[n].device) for n, m in masks.items()}
        self._masked = [parameters[n] for n in masks]
        self._mask()

    def _after_step(self) -> None:
        self._mask()
        if self._ema is not None:
            self._ema.update()

    @torch.no_grad()
    def _mask(self) -> None:
        if self._masked:
            torch._foreach_mul_([p.data for p in self._masked], list(self._masks.values()))

    def _set_lr(self, step: int) -> None:
        # half of it where the length is unknown: a warm-up that stood at its start would train nothing
        within = step / self._steps_per_epoch if self._steps_per_epoch else 0.5
        progress = (self.epoch + min(within, 1.0)) / self._settings.epochs
        share = SCHEDULES[self._settings.schedule](progress)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.lr * share
