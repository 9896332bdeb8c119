"""The form in which a network's ONNX file is shipped and measured: rewritten for its rig, quantised if asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from admm.plan import N_OF_M, PruningPlan
from evaluators.lowering import LayerTimes, Lowered, lower
from evaluators.measurement import PairMeasure
from evaluators.module_form import TWO_OF_FOUR
from evaluators.quantize import Int8Report, check_int8, quantize_int8

if TYPE_CHECKING:
    from search.job import Job
    from search.precision import Precision
    from search.tasks.base import PreparedTask
    from search.trial import MeasureOn

#: Rigs whose runtime the rewrites are made for.
LOWERED_ON = ("onnxruntime-cpu",)
#: Training inputs that an int8 file is calibrated on, and fewer that do where only its latency counts.
CALIBRATION, SHAPE_SAMPLES = 256, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A file as it is shipped, and what became of it on the way."""

    content: bytes
    lowered: Lowered | None = None
    """None where the job leaves files as they are."""
    int8: Int8Report | None = None
    """How the int8 file agrees with the one it was made from; None of an fp32 file."""


def lowers(job: Job) -> bool:
    """Whether files of this job are rewritten: zeros of columns then save time."""
    return job.lower and job.deciding_rig.name in LOWERED_ON


def shipped_form(
    job: Job,
    content: bytes,
    measure: MeasureOn,
    *,
    precision: Precision,
    block: int,
    times: LayerTimes,
    calibration: Callable[[], list[Tensor]],
) -> Form:
    """The fp32 file `content` in the form that is shipped: lowered as the job says, and in this precision.

    `block` is the device's channel block, whatever the job aligns to; `times` is read and added to. Raises
    `EvaluationError` for a network that cannot be quantised, or that says something else then.
    """
    done, pair = None, partial(measure, job.deciding_rig.name)
    if lowers(job):
        done = lower(content, pair, block=block, batch=job.deciding_rig.batch, known=times)
    if precision == "fp32":
        return Form(content=content if done is None else done.content, lowered=done)
    inputs = calibration()
    quantized, report, rewritten = fastest_int8(content, done, inputs, pair)
    if done is not None and done.changed and not rewritten:
        done = done.undone(content, "undone: in int8 the file as it was is faster")
    return Form(content=quantized, lowered=done, int8=report)


def fastest_int8(
    plain: bytes, done: Lowered | None, inputs: list[Tensor], pair: PairMeasure
) -> tuple[bytes, Int8Report, bool]:
    """(int8 file, how it agrees with its fp32 form, whether that was the rewritten one).

    A rewrite that pays in fp32 may cost time in int8: the rewritten file is quantised beside the plain one, and kept
    only where it is surely not slower. Both are calibrated on `inputs` [batch, ...].
    """
    samples = sum(len(batch) for batch in inputs)
    chosen, source, rewritten = quantize_int8(plain, inputs, samples=samples), plain, False
    if done is not None and done.changed:
        other = quantize_int8(done.content, inputs, samples=samples)
        if pair(other, chosen).speedup_low >= 1.0:
            chosen, source, rewritten = other, done.content, True
    return chosen, check_int8(source, chosen, inputs).require(), rewritten


def calibration_inputs(task: PreparedTask, samples: int = CALIBRATION) -> list[Tensor]:
    """The first inputs of a training epoch, `samples` in all where there are so many."""
    inputs: list[Tensor] = []
    missing = samples
    for batch, _ in task.train_batches(0):
        inputs.append(batch[:missing])
        missing -= len(inputs[-1])
        if missing <= 0:
            break
    return inputs


def without_gain(plan: PruningPlan, lowered: Lowered | None, rig: str) -> tuple[str, ...]:
    """Say it plainly where a structure of the plan bought no time on the rig."""
    asked = {s for layer in plan for s, sparsity in plan[layer].items() if sparsity > 0.0}
    gained = [layer.choice for layer in lowered.layers if layer.choice != "dense"] if lowered is not None else []
    # 2:4 is the one way that single zeros run faster, all others leave out columns
    won = {N_OF_M: gained.count(TWO_OF_FOUR), "shape": len(gained) - gained.count(TWO_OF_FOUR), "unstructured": 0}
    notes = []
    for structure in ("n:m", "unstructured", "shape"):
        layers = sum(plan[layer].get(structure, 0.0) > 0.0 for layer in plan)
        if structure in asked and not won[structure]:
            notes.append(no_gain(structure, rig))
        elif structure in asked and won[structure] < layers:
            notes.append(f"{structure} gains on {rig} in {won[structure]} of {layers} layers: the others run dense")
    return tuple(notes)


def no_gain(structure: str, rig: str) -> str:
    """The line for a structure whose zeros the rig's kernels multiply like any other weight."""
    what = "columns of zeros" if structure == "shape" else "single zeros"
    return f"no gain on {rig} by {structure}: {what} in dense kernels cost what weights cost"
