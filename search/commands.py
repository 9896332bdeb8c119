"""What the commands do, apart from reading the command line."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

import search
from search.atomic import parse_json
from search.budget import Budget
from search.errors import UserError
from search.final_scores import read_scores, scores_line
from search.front import failures, front_rows, status_line
from search.job import Job
from search.job_file import load_job
from search.recipe import recipe_of
from search.report import plot_front, print_whole, rich_table, write_front
from search.result import Baseline, TrialResult
from search.store import RunStore


def is_run(target: Path) -> bool:
    """Whether the path is a run folder, rather than a job file or a folder with one."""
    return target.is_dir() and (target / "trials").is_dir()


def write_reports(store: RunStore, job: Job, baseline: Baseline, results: Mapping[int, TrialResult]) -> None:
    """front.json, front.csv and front.png in the run folder."""
    budget = Budget.of(job)
    clock = _clock(baseline, job)
    rows = front_rows(baseline, results, budget.holds if budget is not None else None)
    write_front(store, rows, clock=clock, budget=job.budget.model_dump() if job.budget is not None else None)
    line = budget.latency_line(baseline.latency_ms) if budget is not None else None
    plot_front(store.root / "front.png", baseline, results, line, title=store.name, clock=clock)


def print_front(
    store: RunStore, job: Job, baseline: Baseline, results: Mapping[int, TrialResult], console: Console
) -> None:
    """The front as a table, then what became of the other trials."""
    budget = Budget.of(job)
    rows = front_rows(baseline, results, budget.holds if budget is not None else None)
    print_whole(console, rich_table(rows, _clock(baseline, job)))
    console.print(Text(status_line(results)))
    if scores := read_scores(store):
        console.print(Text(scores_line(scores, [str(row["trial"]) for row in rows])), soft_wrap=True)
    for number, reason in failures(results):
        console.print(Text(f"trial {number} failed: {reason}"), soft_wrap=True)
    for problem in store.problems():
        console.print(Text(f"not counted: {problem}"), soft_wrap=True)
    on_front = {row["trial"] for row in rows}
    for number, result in results.items():
        for note in result.notes if number in on_front else ():
            console.print(Text(f"note on trial {number}: {note}"), soft_wrap=True)


def show_front(run: Path, *, as_json: bool, console: Console) -> None:
    """`prunefront front`."""
    store = RunStore.open(run)
    job = load_job(store.job_path)
    baseline, results = store.read_baseline(), store.results()
    if not as_json:
        print_front(store, job, baseline, results, console)
        return
    budget = Budget.of(job)
    content = {
        "run": store.name,
        "clock": _clock(baseline, job),
        "front": front_rows(baseline, results, budget.holds if budget is not None else None),
        "trials": {str(n): {"status": r.status, "reason": r.reason} for n, r in results.items()},
        "test": read_scores(store),
        "problems": store.problems(),
    }
    sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


def export_from_run(
    run: Path,
    out: Path,
    *,
    latency_ms: float | None,
    speedup: float | None,
    max_drop: float | None,
    trial: int | None,
    console: Console,
) -> None:
    """`prunefront export`."""
    from search.bench import local_measure
    from search.export import candidates, export_trial, require_new

    asked = {"--latency-ms": latency_ms, "--speedup": speedup, "--max-drop": max_drop, "--trial": trial}
    given = [option for option, value in asked.items() if value is not None]
    if len(given) != 1:
        said = "nothing was said" if not given else f"{' and '.join(given)} were given"
        raise UserError(f"say which network to export by exactly one of {', '.join(asked)}: {said}")
    for option, value in asked.items():
        least, bound = (0.0, "above 0") if option in ("--latency-ms", "--speedup") else (-1e-9, "at least 0")
        if value is not None and not least < value < math.inf:
            raise UserError(f"{option} must be {bound}, got {value:g}")
    require_new(out)
    store = RunStore.open(run)
    job = load_job(store.job_path)
    baseline = store.read_baseline()
    rig = job.deciding_rig.name
    budget = None
    if latency_ms is not None or speedup is not None:
        budget = Budget(latency_ms=latency_ms, speedup=speedup, rig=rig)
    chosen = candidates(baseline, store.results(), budget=budget, max_drop=max_drop, trial=trial)
    measure = local_measure(job, (store.baseline_dir / "model.onnx").read_bytes())
    done = export_trial(store, chosen, out, measure=lambda content: measure(rig, content), budget=budget)
    for number, figure in done.refused:
        console.print(Text(f"trial {number} was passed over: measured again it takes {figure}"), soft_wrap=True)
    best, measured = done.trial, done.measured
    figures = f"{measured.latency_ms:.4g} ms, {measured.speedup:.2f}x"
    console.print(
        Text(
            f"exported trial {best.number} to {out}: accuracy {best.accuracy:.4f} "
            f"(drop {best.accuracy_drop or 0.0:.2f} pp), {figures} "
            f"({measured.speedup_low:.2f}-{measured.speedup_high:.2f}) against dense, measured again now"
        ),
        soft_wrap=True,
    )


def environment(job: Job) -> dict[str, Any]:
    """Versions, machine and the job's recipe, for environment.json."""
    packages = {}
    for package in ("torch", "torch-pruning", "ray", "optuna", "onnx", "onnxruntime", "numpy"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "absent"
    return {
        "prunefront": search.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": packages,
        "recipe": recipe_of(job),
    }


def read_plan_text(path: Path) -> str:
    """The text of a plan file; raises `UserError` for one that is missing or no JSON object."""
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"--plan {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--plan {path} cannot be read: not UTF-8 text") from None
    try:
        parse_json(text)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return text


def _clock(baseline: Baseline, job: Job) -> str:
    name = job.deciding_rig.name
    if name not in baseline.measurements:
        raise UserError(
            f"the dense network of this run was measured on {', '.join(baseline.measurements) or 'no rig'}, not on "
            f"{name!r}: put back the rig in its job.yaml, or begin a new run"
        )
    return str(baseline.measurements[name]["stamp"]["clock"])
