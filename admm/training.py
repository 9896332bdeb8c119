"""The training loop shared by dense training, ADMM's W-step and the masked retraining."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from admm.compute import PLAIN, Compute
from admm.errors import DivergedError, PruneError

if TYPE_CHECKING:
    from admm.team import Team

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class EpochStats:
    """What one pass over the data gave: mean loss per sample, samples and steps."""

    loss: float
    samples: int
    steps: int


def make_optimizer(
    parameters: Iterable[nn.Parameter], *, kind: str, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW, both in their `foreach` form."""
    wanted = [p for p in parameters if p.requires_grad]
    if kind == "adamw":
        return torch.optim.AdamW(wanted, lr=lr, weight_decay=weight_decay, foreach=True)
    return torch.optim.SGD(
        wanted, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0, foreach=True
    )


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    *,
    phase: str,
    teacher: Callable[[Tensor], Tensor] | None = None,
    before_step: Callable[[int], None] | None = None,
    after_step: Callable[[], None] | None = None,
    distillation: tuple[float, float] = (0.0, 1.0),
    max_grad_norm: float | None = None,
    compute: Compute = PLAIN,
    team: Team | None = None,
) -> EpochStats:
    """One epoch of forward, backward, step; `before_step(i)` runs before batch i, `after_step()` after each step.

    `distillation` = (weight, temperature) mixes in the KL divergence to `teacher`'s outputs. The loss is read from the
    device once an epoch, not once a step. With a `team` each process takes its part of every batch. Raises
    `DivergedError` when it is not finite, `PruneError` for no data, `ValueError` for a `compute` that the device has
    not.
    """
    model.train()
    trained = model if team is None else team.replica(model).train()
    device = next(model.parameters()).device
    compute.require(device)
    total = torch.zeros((), device=device, dtype=torch.float64)
    samples = steps = 0
    for step, (inputs, targets) in enumerate(batches):
        if before_step is not None:
            before_step(step)
        samples, share = samples + len(inputs), None
        if team is not None:
            inputs, targets, share = team.part(inputs, targets)
        inputs, targets = inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        inputs = compute.layout(inputs)
        outputs = compute.forward(trained, inputs)
        value = loss(outputs, targets)
        weight, temperature = distillation
        if teacher is not None and weight > 0.0:
            value = (1.0 - weight) * value + weight * soft_loss(outputs, teacher(inputs), temperature)
        (value if share is None else share * value).backward()
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        if after_step is not None:
            after_step()
        total += value.detach() * len(inputs)
        steps += 1
    if not samples:
        raise PruneError(
            f"the training data gave no batch in {phase}: train_batches(epoch) must give them anew each epoch"
        )
    mean = float(total if team is None else team.total(total)) / samples
    if not math.isfinite(mean):
        raise DivergedError(f"the loss is {mean} in {phase}: lower its lr (or set max_grad_norm)")
    return EpochStats(loss=mean, samples=samples, steps=steps)


def soft_loss(outputs: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Distillation loss T^2 KL(teacher || student) (Hinton et al. 2015) for class scores [batch, classes, ...].

    For outputs with a single value a sample (regression) it is the squared error to the teacher.
    """
    if outputs.ndim < 2 or outputs.shape[1] == 1:
        return F.mse_loss(outputs, target)
    student = F.log_softmax(outputs / temperature, dim=1)
    soft = F.softmax(target / temperature, dim=1)
    pointwise = outputs.numel() / outputs.shape[1]
    return F.kl_div(student, soft, reduction="sum") * (temperature**2 / pointwise)


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Move batches to the device; those already there are passed on untouched."""
    for inputs, targets in batches:
        yield inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)


def frozen_teacher(model: nn.Module, compute: Compute = PLAIN) -> Callable[[Tensor], Tensor]:
    """The model's outputs in eval mode without gradients; the caller hands over a copy nobody else trains."""
    model.eval()

    def teach(inputs: Tensor) -> Tensor:
        with torch.no_grad():  # not inference_mode: the squared error to a single output is taken back through it
            outputs: Tensor = compute.forward(model, inputs)
            return outputs

    return teach


def cosine(epoch_progress: float) -> float:
    """Cosine from 1 to 0 over progress in [0, 1]."""
    return 0.5 * (1.0 + math.cos(math.pi * min(max(epoch_progress, 0.0), 1.0)))


def one_cycle(progress: float, warmup: float = 0.2) -> float:
    """Linear from 0 to 1 over the first `warmup` of progress in [0, 1], then a cosine to 0 (Smith and Topin 2019).

    Raises `ValueError` for a `warmup` outside [0, 1).
    """
    if not 0.0 <= warmup < 1.0:
        raise ValueError(f"warmup must lie in [0, 1), got {warmup}: it is a share of all steps")
    progress = min(max(progress, 0.0), 1.0)
    return progress / warmup if progress < warmup else cosine((progress - warmup) / (1.0 - warmup))


def seed_epoch(seed: int, epoch: int, phase: str) -> None:
    """Seed torch's generators from (seed, phase, epoch), so that an epoch is the same however the run got there."""
    salt = sum(ord(c) << (8 * i) for i, c in enumerate(phase[:4]))
    torch.manual_seed((seed * 1_000_003 + salt * 7919 + epoch) & 0x7FFF_FFFF_FFFF_FFFF)
