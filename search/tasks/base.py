"""The user's side of a search: a `Task` names the network, its data and what counts as good."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.errors import UserError
from search.tasks.data import Arrays, Batch, EvalData, EvalSource, TrainData, TrainSource, eval_source, train_source
from search.tasks.labels import require_labels
from search.tasks.loading import call_task_function
from search.tasks.split import hold_out


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """1.0 where the highest of the outputs [batch, classes] is the target [batch], else 0.0; NaN is wrong."""
    return ((outputs.argmax(dim=1) == targets) & ~outputs.isnan().any(dim=1)).float()


METRIC_SLACK = 1e-6
#: Of a network that comes trained: what it was trained on is no measure of what pruning costs it.
SEEN = (
    "where the network's weights were trained on them too, they know the answers, and each drop is overstated: give a "
    "val=... that training has not seen"
)
"""What rounding may add to a metric's bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseRecipe:
    """How to train the dense network, for a task whose `model` returns untrained weights.

    The learning rate rises linearly over the first `warmup` part of the steps, then falls to zero along a
    cosine.
    """

    epochs: int
    lr: float
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    """SGD with Nesterov's momentum; AdamW has its own and leaves this aside."""
    weight_decay: float = 5e-4
    """Applied to weights of two dimensions and more, not to biases and normalisation."""
    warmup: float = 0.2
    """Part of all steps, in [0, 1)."""
    min_accuracy: float | None = None
    """The validation metric that the dense network must reach: a search from a poor network misleads."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"dense.epochs must be at least 1, got {self.epochs}")
        if not self.lr > 0.0:
            raise UserError(f"dense.lr must be positive, got {self.lr}")
        if self.optimizer not in ("sgd", "adamw"):
            raise UserError(f"dense.optimizer must be 'sgd' or 'adamw', got {self.optimizer!r}")
        for name in ("momentum", "warmup"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"dense.{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.weight_decay < 0.0:
            raise UserError(f"dense.weight_decay must not be negative, got {self.weight_decay}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A network, its data and its measure of quality.

    `model()` builds the network; it returns trained weights unless `dense` says how to train them. `train` is
    `Arrays(x, y)`, a map-style torch Dataset (or a DataLoader over one), or a function `(epoch, seed)` that
    gives the epoch's batches. `val` and `test` are Arrays, a Dataset, re-readable batches, or a function that
    gives them; without `val` a tenth of `train` is held out. `loss(outputs, targets)` is the mean over the
    batch; `metric(outputs, targets)` gives one value of at most 1 a sample, [batch], higher is better: its mean is what
    is called accuracy everywhere.
    """

    name: str
    model: Callable[[], nn.Module]
    train: TrainData
    val: EvalData | None = None
    test: EvalData | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    metric: Callable[[Tensor, Tensor], Tensor] = top1
    example_input: Tensor | None = None
    """One input [1, ...]; None: the first training sample."""
    output: str | int | None = None
    """Which part of a dict, a dataclass or a tuple that the network returns; None: `logits`, or its only tensor."""
    dense: DenseRecipe | None = None
    batch_size: int = 64
    """Training and evaluation; data that come as batches keep theirs."""
    train_size: int | None = None
    """Samples in an epoch, only where `train` is a function: else they are counted in one pass."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise UserError(f"Task.name must be a word, got {self.name!r}")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise UserError(f"Task.batch_size must be at least 1, got {self.batch_size!r}")
        if isinstance(self.model, nn.Module):
            raise UserError("Task.model must be a function that builds the network, not the network itself")
        for part in ("model", "loss", "metric"):
            if not callable(getattr(self, part)):
                raise UserError(f"Task.{part} must be a function, got {getattr(self, part)!r}")
        if self.output is not None and (isinstance(self.output, bool) or not isinstance(self.output, str | int)):
            raise UserError(f"Task.output must be a key, a field or a place in a tuple, got {self.output!r}")
        shape = None if self.example_input is None else tuple(self.example_input.shape)
        if shape is not None and (not shape or shape[0] != 1):
            raise UserError(f"Task.example_input must be one input of shape [1, ...], got {list(shape)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedTask:
    """A task whose data can be read epoch by epoch: the same batches for the same (seed, epoch)."""

    task: Task
    seed: int
    example_input: Tensor
    """[1, ...]"""
    notes: list[str] = field(default_factory=list)
    """What the user must be told once, such as a held-out validation split."""
    train_source: TrainSource
    val_source: EvalSource
    test_source: EvalSource | None

    @property
    def train_size(self) -> int:
        """Samples in one epoch."""
        return self.train_source.size

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        """One epoch of (inputs, targets), shuffled and augmented by (seed, epoch)."""
        return self.train_source.batches(epoch, self.seed)

    def val_batches(self) -> Iterator[Batch]:
        """All validation batches, in a fixed order."""
        return self.val_source.batches()

    def test_batches(self) -> Iterator[Batch] | None:
        """All test batches in a fixed order, or None where the task has none."""
        return None if self.test_source is None else self.test_source.batches()

    def labels(self, part: str, batch: Tensor) -> Tensor:
        """All targets of `train`, `validation` or `test` where they are in memory, else those of the batch given."""
        sources = {"train": self.train_source, "validation": self.val_source, "test": self.test_source}
        whole = getattr(sources[part], "arrays", None)
        return whole.y if isinstance(whole, Arrays) else batch


def prepare(task: Task, seed: int = 0) -> PreparedTask:
    """Make the task's data readable; `seed` orders and augments the training batches.

    The validation split does not depend on `seed`. Raises `UserError` for data that cannot be used.
    """
    if not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed must be a whole number of at least 0, got {seed!r}")
    train: object = task.train
    val: object = task.val
    notes: list[str] = []
    with reading(task):
        if val is None:
            train, val, note = hold_out(train)
            notes.append(note if task.dense is not None else f"{note}: {SEEN}")
        source = train_source(train, task.batch_size, task.train_size)
        example = task.example_input
        if example is None:
            example = next(iter(source.batches(0, 0)))[0][:1].clone()
    return PreparedTask(
        task=task,
        seed=seed,
        example_input=example,
        notes=notes,
        train_source=source,
        val_source=eval_source(val, task.batch_size, "val"),
        test_source=None if task.test is None else eval_source(task.test, task.batch_size, "test"),
    )


@contextmanager
def reading(task: Task) -> Iterator[None]:
    """Say in one line what the user's own data code raises."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"task {task.name!r}: reading the data raised {type(error).__name__}: {error}") from error


