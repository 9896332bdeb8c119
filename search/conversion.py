"""A trial's ONNX file in another precision than it was searched in, with figures of its own: what an export makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from evaluators import Measurement, OnnxPredictor, Score, evaluate
from evaluators.half import check_fp16, to_fp16
from evaluators.rig import measures_modules
from search.artefact import RANDOM, REAL, random_like
from search.bench import prepare_task, require_same_data
from search.errors import UserError
from search.job import Job
from search.result import TrialResult
from search.store import RunStore
from search.trial import MeasureOn

Into: TypeAlias = Literal["int8", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A trial's file in another precision."""

    precision: Into
    content: bytes
    score: Score
    """Validation metric of this file."""
    agreement: float | None = None
    """Of int8: share of the inputs it was calibrated on for which it puts the same class first as the fp32 file."""
    max_abs: float | None = None
    """Of fp16: max|y - y16| on random and on real inputs."""
    lowered: Mapping[str, Any] | None = None
    """What stays rewritten in it (`Lowered.to_dict()`)."""
    paired: Callable[[], Measurement] | None = None
    """Measures it against its own fp32 file; asked of the one that is exported alone."""
    over_fp32: Measurement | None = None
    """What `paired` gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What turns the files of a run's trials into another precision."""

    precision: Into
    make: Callable[[TrialResult, bytes], Converted]
    """Of a trial and its fp32 file. Raises `EvaluationError` for one that fails its gate."""


def asked_precision(*, int8: bool, fp16: bool) -> Into | None:
    """What the two options of an export ask for. Raises `UserError` for both."""
    if int8 and fp16:
        raise UserError("--int8 and --fp16: give one of them, not both")
    return "int8" if int8 else "fp16" if fp16 else None


def convertible(into: Into, job: Job, results: Mapping[int, TrialResult], trial: int | None) -> dict[int, TrialResult]:
    """The trials whose files can be converted: those in fp32. Raises `UserError` where none can, or `trial` cannot."""
    rig = job.deciding_rig.name
    if measures_modules(rig):
        raise UserError(f"--{into}: {into} is a form of ONNX files, and this run decides on {rig}: leave it out")
    if job.quantize == "int8":
        raise UserError(f"--{into}: the trials of this run are int8 files already: leave it out")
    if trial is not None and trial in results and results[trial].precision == "int8":
        raise UserError(f"--{into}: trial {trial} is an int8 file already: leave it out")
    return {number: result for number, result in results.items() if result.precision == "fp32"}


def fp16_conversion(store: RunStore, job: Job, measure: MeasureOn) -> Conversion:
    """Turns files of a run into fp16, rewritten ones as they are, and scores them on its validation data."""
    task, _ = prepare_task(job)
    require_same_data(store, task)
    real, _ = next(iter(task.val_batches()))
    inputs = [random_like(task.example_input, RANDOM), real[:REAL]]

    def convert(trial: TrialResult, content: bytes) -> Converted:
        half = to_fp16(content)
        parity = check_fp16(content, half, inputs).require()
        return Converted(
            precision="fp16",
            content=half,
            score=evaluate(OnnxPredictor(half), task.val_batches(), task.task.metric),
            max_abs=parity.max_abs,
            lowered=trial.lowered,
            paired=partial(measure, job.deciding_rig.name, half, content),
        )

    return Conversion(precision="fp16", make=convert)
