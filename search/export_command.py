"""`prunefront export`: one network of a run, measured once more, as it is or in int8 or fp16."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

from admm.compact import load_pruned
from evaluators import EvaluationError, Lowered, OnnxPredictor, evaluate, export_onnx
from evaluators.rig import measures_modules
from search.bench import dense_forms, local_measure, local_modules, prepare_task, require_same_data
from search.budget import Budget
from search.calm import Calm
from search.conversion import Conversion, Converted, Into, asked_precision, convertible, fp16_conversion
from search.errors import UserError
from search.export import Exported, candidates, export_trial, require_new
from search.handover import fp16_line
from search.job import Job
from search.job_file import load_job
from search.keep import has_weights, how_to_make_again
from search.on_rigs import seen_by
from search.payload import Payload
from search.result import TrialResult
from search.shipped import calibration_inputs, fastest_int8
from search.store import RunStore
from search.trial import MeasureOn


def export_from_run(
    run: Path,
    out: Path,
    *,
    latency_ms: float | None,
    speedup: float | None,
    max_drop: float | None,
    trial: int | None,
    int8: bool,
    fp16: bool = False,
    console: Console,
) -> Exported:
    """`prunefront export`."""
    asked = {"--latency-ms": latency_ms, "--speedup": speedup, "--max-drop": max_drop, "--trial": trial}
    given = [option for option, value in asked.items() if value is not None]
    if len(given) != 1:
        said = "nothing was said" if not given else f"{' and '.join(given)} were given"
        raise UserError(f"say which network to export by exactly one of {', '.join(asked)}: {said}")
    for option, value in asked.items():
        least, bound = (0.0, "above 0") if option in ("--latency-ms", "--speedup") else (-1e-9, "at least 0")
        if value is not None and not least < value < math.inf:
            raise UserError(f"{option} must be {bound}, got {value:g}")
    into = asked_precision(int8=int8, fp16=fp16)
    require_new(out)
    store = RunStore.open(run)
    job = load_job(store.job_path)
    store.see_through(partial(seen_by, job))
    baseline = store.read_baseline()
    rig = job.deciding_rig.name
    budget = None
    if latency_ms is not None or speedup is not None:
        budget = Budget(latency_ms=latency_ms, speedup=speedup, rig=rig)
    results = store.results()
    calm = Calm.of_run(baseline, results, rig)
    if into is not None:
        results = convertible(into, job, results, trial)
    if trial is not None and (why := store.unseen_for(trial)) is not None:
        raise UserError(f"trial {trial} cannot be exported: {why}: name another --trial")
    chosen = candidates(baseline, results, budget=budget, max_drop=max_drop, trial=trial, recorded=into is None)
    measure = local_measure(job, dense_forms(store, job), local_modules(job))
    done = export_trial(
        store,
        with_weights(store, chosen),
        out,
        measure=lambda content: calm.measured(partial(measure, rig, content)),
        budget=budget,
        conversion=None if into is None else CONVERSIONS[into](store, job, measure),
        max_drop=max_drop,
        content_of=partial(trial_payload, store, rig) if measures_modules(rig) else None,
    )
    for number, why in passed_over(chosen, done):
        console.print(Text(f"trial {number} was passed over: {why}"), soft_wrap=True)
    best, measured = done.trial, done.measured
    accuracy, drop = best.accuracy, best.accuracy_drop or 0.0
    if done.converted is not None:
        accuracy = done.converted.score.value
        drop = 100.0 * (baseline.accuracy - accuracy)
    figures = f"{measured.latency_ms:.4g} ms, {measured.speedup:.2f}x"
    console.print(
        Text(
            f"exported trial {best.number}{'' if into is None else f' in {into}'} to {out}: accuracy "
            f"{accuracy:.4f} (drop {drop:.2f} pp), {figures} "
            f"({measured.speedup_low:.2f}-{measured.speedup_high:.2f}) against dense, measured again now"
        ),
        soft_wrap=True,
    )
    if calm.disturbed(measured):
        console.print(Text(calm.remark(measured)), soft_wrap=True)
    if done.converted is not None and done.converted.over_fp32 is not None:
        console.print(Text(fp16_line(done.converted.over_fp32.to_dict())), soft_wrap=True)
    return done


def with_weights(store: RunStore, chosen: list[TrialResult]) -> list[TrialResult]:
    """Those whose weights were kept. Raises `UserError` where none is left, with how to make the first again."""
    kept = [trial for trial in chosen if has_weights(store, trial.number)]
    if not kept:
        rest = f"{len(chosen)} trials fit, and none kept its weights; " if len(chosen) > 1 else ""
        raise UserError(rest + how_to_make_again(store, chosen[0].number))
    return kept


def passed_over(chosen: list[TrialResult], done: Exported) -> list[tuple[int, str]]:
    """(trial, reason) of those that were preferred to the one exported."""
    better = takewhile(lambda trial: trial.number != done.trial.number, chosen)
    refused = dict(done.refused)
    return [(trial.number, refused.get(trial.number, "its weights were not kept")) for trial in better]


def trial_payload(store: RunStore, rig: str, trial: TrialResult) -> bytes:
    """A trial's module for a rig. Raises `UserError` naming the trial where its files are gone."""
    try:
        return Payload.of_trial(store.trial_dir(trial.number), rig).to_bytes()
    except EvaluationError as error:
        raise UserError(f"trial {trial.number}: {error}") from None


def int8_conversion(store: RunStore, job: Job, measure: MeasureOn) -> Conversion:
    """Turns files of a run into int8, calibrated on its training data and scored on its validation data.

    Of a trial whose file was rewritten, the plain one is made again from its weights: in int8 that may be the faster.
    """
    task, model = prepare_task(job)
    require_same_data(store, task)
    inputs = calibration_inputs(task)

    def quantize(trial: TrialResult, content: bytes) -> Converted:
        plain, done = content, None
        if trial.lowered is not None and trial.lowered["changed"]:
            done = Lowered.from_dict(trial.lowered, content)
            small = load_pruned(model, store.trial_dir(trial.number))
            with TemporaryDirectory() as folder:
                path = Path(folder) / "plain.onnx"
                plain = export_onnx(small, task.example_input, path, opset=job.opset).read_bytes()
        quantized, report, rewritten = fastest_int8(plain, done, inputs, partial(measure, job.deciding_rig.name))
        if done is not None and not rewritten:
            done = done.undone(plain, "undone: in int8 the file as it was is faster")
        score = evaluate(OnnxPredictor(quantized), task.val_batches(), task.task.metric)
        lowered = done.to_dict() if done is not None else trial.lowered
        return Converted(precision="int8", content=quantized, score=score, agreement=report.agreement, lowered=lowered)

    return Conversion(precision="int8", make=quantize)


CONVERSIONS: Mapping[Into, Callable[[RunStore, Job, MeasureOn], Conversion]] = {
    "int8": int8_conversion,
    "fp16": fp16_conversion,
}
