"""A run measured again: its networks then and now, what became of its front, and the file that records it."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluators import EvaluationError, Measurement
from evaluators.rig import measures_modules
from search.alignment import open_rig
from search.atomic import disk_errors, write_atomic
from search.bench import dense_forms, dense_onnx, prepare_task
from search.budget import Budget
from search.errors import UserError
from search.front import dense_result
from search.job import Job, RigSpec
from search.module_rigs import of_files, of_modules, opened_modules
from search.pareto import front
from search.payload import Payload
from search.result import Baseline, TrialResult
from search.store import MODEL_NAME, RunStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """One trial measured again: its record, then and now."""

    trial: TrialResult
    now: Measurement
    within_budget: bool | None

    def then(self, rig: str) -> tuple[float | None, float | None]:
        """Latency in ms and speed-up as recorded on this rig; on the deciding one where it was not measured on it."""
        known = self.trial.measurements.get(rig)
        if known is not None:
            return float(known["latency_ms"]), float(known["speedup"])
        return self.trial.latency_ms, self.trial.speedup

    def to_dict(self, rig: str) -> dict[str, Any]:
        """JSON-ready form."""
        latency, speedup = self.then(rig)
        return {
            "trial": "dense" if self.trial.number < 0 else self.trial.number,
            "accuracy": self.trial.accuracy,
            "accuracy_drop": self.trial.accuracy_drop,
            "then": {"latency_ms": latency, "speedup": speedup},
            "now": self.now.to_dict(),
            "within_budget": self.within_budget,
        }


def measure_again(
    store: RunStore,
    job: Job,
    baseline: Baseline,
    wanted: Sequence[TrialResult],
    measure: Callable[[Path], Measurement],
    spec: RigSpec,
    say: Callable[[str], None],
) -> tuple[list[Again], list[tuple[int, str]]]:
    """The dense network first, then the trials; (trial, reason) of those that cannot be measured.

    `measure` takes the folder of a network: of a trial, or the run's baseline.
    """
    # A budget is one of a rig as the job has it: with other threads or another batch it says nothing.
    budget = Budget.of(job) if spec in job.rigs and spec.name == budget_rig(job) else None

    def judged(trial: TrialResult, folder: Path) -> Again:
        now = measure(folder)
        return Again(
            trial=_as_on(trial, spec.name), now=now, within_budget=budget.met_by(now) if budget is not None else None
        )

    say(f"measuring the dense network, then {len(wanted)} more")
    again, skipped = [judged(dense_result(baseline), store.baseline_dir)], []
    for i, trial in enumerate(wanted):
        say(f"measuring trial {trial.number} ({i + 1} of {len(wanted)})")
        try:
            again.append(judged(trial, store.trial_dir(trial.number)))
        except EvaluationError as error:
            skipped.append((trial.number, str(error)))
    return again, skipped


def _as_on(trial: TrialResult, rig: str) -> TrialResult:
    """The trial with the accuracy of the form that this rig takes, which may be another than the deciding one's."""
    accuracy = trial.accuracy_on(rig)
    if accuracy is None or trial.accuracy is None or accuracy == trial.accuracy:
        return trial
    drop = None if trial.accuracy_drop is None else trial.accuracy_drop + 100.0 * (trial.accuracy - accuracy)
    return replace(trial, accuracy=accuracy, accuracy_drop=drop)


