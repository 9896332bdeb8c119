"""Train the dense network of a task by its recipe: the baseline that a search prunes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from search.errors import UserError
from search.tasks.base import DenseRecipe, PreparedTask
from search.tasks.data import derive_seed, isolated_rng
from search.tasks.output import with_one_output


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseEpoch:
    """What one epoch of dense training gave."""

    epoch: int
    """Counted from 1."""
    loss: float
    """Mean training loss, over samples."""
    accuracy: float
    """Validation metric in [0, 1]."""


def build_model(prepared: PreparedTask) -> nn.Module:
    """A network of the task, its initial weights drawn from the task's seed; global generators are left alone.

    Each call gives a network of its own, even where the user's function returns the same one again: pruning
    changes weights in place. What it returns is one tensor (`with_one_output`). Raises `UserError` if the function
    fails or gives something else.
    """
    task = prepared.task
    with isolated_rng(derive_seed(prepared.seed, 2)):
        try:
            model = task.model()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"task {task.name!r}: model() raised {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise UserError(f"task {task.name!r}: model() must return a torch network, got {type(model).__name__}")
        return with_one_output(copy.deepcopy(model), prepared.example_input, task.output, task.name)


def train_dense(
    prepared: PreparedTask,
    model: nn.Module,
    recipe: DenseRecipe,
    *,
    forward: Callable[[nn.Module, Tensor], Any] | None = None,
    on_epoch: Callable[[DenseEpoch], None] | None = None,
) -> float:
    """Train `model` in place; returns its validation metric. Same seed and one thread give the same weights.
    `forward(model, inputs)` says how a pass is computed; None is torch's own way.

    Raises `UserError` if the loss is not finite, `recipe.min_accuracy` is not reached, or the user's code fails.
    """
    optimizer = _optimizer(model, recipe)
    device = next(model.parameters()).device
    accuracy = 0.0
    for epoch in range(recipe.epochs):
        phase = f"dense training, epoch {epoch + 1}"
        with users_code(prepared, phase), isolated_rng(derive_seed(prepared.seed, epoch, 3)):
            model.train()
            total, samples = torch.zeros((), device=device), 0
            for x, y in prepared.train_batches(epoch):
                # By samples, since a user's own batches may differ in number from epoch to epoch.
                progress = (epoch + samples / prepared.train_size) / recipe.epochs
                for group in optimizer.param_groups:
                    group["lr"] = recipe.lr * _lr_factor(progress, recipe.warmup)
                inputs = x.to(device)
                outputs = model(inputs) if forward is None else forward(model, inputs)
                loss = prepared.task.loss(outputs, y.to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(x)
                samples += len(x)
        mean = float(total) / max(samples, 1)
        if not math.isfinite(mean):
            raise UserError(f"dense training gave a loss of {mean} in epoch {epoch + 1}: lower dense.lr ({recipe.lr})")
        accuracy = validate(prepared, model, phase=f"validation after epoch {epoch + 1}")
        if on_epoch is not None:
            on_epoch(DenseEpoch(epoch=epoch + 1, loss=mean, accuracy=accuracy))
    if recipe.min_accuracy is not None and accuracy < recipe.min_accuracy:
        raise UserError(
            f"the dense network reaches {accuracy:.4f} on the validation data, below dense.min_accuracy "
            f"{recipe.min_accuracy}: train longer (dense.epochs {recipe.epochs}) or ask for less"
        )
    return accuracy


def validate(prepared: PreparedTask, model: nn.Module, *, phase: str = "validation") -> float:
    """Mean validation metric of `model` in evaluation mode; the mode is put back.

    Raises `UserError` naming the `phase` where network, metric or data fail.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total, samples = 0.0, 0
    try:
        with users_code(prepared, phase), torch.no_grad():
            for x, y in prepared.val_batches():
                total += float(prepared.task.metric(model(x.to(device)), y.to(device)).double().sum())
                samples += len(x)
    finally:
        model.train(training)
    return total / samples


@contextmanager
def users_code(prepared: PreparedTask, phase: str) -> Iterator[None]:
    """Say in one line what the user's network, loss, metric or data raise."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = f"task {prepared.task.name!r}: {phase}: {type(error).__name__}: {error}"
        raise UserError(line) from error


def _optimizer(model: nn.Module, recipe: DenseRecipe) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UserError("the dense network has no parameter to train: give it requires_grad, or drop `dense`")
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0.0)


def _lr_factor(progress: float, warmup: float) -> float:
    """Linear rise over the first `warmup`, then a cosine to zero; `progress` in [0, 1)."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    return 0.5 * (1.0 + math.cos(math.pi * min((progress - warmup) / (1.0 - warmup), 1.0)))
