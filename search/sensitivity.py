"""What pruning each dimension of the space alone does to the loss, before any training.

One shot by magnitude, BatchNorm statistics settled anew, loss on a few hundred training samples: neither validation nor
test data are read. A handful of steps of each dimension are measured, the others are interpolated. The table is saved
after every layer and taken up from there. Forward passes count as a third of an epoch's.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from admm.compute import Compute
from admm.groupmap import GroupMap
from admm.plan import PruningPlan
from admm.recalibrate import recalibrate
from admm.shapes import shaped_by_magnitude
from admm.training import Batch
from search.atomic import json_text, parse_json, write_atomic
from search.errors import UserError
from search.profile import Profile
from search.space import Dimension, Space
from search.tasks.base import PreparedTask
from search.tasks.data import derive_seed, isolated_rng
from search.tasks.dense import users_code

SCHEMA = 1
FILE_NAME = "sensitivity.json"
#: Steps measured of each dimension, its first not counted where that removes nothing.
STEPS = 5
#: Training samples that the loss is measured on, and that settle the statistics.
SAMPLES = 256
#: Of the dense loss when the table is taken up again: rounding on another machine stays below it.
_SAME_LOSS = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One network pruned in one dimension alone."""

    step: int
    sparsity: float
    loss: float
    """Mean over the calibration samples; infinite where the network gave no finite one."""
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The table: for each dimension by its name, what was measured, the steps rising."""

    loss: float
    """Of the dense network on the same samples."""
    accuracy: float
    samples: int
    epochs: float
    """Spent on the whole table, forward passes a third."""
    points: Mapping[str, tuple[Damage, ...]]

    def curve(self, dimension: Dimension) -> list[float]:
        """The rise of the loss at every step of a dimension: >= 0, never falling, finite; [steps].

        Linear in the sparsity between what was measured. A loss that falls counts as none that rises, one that is not
        finite as ten times the largest rise measured of any dimension. Raises `KeyError` for a dimension of another
        space.
        """
        points = self.points[dimension.name]
        worst = 10.0 * max((p.loss for of in self.points.values() for p in of if math.isfinite(p.loss)), default=1.0)
        rises = [max(p.loss - self.loss, 0.0) if math.isfinite(p.loss) else worst for p in points]
        where = [0.0, *(p.sparsity for p in points)]
        highest = np.maximum.accumulate([0.0, *rises])
        return [float(value) for value in np.interp(dimension.sparsities, where, highest)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; a loss that is not finite is null."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "samples": self.samples,
            "epochs": self.epochs,
            "points": {
                name: [
                    {
                        "step": p.step,
                        "sparsity": p.sparsity,
                        "loss": p.loss if math.isfinite(p.loss) else None,
                        "accuracy": p.accuracy,
                    }
                    for p in points
                ]
                for name, points in self.points.items()
            },
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Sensitivity:
        """Read what `to_dict` wrote; `ValueError`, one line, for anything else."""
        try:
            points = {str(name): tuple(_damage(p) for p in of) for name, of in content["points"].items()}
            found = cls(
                loss=float(content["loss"]),
                accuracy=float(content["accuracy"]),
                samples=int(content["samples"]),
                epochs=float(content["epochs"]),
                points=points,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"not a table of sensitivities: {type(error).__name__}: {error}") from None
        if not (math.isfinite(found.loss) and 0.0 <= found.epochs < math.inf):
            raise ValueError("not a table of sensitivities: its loss or epochs are not finite")
        return found


def epochs_spent(folder: Path) -> float:
    """What the table in a run folder has cost so far; 0 where there is none that can be read."""
    try:
        return Sensitivity.from_dict(parse_json((folder / FILE_NAME).read_bytes())).epochs
    except (OSError, ValueError):
        return 0.0


def steps_to_measure(dimension: Dimension, count: int = STEPS) -> tuple[int, ...]:
    """At most `count` steps spread evenly over the sparsities of a dimension, its last always; none removes nothing."""
    first = 0 if dimension.sparsities[0] > 0.0 else 1
    last = len(dimension.sparsities) - 1
    least, most = dimension.sparsities[first], dimension.sparsities[last]
    wanted = np.linspace(least, most, min(count, last - first + 1))
    sparsities = np.asarray(dimension.sparsities)
    return tuple(sorted({max(int(np.abs(sparsities - value).argmin()), first) for value in wanted}))


def measure_sensitivity(
    task: PreparedTask,
    model: nn.Module,
    profile: Profile,
    *,
    align: int,
    compute: Compute | None = None,
    device: torch.device | None = None,
    path: Path | None = None,
    steps: int = STEPS,
    samples: int = SAMPLES,
    say: Callable[[str], None] = lambda line: None,
) -> Sensitivity:
    """The table of the trained `model`, which is left as it is, over the space of `profile`.

    `path` is where it is kept: a table of the same weights, space and samples is taken up where it ends, any other
    replaced with a word to `say`. Raises `UserError` where the user's code fails or the dense loss is not finite, and
    `StoreError` where `path` cannot be written.
    """
    meter = _Meter(task, compute or Compute(), device or torch.device("cpu"), samples)
    dense = meter.of(copy.deepcopy(model), settle=False)
    if not math.isfinite(dense[0]):
        raise UserError(f"task {task.task.name!r}: the dense network's loss is {dense[0]} on training data: check both")
    key = _key(model, profile.space, align, steps, meter.samples)
    known = None if path is None else _known(path, key, dense[0], profile.space, steps, say)
    points = {} if known is None else dict(known.points)
    # the dense pass counts once, not at each start: a table taken up whole is what it was
    once = meter.spent()
    epochs = once if known is None else known.epochs

    def table() -> Sensitivity:
        return Sensitivity(loss=dense[0], accuracy=dense[1], samples=meter.samples, epochs=epochs, points=dict(points))

    by_layer: dict[str, list[Dimension]] = {}
    for dimension in profile.space.dimensions:
        by_layer.setdefault(dimension.layer, []).append(dimension)
    for number, (layer, dimensions) in enumerate(by_layer.items(), start=1):
        missing = [d for d in dimensions if d.name not in points]
        if not missing:
            continue
        say(f"sensitivity of layer {number} of {len(by_layer)}: {layer}")
        for dimension in missing:
            points[dimension.name] = tuple(
                _pruned(meter, model, profile.groups, dimension, step, align)
                for step in steps_to_measure(dimension, steps)
            )
        epochs += meter.spent()
        if path is not None:
            write_atomic(path, json_text({"schema": SCHEMA, "key": key, **table().to_dict()}))
    return table()


class _Meter:
    """Losses on the same training samples, and what they cost."""

    def __init__(self, task: PreparedTask, compute: Compute, device: torch.device, samples: int) -> None:
        self._task, self._compute, self._device = task, compute, device
        self._read = 0
        self._batches: list[Batch] = []
        with users_code(task, "reading samples for the sensitivities"), isolated_rng(derive_seed(task.seed, 0, 4)):
            self.samples = 0
            for inputs, targets in task.train_batches(0):
                # whole batches: of a single sample there are no statistics
                self._batches.append((inputs[:samples].to(device), targets[:samples].to(device)))
                self.samples += len(self._batches[-1][0])
                if self.samples >= samples:
                    break

    @torch.no_grad()
    def of(self, model: nn.Module, *, settle: bool = True) -> tuple[float, float]:
        """(loss, metric) of a network in evaluation mode, its statistics settled on the same samples before.

        It is changed. A loss that is not finite is infinite.
        """
        model.to(self._device).eval()
        with users_code(self._task, "measuring a sensitivity"), isolated_rng(derive_seed(self._task.seed, 1, 4)):
            if settle:
                self._read += recalibrate(model, self._batches, limit=len(self._batches))
            loss = metric = 0.0
            for inputs, targets in self._batches:
                outputs = self._compute.forward(model, inputs)
                loss += float(self._task.task.loss(outputs, targets)) * len(inputs)
                metric += float(self._task.task.metric(outputs, targets).double().sum())
            self._read += self.samples
        loss /= self.samples
        return (loss if math.isfinite(loss) else math.inf), metric / self.samples

    def spent(self) -> float:
        """Epochs since it was last asked."""
        epochs = self._read / self._task.train_size / 3.0
        self._read = 0
        return epochs


def _key(model: nn.Module, space: Space, align: int, steps: int, samples: int) -> str:
    """What a table belongs to: the weights to their last bit, the space, and what is measured of it."""
    found = hashlib.sha256(json.dumps([space.to_dict(), align, steps, samples]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


def _known(
    path: Path, key: str, loss: float, space: Space, steps: int, say: Callable[[str], None]
) -> Sensitivity | None:
    """The table in `path` as far as it was measured; None, with a word, where it cannot be taken up."""
    try:
        content = parse_json(path.read_bytes())
        if content.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {content.get('schema')!r}, not {SCHEMA}")
        table = Sensitivity.from_dict(content)
        if content.get("key") != key or abs(table.loss - loss) > _SAME_LOSS * max(abs(loss), 1e-6):
            raise ValueError("it is of other weights, another space or other data")
        for dimension in space.dimensions:
            measured = table.points.get(dimension.name)
            if measured is not None and tuple(p.step for p in measured) != steps_to_measure(dimension, steps):
                raise ValueError(f"its steps of {dimension.name!r} are others")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        say(f"{path}: {why}: measured again")
        return None
    return table


def _damage(content: Mapping[str, Any]) -> Damage:
    loss = content["loss"]
    return Damage(
        step=int(content["step"]),
        sparsity=float(content["sparsity"]),
        loss=math.inf if loss is None else float(loss),
        accuracy=float(content["accuracy"]),
    )


def _pruned(meter: _Meter, model: nn.Module, groups: GroupMap, dimension: Dimension, step: int, align: int) -> Damage:
    plan = PruningPlan({dimension.layer: {dimension.structure: dimension.sparsities[step]}})
    loss, accuracy = meter.of(shaped_by_magnitude(model, groups, plan, align=align))
    return Damage(step=step, sparsity=dimension.sparsities[step], loss=loss, accuracy=accuracy)
