"""Whether a task gives the same data in every process of a run: an unseeded split would mix validation with training.

Not a hash of bytes: sums differ in their last bits with the machine and its threads, and so do normalised data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from search.tasks.base import PreparedTask, reading
from search.tasks.data import Batch

TOLERANCE = 1e-5
"""Of the root mean square. Rounding stays below it, another sample among ten thousand does not."""
CHUNK = 256


def fingerprint(task: PreparedTask, *, repeat: bool = False) -> dict[str, Any]:
    """What tells the task's data apart, as JSON: all validation data, the first training batch, sizes and shapes.

    `repeat` reads twice and leaves None for what differs in one process already, such as augmentation from a generator
    of the user's own. Raises `UserError` for data that cannot be read.
    """
    with reading(task.task):
        found = _read(task)
        if repeat:
            again = _read(task)
            for part in ("val", "train"):
                for what in found[part]:
                    if not _close(found[part][what], again[part][what]):
                        found[part][what] = None
    example = task.example_input
    return {"train_size": task.train_size, "example": [str(example.dtype), *example.shape], **found}


def same_data(known: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether two fingerprints are of the same data; the order of the validation samples does not matter."""
    if any(known.get(key) != found[key] for key in ("train_size", "example")):
        return False
    parts = [(known.get(part) or {}, found[part]) for part in ("val", "train")]
    return all(_close(old[what], new[what]) for old, new in parts for what in new if old.get(what) is not None)


def _read(task: PreparedTask) -> dict[str, dict[str, list[float] | None]]:
    # seed 0, whatever the job's: a run may go on with another one
    return {"val": _sketch(task.val_batches()), "train": _sketch(islice(task.train_source.batches(0, 0), 1))}


def _sketch(batches: Iterable[Batch]) -> dict[str, list[float] | None]:
    """[samples, mean, root mean square] of one random projection of each sample, and of inputs times targets."""
    pairs = [(_project(x), _project(y)) for x, y in batches]
    inputs, targets = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    parts = {"inputs": inputs, "targets": targets, "pairs": inputs * targets}
    return {name: [len(v), float(v.mean()), float(v.square().mean().sqrt())] for name, v in parts.items()}


def _project(values: Tensor) -> Tensor:
    """[samples, ...] -> [samples], in double precision."""
    rows = values.detach().cpu().reshape(len(values), -1)
    weights = _weights(rows.shape[1])
    return torch.cat([torch.nan_to_num(part.double(), 0.0, 0.0, 0.0) @ weights for part in rows.split(CHUNK)])


@lru_cache(maxsize=16)
def _weights(size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _close(a: list[float] | None, b: list[float] | None) -> bool:
    if a is None or b is None:
        return a is b
    margin = TOLERANCE * max(a[2], b[2])
    return a[0] == b[0] and all(
        math.isclose(x, y, rel_tol=0.0, abs_tol=margin) for x, y in zip(a[1:], b[1:], strict=True)
    )
