"""What the commands do, apart from reading the command line."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

import search
from admm.bounded import PLAN_BYTES, read_bounded
from search.atomic import parse_json
from search.budget import Budget
from search.errors import UserError
from search.final_measure import read_final
from search.final_scores import read_scores, scores_line
from search.front import failures, front_rows, status_line
from search.front_details import detailed_rows, missed_lines, progress_content, tied_line
from search.job import Job
from search.job_file import load_job
from search.objectives import Objectives
from search.on_rigs import passed_over, seen_by
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
    write_front(
        store,
        _rows(store, job, baseline, results),
        clock=clock,
        budget=job.budget.model_dump() if job.budget is not None else None,
        progress=progress_content(store, baseline, results, budget, Objectives.of(job, baseline)),
    )
    line = budget.latency_line(baseline.latency_ms) if budget is not None else None
    objectives = Objectives.of(job, baseline)
    plot_front(store.root / "front.png", baseline, results, line, title=store.name, clock=clock, objectives=objectives)


def _rows(store: RunStore, job: Job, baseline: Baseline, results: Mapping[int, TrialResult]) -> list[dict[str, Any]]:
    budget = Budget.of(job)
    objectives = Objectives.of(job, baseline)
    rows = front_rows(baseline, results, budget.holds if budget is not None else None, objectives)
    return detailed_rows(rows, results, read_final(store, job), objectives)


def print_front(
    store: RunStore, job: Job, baseline: Baseline, results: Mapping[int, TrialResult], console: Console
) -> None:
    """The front as a table, then what became of the other trials."""
    rows = _rows(store, job, baseline, results)
    print_whole(console, rich_table(rows, _clock(baseline, job)))
    if (tied := tied_line(rows)) is not None:
        console.print(Text(tied), soft_wrap=True)
    for line in missed_lines(rows, read_final(store, job), Budget.of(job)):
        console.print(Text(line), soft_wrap=True)
    console.print(Text(status_line(results)))
    if scores := read_scores(store):
        console.print(Text(scores_line(scores, [str(row["trial"]) for row in rows])), soft_wrap=True)
    for number, reason in failures(results):
        console.print(Text(f"trial {number} failed: {reason}"), soft_wrap=True)
    for problem in [*store.problems(), *passed_over(store.unseen())]:
        console.print(Text(f"not counted: {problem}"), soft_wrap=True)
    on_front = {row["trial"] for row in rows}
    for number, result in results.items():
        for note in result.notes if number in on_front else ():
            console.print(Text(f"note on trial {number}: {note}"), soft_wrap=True)


def show_front(run: Path, *, as_json: bool, console: Console) -> None:
    """`prunefront front`."""
    store = RunStore.open(run)
    job = load_job(store.job_path)
    store.see_through(partial(seen_by, job))
    baseline, results = store.read_baseline(), store.results()
    if not as_json:
        print_front(store, job, baseline, results, console)
        return
    content = {
        "run": store.name,
        "clock": _clock(baseline, job),
        "front": _rows(store, job, baseline, results),
        **progress_content(store, baseline, results, Budget.of(job), Objectives.of(job, baseline)),
        "trials": {str(n): {"status": r.status, "reason": r.reason} for n, r in results.items()},
        "test": read_scores(store),
        "problems": [*store.problems(), *passed_over(store.unseen())],
    }
    sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


def environment(job: Job) -> dict[str, Any]:
    """Versions, machine and the job's recipe, for environment.json."""
    packages = {}
    for package in ("torch", "torch-pruning", "ray", "optuna", "onnx", "onnxruntime", "numpy"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "absent"
    for package in ("torchvision", "timm", "transformers"):  # the network may be theirs
        with suppress(PackageNotFoundError):
            packages[package] = version(package)
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
        text = read_bounded(path, PLAN_BYTES).decode()
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
            f"{name!r}: prunefront search RUN measures it there, or put back the rig in its job.yaml"
        )
    return str(baseline.measurements[name]["stamp"]["clock"])