def folder_measure(store: RunStore, job: Job, spec: RigSpec) -> Callable[[Path], Measurement]:
    """Measures what lies in a folder of the run, against its dense network: the ONNX file, or for a rig of modules
    the module in its form for this rig. Raises `RigUnavailable`, and `UserError` where the dense network is gone or
    the run ships no ONNX files.
    """
    if measures_modules(spec.name):
        modules = opened_modules([spec], lambda: prepare_task(job)[0])
        dense_job = job.model_copy(update={"rigs": (spec,)})
        dense = dense_forms(store, dense_job).of(spec.name)

        def measure_module(folder: Path) -> Measurement:
            own = folder == store.baseline_dir
            candidate = dense if own else Payload.of_trial(folder, spec.name).to_bytes()
            return modules.measure(spec.name, candidate, dense)

        return measure_module
    rig = open_rig(spec)
    if not of_files(job):
        names = ", ".join(one.name for one in of_modules(job))
        raise UserError(f"rig {spec.name!r} takes ONNX files, and this run ships modules, as {names} measures: "
                        f"name a rig of modules with --rig")  # fmt: skip
    dense_onnx(store)  # said at once where it is gone

    def measure_file(folder: Path) -> Measurement:
        model = folder / MODEL_NAME
        if not model.is_file():
            raise EvaluationError(f"its {MODEL_NAME} is gone")
        return rig.measure(model, store.baseline_dir / MODEL_NAME, batch=spec.batch)

    return measure_file


def budget_rig(job: Job) -> str | None:
    """The rig that the job's budget is for; None without a budget."""
    budget = Budget.of(job)
    return None if budget is None else budget.rig


def front_remarks(again: Sequence[Again], before: Sequence[int]) -> list[str]:
    """What became of the front, trial numbers `before` by rising speed: its order, who is dominated, who came onto it.

    `again` holds the dense network first. Accuracies are those of the record; speed-ups are those of now.
    """
    # The dense network's own ratio is an A/A control: one, but for noise.
    ratio = {a.trial.number: a.now.speedup if a.trial.number >= 0 else 1.0 for a in again}
    measured = {a.trial.number: (a.trial.dominates_key[0], 1.0 / ratio[a.trial.number]) for a in again}
    speed = {a.trial.number: a.now for a in again}
    kept = {list(measured)[i] for i in front(list(measured.values()))}
    then = [number for number in before if number in measured]
    now = sorted(then, key=lambda number: ratio[number])
    remarks = []
    if now != then:
        listed = [", ".join(str(number) for number in order) for order in (then, now)]
        remarks.append(f"the order of the front changed: from slow to fast it was {listed[0]}, now it is {listed[1]}")
    for number in measured:
        if number in kept and number >= 0 and number not in then:
            remarks.append(f"trial {number} was not on the front and is now, among what was measured")
        if number in kept or number not in then:
            continue
        accuracy, latency = measured[number]
        over = next(n for n, point in measured.items() if n in kept and point[0] >= accuracy and point[1] <= latency)
        other = "the dense network" if over < 0 else f"trial {over}"
        close = speed[over].speedup_low <= speed[number].speedup_high
        remarks.append(
            f"trial {number} is dominated now by {other}, at least as accurate and fast "
            f"({ratio[over]:.2f}x against {ratio[number]:.2f}x"
            f"{', within the noise: their intervals overlap' if close else ''})"
        )
    return remarks


@contextmanager
def writable_folder(folder: Path) -> Iterator[None]:
    """Make the folder before minutes are spent; an empty one goes again, however the block ends."""
    try:
        folder.mkdir(exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise UserError(f"{folder} cannot be written ({why}): copy the run to a folder of yours") from None
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()


def write_next(folder: Path, name: str, text: str) -> Path:
    """Write `<name>-<n>.json` under the next free number, whole, never over another. Raises `StoreError`."""
    temporary = folder / f".{name}-{secrets.token_hex(6)}"
    write_atomic(temporary, text)
    try:
        with disk_errors("write", folder):
            taken = [p.stem.rpartition("-")[2] for p in folder.glob(f"{name}-*.json")]
            number = max((int(n) for n in taken if n.isdecimal()), default=0) + 1
            while True:
                path = folder / f"{name}-{number}.json"
                try:
                    os.link(temporary, path)  # a rename would replace what another command has just written
                    return path
                except FileExistsError:
                    number += 1
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                        raise
                    os.rename(temporary, path)  # a file system without hard links
                    return path
    finally:
        with suppress(OSError):
            temporary.unlink()
