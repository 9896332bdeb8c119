"""A network as it is shipped: exported, rewritten for its rig, quantised if asked, checked and scored as the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluators import OnnxPredictor, ParityReport, Score, check_parity, evaluate, export_onnx
from evaluators.lowering import Lowered
from evaluators.opset import DEFAULT_OPSET
from evaluators.parity import LOWERED_TOLERANCE
from search.atomic import write_atomic
from search.shipped import Form
from search.tasks.base import PreparedTask

#: Inputs of the parity gate, of each kind.
RANDOM, REAL = 8, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """An ONNX file that says what its module says."""

    path: Path
    content: bytes
    parity: ParityReport
    """Of the file that is shipped, against the module; of an int8 file, against the one it was made from."""
    score: Score
    """Validation metric of the file."""
    lowered: Lowered | None = None
    """What was rewritten, and what it gained; of an int8 file, before it was quantised."""
    agreement: float | None = None
    """Of an int8 file, the share of its calibration inputs for which it puts the same class first as in fp32."""


def ship(
    model: nn.Module,
    task: PreparedTask,
    path: Path,
    *,
    form: Callable[[bytes], Form] | None = None,
    opset: int = DEFAULT_OPSET,
) -> Artefact:
    """Export `model` to `path`, check it on random and real inputs, score the file on the validation data.

    `form` may rewrite the file or quantise it; each step has its own gate. Raises `ExportError`, or `ParityError` for a
    file that says something else than the module.
    """
    export_onnx(model, task.example_input, path, opset=opset)
    real, _ = next(iter(task.val_batches()))
    inputs = [random_like(task.example_input, RANDOM), real[:REAL]]
    parity = check_parity(model, path, inputs).require()
    content, lowered, agreement = path.read_bytes(), None, None
    if form is not None:
        shipped = form(content)
        lowered = shipped.lowered
        if lowered is not None and lowered.changed:
            parity = check_parity(model, lowered.content, inputs, tolerance=LOWERED_TOLERANCE).require()
        if shipped.int8 is not None:
            parity, agreement = shipped.int8.parity, shipped.int8.agreement
        if shipped.content != content:
            content = shipped.content
            write_atomic(path, content)
    score = evaluate(OnnxPredictor(path), task.val_batches(), task.task.metric)
    return Artefact(path=path, content=content, parity=parity, score=score, lowered=lowered, agreement=agreement)


def random_like(example: Tensor, samples: int) -> Tensor:
    """`samples` random inputs of the example's shape [1, ...] and type, always the same."""
    generator = torch.Generator().manual_seed(0)
    shape = (samples, *example.shape[1:])
    if example.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(example.dtype)
    return example.expand(shape).clone()
