"""The final front measured again, in a fresh process, when nothing is trained any more: RUN/final.json.

The process is `prunefront measure RUN --trial ...`, whose own record stays in RUN/measured. What was measured so before
is not measured again: a search that goes on measures what came onto its front.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators import EvaluationError, Measurement
from search.atomic import json_text, parse_json, write_atomic
from search.elsewhere import machine_of
from search.errors import UserError
from search.front import front_results
from search.job import Job, RigSpec
from search.objectives import Objectives
from search.remeasured import folder_measure, measure_again
from search.result import Baseline, TrialResult
from search.store import RunStore

SCHEMA = 1
FILE = "final.json"
DENSE = "dense"
#: Started so that it imports the very code that runs here, and nothing from the current folder (-P).
PROGRAM = (
    "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root); "
    "from search.cli import main; main()"
)
#: How long the process may take: seconds in any case, and times what the same measurements took in the search.
PATIENCE_S, PATIENCE = 600.0, 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Remeasured:
    """Measurements of the final front in fresh processes, on the deciding rig; by trial number, and "dense"."""

    rig: str
    networks: Mapping[str, Measurement]


def read_final(store: RunStore, job: Job) -> Remeasured | None:
    """What was measured again on the job's deciding rig, with its threads and batch; None where nothing was.

    A file that cannot be read counts as none: it is made anew.
    """
    spec = job.deciding_rig
    try:
        content = parse_json((store.root / FILE).read_bytes())
        if content["schema"] != SCHEMA or content["rig"] != spec.name:
            return None
        known = {str(name): Measurement.from_dict(of) for name, of in content["networks"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Remeasured(rig=spec.name, networks={name: m for name, m in known.items() if _is_of(m, spec)})


def _is_of(measured: Measurement, spec: RigSpec) -> bool:
    return (measured.stamp.threads, measured.stamp.batch) == (spec.threads, spec.batch)


def remeasure_front(
    store: RunStore,
    job: Job,
    baseline: Baseline,
    results: Mapping[int, TrialResult],
    say: Callable[[str], None],
) -> bool:
    """Measure the dense network and what is new on the front in a fresh process; False where nothing is new.

    Raises `UserError`, one line, where that cannot be done; what was measured before stays.
    """
    before = read_final(store, job)
    known = dict(before.networks) if before is not None else {}
    on_front = front_results(baseline, results, Objectives.of(job, baseline))
    new = [trial for trial in on_front if str(trial.number) not in known]
    if not new:
        return False
    say(f"measuring the front again, in a fresh process: the dense network and {len(new)} more")
    seconds = sum(float(t.measurements.get(job.deciding_rig.name, {}).get("seconds", 0.0)) for t in new)
    try:
        if machine_of(job.deciding_rig.name) is not None:
            measured, skipped = _measured_there(store, job, baseline, new, say)
        else:
            said = in_fresh_process(store.root, [trial.number for trial in new], PATIENCE_S + PATIENCE * seconds)
            measured, skipped = _read(said)
        _require_same_device(measured, baseline, job.deciding_rig)
    except _Failed as failed:
        raise UserError(
            f"the front was not measured again ({failed}): prunefront measure {store.root} does it at any time"
        ) from None
    known |= measured
    content = {"schema": SCHEMA, "rig": job.deciding_rig.name, "networks": {n: m.to_dict() for n, m in known.items()}}
    write_atomic(store.root / FILE, json_text(content))
    for number, why in skipped:
        say(f"trial {number} was not measured again: {why}")
    return True


def _measured_there(
    store: RunStore, job: Job, baseline: Baseline, new: Sequence[TrialResult], say: Callable[[str], None]
) -> tuple[dict[str, Measurement], list[tuple[int, str]]]:
    """On the other machine that has the rig: its actor is a fresh process too, since those of the trials have ended."""
    spec = job.deciding_rig
    try:
        again, skipped = measure_again(store, job, baseline, new, folder_measure(store, job, spec), spec, say)
    except EvaluationError as error:
        raise _Failed(str(error)) from None
    return {DENSE if a.trial.number < 0 else str(a.trial.number): a.now for a in again}, skipped


class _Failed(Exception):
    """Why there are no figures, in a few words."""


def in_fresh_process(root: Path, trials: Sequence[int], seconds: float) -> str:
    """What `prunefront measure RUN --json --trial ...` prints."""
    asked = [part for number in trials for part in ("--trial", str(number))]
    home = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-P", "-c", PROGRAM, home, "measure", str(root.resolve()), "--json", *asked]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise _Failed(f"it took longer than {seconds:.0f} s") from None
    except OSError as error:
        raise _Failed(f"no process could be started: {error.strerror}") from None
    except KeyboardInterrupt:  # the search itself has ended: this step alone is given up
        raise _Failed("interrupted") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = lines[-1].removeprefix("error: ") if lines else "nothing was said"
        raise _Failed(said if done.returncode > 0 else f"its process was ended by signal {-done.returncode}")
    return done.stdout


def _read(said: str) -> tuple[dict[str, Measurement], list[tuple[int, str]]]:
    try:
        content: Mapping[str, Any] = parse_json(said)
        measured = {str(of["trial"]): Measurement.from_dict(of["now"]) for of in content["networks"]}
        return measured, [(int(of["trial"]), str(of["reason"])) for of in content["skipped"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Failed(f"what its process printed cannot be read: {type(error).__name__}: {error}") from None


def _require_same_device(measured: Mapping[str, Measurement], baseline: Baseline, spec: RigSpec) -> None:
    """The rig of a cluster may stand on another machine: figures of this one would be others."""
    then = baseline.measurements.get(spec.name, {}).get("stamp", {}).get("device")
    for of in measured.values():
        if then is not None and of.stamp.device != then:
            raise _Failed(f"the search measured on {then}, and this machine is {of.stamp.device}")
