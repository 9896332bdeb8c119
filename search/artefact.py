"""A network as it is shipped: exported, rewritten for its rig, quantised if asked, checked and scored as the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluators import Int8Report, OnnxPredictor, ParityReport, Score, check_parity, evaluate, export_onnx
from evaluators.lowering import Lowered
from evaluators.parity import LOWERED_TOLERANCE
from search.atomic import write_atomic
from search.tasks.base import PreparedTask

#: Inputs of the parity gate, of each kind.
RANDOM, REAL = 8, 32
#: Training inputs that an int8 file is calibrated on.
CALIBRATION = 256
#: ONNX bytes -> the same network rewritten; None where nothing is to be rewritten.
Lower = Callable[[bytes], Lowered | None]


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


def ship(
    model: nn.Module, task: PreparedTask, path: Path, *, lower: Lower | None = None, quantize: str = "off"
) -> Artefact:
    """Export `model` to `path`, check it on random and real inputs, score the file on the validation data.

    `lower` may rewrite the file, `quantize` "int8" turns it into an int8 one calibrated on training data; each step has
    its own gate. Raises `ExportError`, or `ParityError` for a file that says something else than the module.
    """
    export_onnx(model, task.example_input, path)
    real, _ = next(iter(task.val_batches()))
    inputs = [random_like(task.example_input, RANDOM), real[:REAL]]
    parity = check_parity(model, path, inputs).require()
    content = path.read_bytes()
    done = lower(content) if lower is not None else None
    if done is not None and done.changed:
        content = done.content
        parity = check_parity(model, content, inputs, tolerance=LOWERED_TOLERANCE).require()
    if quantize == "int8":
        content, report = int8_file(content, task)
        parity = report.parity
    if content != path.read_bytes():
        write_atomic(path, content)
    score = evaluate(OnnxPredictor(path), task.val_batches(), task.task.metric)
    return Artefact(path=path, content=content, parity=parity, score=score, lowered=done)


def int8_file(content: bytes, task: PreparedTask) -> tuple[bytes, Int8Report]:
    """The file with int8 weights and activations, and how it agrees with the one it was made from.

    Calibrated and compared on the same training inputs: on others the accuracy decides. Raises `ParityError` where they
    disagree, `EvaluationError` for a network that cannot be quantised.
    """
    from evaluators.quantize import check_int8, quantize_int8

    inputs, samples = [], 0
    for batch, _ in task.train_batches(0):
        inputs.append(batch[: CALIBRATION - samples])
        samples += len(inputs[-1])
        if samples >= CALIBRATION:
            break
    quantized = quantize_int8(content, inputs, samples=CALIBRATION)
    return quantized, check_int8(content, quantized, inputs).require()


def random_like(example: Tensor, samples: int) -> Tensor:
    """`samples` random inputs of the example's shape [1, ...] and type, always the same."""
    generator = torch.Generator().manual_seed(0)
    shape = (samples, *example.shape[1:])
    if example.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(example.dtype)
    return example.expand(shape).clone()