def check_task(prepared: PreparedTask, model: nn.Module) -> None:
    """Run one batch of each part of the data through network, loss and metric before a search is begun.

    Raises `UserError` naming the part that fails or gives the wrong shape. The model stays as it was.
    """
    task, training = prepared.task, model.training
    with reading(task):
        x, y = next(iter(prepared.train_batches(0)))
        scored = {"validation": next(iter(prepared.val_batches()))}
        test = prepared.test_batches()
        if test is not None:
            scored["test"] = next(iter(test))
    model.eval()
    try:
        # Not inference_mode: what a network keeps of its first input must still be fit for training.
        with torch.no_grad():
            _outputs(task.name, model, "example_input", prepared.example_input)
            outputs = _outputs(task.name, model, "a training batch", x)
            require_labels(task.name, "training", outputs, prepared.labels("train", y), task.loss)
            _check_values(task.name, "loss", task.loss, outputs, y, shape=())
            for part, (x, y) in scored.items():
                batch = f"a {part} batch"
                outputs = _outputs(task.name, model, batch, x)
                if task.metric is top1:
                    require_labels(task.name, part, outputs, prepared.labels(part, y), task.loss)
                values = _check_values(task.name, "metric", task.metric, outputs, y, shape=(len(x),), of=f" of {batch}")
                _check_range(task.name, values)
    finally:
        model.train(training)


def _outputs(name: str, model: nn.Module, part: str, inputs: Tensor) -> Tensor:
    try:
        outputs = model(inputs)
    except Exception as error:
        raise UserError(
            f"task {name!r}: the network fails on {part} of shape {list(inputs.shape)} ({inputs.dtype}): "
            f"{type(error).__name__}: {error}: give it inputs of the shape and type that it takes"
        ) from error
    if not isinstance(outputs, Tensor):
        raise UserError(
            f"task {name!r}: the network must return one tensor, got {type(outputs).__name__} for {part}: name the "
            f"part that counts with Task(output=...)"
        )
    return outputs


def _check_range(name: str, values: Tensor) -> None:
    """Accuracies, drops in percentage points and the front are read as parts of 1.

    Below 0 a metric may go: R² does, and an error with its sign turned.
    """
    wrong = values[~(values.isfinite() & (values <= 1.0 + METRIC_SLACK))]
    if len(wrong):
        raise UserError(
            f"task {name!r}: the metric must be a number of at most 1, it gives {float(wrong[0]):g} for a sample: "
            f"scale it (a percentage: divide by 100; an error: negate it)"
        )


def _check_values(
    name: str,
    part: str,
    function: Callable[[Tensor, Tensor], Tensor],
    outputs: Tensor,
    targets: Tensor,
    *,
    shape: tuple[int, ...],
    of: str = "",
) -> Tensor:
    got = f"outputs {list(outputs.shape)} and targets {list(targets.shape)} ({targets.dtype}){of}"
    try:
        value = function(outputs, targets)
    except Exception as error:
        raise UserError(
            f"task {name!r}: the {part} fails on {got}: {type(error).__name__}: {error}: give it targets that it "
            f"takes, or a {part} of your own"
        ) from error
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        wanted = "one value, the mean over the batch" if shape == () else f"one value a sample, {list(shape)}"
        given = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"task {name!r}: the {part} must give {wanted}; on {got} it gives {given}")
    return value


def load_task(spec: str, task_args: Mapping[str, Any], base_dir: Path) -> Task:
    """The task that `module:function` makes with `task_args`; `base_dir` holds the user's own modules.

    Raises `UserError` with one line for anything that goes wrong in finding, calling or believing it.
    """
    task = call_task_function(spec, task_args, base_dir)
    if not isinstance(task, Task):
        raise UserError(f"task: {spec} must return a search.tasks.Task, got {type(task).__name__}")
    return task
