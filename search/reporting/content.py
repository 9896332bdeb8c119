"""All that the report shows, as plain JSON data: gathered from a run folder alone, whatever state it is in."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import search
from search.atomic import StoreError, json_text, parse_json
from search.budget import Budget
from search.clocks import clock_words
from search.final_measure import read_final
from search.final_scores import read_scores
from search.forecast import FILE_NAME as FORECAST_NAME
from search.front import dense_result, front_results
from search.front_details import missed_lines, progress_content
from search.job import Job
from search.objectives import Objectives
from search.on_rigs import passed_over
from search.reporting.figures import again_of, each_significant, interval_of, significant
from search.reporting.layers import PLAN_NAME, dense_layers
from search.reporting.search_story import feasibility, sensitivity_curves
from search.reporting.timing import DENSE, MOST, known_times, layer_ms, obstacle, time_layers
from search.reporting.trial_rows import shares_of, trial_rows
from search.result import Baseline, TrialResult
from search.run_state import run_state
from search.store import RunStore


def report_content(
    store: RunStore,
    job: Job,
    baseline: Baseline,
    results: Mapping[int, TrialResult],
    *,
    time_front: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The page's data. `time_front` times the layers of the dense network and of the front here, where that makes
    sense; what was timed before is shown in any case. What the run lacks is None, with the reason under `missing`.
    """
    budget, state = Budget.of(job), run_state(store, job, results)
    rig = job.deciding_rig
    stamp = dict(baseline.measurements.get(rig.name, {}).get("stamp", {}))
    objectives = Objectives.of(job, baseline)
    front = [trial.number for trial in front_results(baseline, results, objectives)]
    missing: list[str] = []
    dense, why = dense_layers(store, _layer_names(store))
    if why is not None:
        missing.append(why)
    why = obstacle(rig, stamp, running=state.state in ("running", "unknown")) if time_front else "it was not asked for"
    if why is None:
        asked = {DENSE: baseline.latency_ms}
        asked |= {str(n): float(results[n].latency_ms or 1.0) for n in _spread(front, MOST)}
        times = time_layers(store, rig, asked, say)
    else:
        times = known_times(store)
        if not times:
            missing.append(f"latency layer by layer was not timed: {why}")
    again, scores = read_final(store, job), _scores(store, missing)
    trials = trial_rows(store, results, baseline, front, budget, dense, times, again, scores, objectives)
    traced = sum(trial["trace"] is not None for trial in trials)
    complete = sum(trial["status"] == "complete" for trial in trials)
    if traced < complete:
        missing.append(f"residuals of {traced} of {complete} complete trials are in this page")
    dense_row = dense_result(baseline)
    content = {
        "run": store.name,
        "folder": str(store.root),
        "folder_typed": shlex.quote(str(store.root)),
        "trials_typed": {str(n): shlex.quote(str(store.trial_dir(n) / PLAN_NAME)) for n in results},
        "task": job.task,
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "version": search.__version__,
        "state": {"word": state.state, "done": state.done, "asked": state.asked, "running": len(state.running)},
        "clock": clock_words(str(stamp.get("clock", "an unknown clock"))),
        "stamp": stamp,
        "measurement": _measured(baseline.measurements.get(rig.name)),
        "environment": _environment(store, missing),
        "budget": None
        if budget is None
        else {
            "words": str(budget),
            # on another rig than the plot's it is no line there
            "latency_ms": significant(budget.latency_line(baseline.latency_ms)) if budget.rig == rig.name else None,
        },
        "structures": list(job.structures),
        "precisions": list(job.precisions),
        "dense": {
            "accuracy": baseline.accuracy,
            "stderr": significant(baseline.accuracy_stderr),
            "latency": significant(baseline.latency_ms),
            "interval": interval_of(baseline.measurements.get(rig.name), "latency"),
            "again": again_of(again, DENSE),
            "macs": baseline.macs,
            "params": baseline.params,
            "test": scores.get(DENSE),
            "within": None if budget is None else budget.holds(dense_row),
        },
        "layers": [
            {
                "name": layer.name,
                "op": layer.op,
                "filters": layer.filters,
                "channels": layer.channels,
                "kernel": layer.kernel,
                "groups": layer.groups,
                "macs": layer.macs,
            }
            for layer in dense
        ],
        "layer_ms": each_significant(
            layer_ms(shares_of(times, DENSE), [layer.name for layer in dense], baseline.latency_ms)
        ),
        "front": front,
        "trials": trials,
        "missed": missed_lines(
            [{"trial": n, "within_budget": budget is not None and budget.holds(results[n])} for n in front],
            again,
            budget,
        ),
        **progress_content(store, baseline, results, budget, objectives),
        "sensitivity": sensitivity_curves(store, missing),
        "feasibility": feasibility(store, job, baseline, budget, FORECAST_NAME, missing),
        "problems": [*store.problems(), *passed_over(store.unseen())],
        "missing": missing,
    }
    return parse_json(json_text(content))  # a loss that is not finite is null here too


def _layer_names(store: RunStore) -> tuple[str, ...]:
    try:
        return tuple(str(name) for name in store.read_profile()["groups"]["layers"])
    except (StoreError, KeyError, TypeError):
        return ()


def _scores(store: RunStore, missing: list[str]) -> dict[str, float]:
    try:
        return {name: float(of["accuracy"]) for name, of in read_scores(store).items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        missing.append(f"the test accuracies cannot be read: {error}")
        return {}


def _environment(store: RunStore, missing: list[str]) -> dict[str, str]:
    try:
        content = store.environment()
        packages = {str(name): str(version) for name, version in content.get("packages", {}).items()}
    except (StoreError, AttributeError) as error:
        missing.append(f"versions are not recorded: {error}")
        return {}
    own = {name: str(content[name]) for name in ("prunefront", "python", "platform") if name in content}
    return own | packages


def _measured(measurement: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What is said of how the dense network was measured."""
    wanted = ("pairs", "rejected", "converged", "speedup", "speedup_low", "speedup_high", "wall_p50_ms", "wall_p95_ms")
    if measurement is None:
        return None
    return {key: significant(measurement.get(key)) for key in wanted if key in measurement}


def _spread(numbers: list[int], most: int) -> list[int]:
    """At most so many, spread evenly, the ends among them."""
    if len(numbers) <= most:
        return numbers
    return [numbers[round(i * (len(numbers) - 1) / (most - 1))] for i in range(most)]
