"""A network as it is shipped: exported, compared with the module, and scored as the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluators import OnnxPredictor, ParityReport, Score, check_parity, evaluate, export_onnx
from search.tasks.base import PreparedTask

#: Inputs of the parity gate, of each kind.
RANDOM, REAL = 8, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """An ONNX file that says what its module says."""

    path: Path
    content: bytes
    parity: ParityReport
    score: Score
    """Validation metric of the file."""


def ship(model: nn.Module, task: PreparedTask, path: Path) -> Artefact:
    """Export `model` to `path`, check it on random and real inputs, score the file on the validation data.

    Raises `ExportError`, or `ParityError` for a file that says something else than the module.
    """
    export_onnx(model, task.example_input, path)
    real, _ = next(iter(task.val_batches()))
    parity = check_parity(model, path, [random_like(task.example_input, RANDOM), real[:REAL]]).require()
    score = evaluate(OnnxPredictor(path), task.val_batches(), task.task.metric)
    return Artefact(path=path, content=path.read_bytes(), parity=parity, score=score)


def random_like(example: Tensor, samples: int) -> Tensor:
    """`samples` random inputs of the example's shape [1, ...] and type, always the same."""
    generator = torch.Generator().manual_seed(0)
    shape = (samples, *example.shape[1:])
    if example.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(example.dtype)
    return example.expand(shape).clone()
