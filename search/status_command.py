"""`prunefront status`: how a search is doing, asked from another terminal. Takes no lock and writes nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search.atomic import json_text
from search.budget import Budget
from search.commands import is_run
from search.errors import UserError
from search.front import front_results, status_counts
from search.job import Job
from search.job_file import load_job
from search.objectives import Objectives
from search.on_rigs import passed_over, seen_by
from search.progress_log import log_hypervolume
from search.recipe import as_begun
from search.result import Baseline, TrialResult
from search.run_state import RunState, run_state
from search.sensitivity import epochs_spent
from search.store import RunStore
from search.view import clock_time

SCHEMA = 1
#: Seconds between two looks of --watch.
INTERVAL_S = 2.0
_COLOURS = {"running": "green", "finished": "green", "stopped": "yellow", "unknown": "yellow"}


def show_status(run: Path, *, watch: bool, as_json: bool, console: Console, interval_s: float = INTERVAL_S) -> None:
    """Show the state of a run once, or with `watch` until no driver holds it any more (Ctrl-C ends it before).

    Raises `UserError`, one line, for what is no run.
    """
    if watch and as_json:
        raise UserError("--watch and --json: give one of them, not both")
    if run.is_dir() and not is_run(run):
        raise UserError(f"{run} is not a run folder: give the folder that `prunefront search` made")
    store = RunStore.open(run)
    status = read_status(store)
    if as_json:
        sys.stdout.write(json_text(status))
        return
    if not watch or not _held(status):
        console.print(status_table(status))
        return
    if not console.is_terminal:  # a log: a line when something has changed
        _watch_lines(store, status, console, interval_s)
        return
    with Live(status_table(status), console=console, auto_refresh=False) as live:
        while _held(status):
            time.sleep(interval_s)
            status = read_status(store)
            live.update(status_table(status), refresh=True)


def _held(status: Mapping[str, Any]) -> bool:
    return status["state"] in ("running", "unknown")


def _watch_lines(store: RunStore, status: dict[str, Any], console: Console, interval_s: float) -> None:
    said = ""
    while True:
        line = status_line(status)
        if line != said:
            console.print(Text(line), soft_wrap=True)
            said = line
        if not _held(status):
            return
        time.sleep(interval_s)
        status = read_status(store)


def read_status(store: RunStore) -> dict[str, Any]:
    """All there is to say of a run, JSON-ready.

    `state` with `driver` and `heartbeat`, `done` of `asked`, `running`, `trials` (count by status), `front`,
    `hypervolume`, `epochs`, `dense` and `best` (within the budget, if there is one), `left_s`, `problems`. What is not
    known yet is None. Times are local, ISO 8601.
    """
    job = as_begun(store, load_job(store.job_path))
    store.see_through(partial(seen_by, job))
    results = store.results()
    state = run_state(store, job, results)
    baseline = store.read_baseline() if store.has_baseline else None
    return {
        "schema": SCHEMA,
        "run": store.name,
        "folder": str(store.root),
        "state": state.state,
        "driver": None if state.driver is None else {**asdict(state.driver), "started": _iso(state.driver.started)},
        "heartbeat": _iso(state.heartbeat),
        "silent_s": None if state.heartbeat is None else max(0.0, round(time.time() - state.heartbeat, 1)),
        "done": state.done,
        "asked": state.asked,
        "running": list(state.running),
        "trials": status_counts(results),
        "left_s": state.left_s,
        **_found(store, job, baseline, results),
        "problems": [*store.problems(), *passed_over(store.unseen())],
        "next": _next(store, state, baseline),
    }


def _found(store: RunStore, job: Job, baseline: Baseline | None, results: Mapping[int, TrialResult]) -> dict[str, Any]:
    budget = Budget.of(job)
    if baseline is None:
        nothing = dict.fromkeys(("dense", "best", "front", "hypervolume", "epochs"))
        return {"budget": None if budget is None else str(budget), **nothing}
    objectives = Objectives.of(job, baseline)
    complete = [r for r in results.values() if r.status == "complete"]
    within = complete if budget is None else [r for r in complete if budget.holds(r)]
    best = max(within, key=lambda r: (r.dominates_key[0], -r.dominates_key[1]), default=None)
    return {
        "budget": None if budget is None else str(budget),
        "dense": {"accuracy": baseline.accuracy, "latency_ms": baseline.latency_ms},
        "best": None
        if best is None
        else {
            "trial": best.number,
            "accuracy": best.accuracy,
            "accuracy_drop": best.accuracy_drop,
            "latency_ms": best.latency_ms,
            "speedup": best.speedup,
        },
        "front": [trial.number for trial in front_results(baseline, results, objectives)],
        "hypervolume": log_hypervolume(results, baseline, objectives),
        "epochs": epochs_spent(store.root) + sum(r.epochs for r in results.values()),
    }


def _next(store: RunStore, state: RunState, baseline: Baseline | None) -> str | None:
    """What one would type now."""
    if state.state == "stopped":
        return f"prunefront search {store.root}"
    if state.state == "finished" and baseline is not None:
        return f"prunefront report {store.root}"
    return None


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _state_words(status: Mapping[str, Any]) -> str:
    driver = status["driver"]
    if driver is None:
        return str(status["state"])
    where = f"pid {driver['pid']} on {driver['host']} since {driver['started'].replace('T', ' ')[:19]}"
    if status["state"] == "running":
        return f"running ({where})"
    return f"unknown: signed by {where}, which cannot be asked from here"


def _best_words(status: Mapping[str, Any]) -> str:
    best = status["best"]
    if best is None:
        return "-"
    return f"{best['accuracy']:.4f} at {best['latency_ms']:.4g} ms ({best['speedup']:.2f}x), trial {best['trial']}"


def status_line(status: Mapping[str, Any]) -> str:
    """`running, 12/32 done, 2 running, best within budget 0.9867 at ..., about 2:10 left`: for a log."""
    parts = [str(status["state"]), f"{status['done']}/{status['asked']} done", f"{len(status['running'])} running"]
    if status["best"] is not None:
        parts.append(f"best{' within budget' if status['budget'] else ''} {_best_words(status)}")
    if status["left_s"] is not None:
        parts.append(f"about {clock_time(status['left_s'])} left")
    return ", ".join(parts)


def status_table(status: Mapping[str, Any]) -> RenderableType:
    """The status for a terminal."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    counts = status["trials"]
    table.add_row("state", Text(_state_words(status), style=_COLOURS[status["state"]]))
    if status["heartbeat"] is not None:
        table.add_row("last sign of life", f"{clock_time(status['silent_s'])} ago")
    table.add_row("done", f"{status['done']} of {status['asked']}")
    if _held(status):
        table.add_row("running", Text(", ".join(f"trial {n}" for n in status["running"]) or "-"))
    ended = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    table.add_row("trials", ended or "none finished yet")
    if status["dense"] is None:
        table.add_row("dense", "not measured yet")
    else:
        table.add_row("dense", f"{status['dense']['accuracy']:.4f} at {status['dense']['latency_ms']:.4g} ms")
        table.add_row("best within budget" if status["budget"] else "best accuracy", _best_words(status))
        if status["budget"]:
            table.add_row("budget", Text(status["budget"]))
        table.add_row("front", f"{len(status['front'])} trial{'' if len(status['front']) == 1 else 's'}")
        table.add_row("hypervolume", f"{status['hypervolume']:.4f}")
        table.add_row("epochs spent", f"{status['epochs']:.1f}")
    if _held(status):
        table.add_row("remaining", "-" if status["left_s"] is None else f"about {clock_time(status['left_s'])}")
    for problem in status["problems"]:
        table.add_row("not counted", Text(problem))
    if status["next"] is not None:
        table.add_row("next", Text(status["next"]))
    return Group(Text(f"run {status['run']}", style="bold"), table)
