"""The form in which a network's ONNX file is shipped and measured: rewritten for its rig, quantised if asked."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from evaluators.lowering import LayerTimes, Lowered, lower

if TYPE_CHECKING:
    from admm.plan import PruningPlan
    from search.job import Job
    from search.tasks.base import PreparedTask
    from search.trial import MeasureOn

#: Rigs whose runtime the rewrites are made for.
LOWERED_ON = ("onnxruntime-cpu",)
#: Training inputs that quantised shapes are calibrated on: for latency few are enough.
SHAPE_SAMPLES = 32


def lowers(job: Job) -> bool:
    """Whether files of this job are rewritten: zeros of columns then save time."""
    return job.lower and job.deciding_rig.name in LOWERED_ON


def lowered(job: Job, content: bytes, measure: MeasureOn, times: LayerTimes) -> Lowered | None:
    """`content` rewritten and measured; None where the job leaves files as they are. `times` is read and added to."""
    if not lowers(job):
        return None
    rig = job.deciding_rig
    return lower(content, partial(measure, rig.name), block=job.align, batch=rig.batch, known=times)


def as_shipped(job: Job, task: PreparedTask, content: bytes, measure: MeasureOn, times: LayerTimes) -> bytes:
    """An ONNX file of shapes in the form that a trial of them would ship: for latency, not for accuracy."""
    done = lowered(job, content, measure, times)
    content = content if done is None else done.content
    if job.quantize == "int8":
        from evaluators.quantize import quantize_int8

        content = quantize_int8(content, (inputs for inputs, _ in task.train_batches(0)), samples=SHAPE_SAMPLES)
    return content


def without_gain(plan: PruningPlan, lowered: Lowered | None, rig: str) -> tuple[str, ...]:
    """Say it plainly where a structure of the plan bought no time on the rig."""
    asked = {s for layer in plan for s, sparsity in plan[layer].items() if sparsity > 0.0}
    notes = []
    for structure in sorted(asked & {"unstructured", "n:m"}):
        notes.append(f"no gain on {rig} by {structure}: single zeros in dense kernels cost what weights cost")
    if "shape" in asked:
        columns = [layer for layer in plan if plan[layer].get("shape", 0.0) > 0.0]
        gained = [layer.name for layer in lowered.layers if layer.choice != "dense"] if lowered is not None else []
        if not gained:
            notes.append(f"no gain on {rig} by shape: columns of zeros in dense kernels cost what weights cost")
        elif len(gained) < len(columns):
            notes.append(f"shape gains on {rig} in {len(gained)} of {len(columns)} layers: the others run dense")
    return tuple(notes)
