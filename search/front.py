"""Which trials are the front, and what is said of the others: plain data for the table, the files and the plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from search.objective_names import SIZE
from search.objectives import LATENCY_ALONE, Objectives
from search.pareto import front
from search.result import STATUSES, Baseline, Status, TrialResult

#: The keys of a front row, in the order of every table and file.
COLUMNS: tuple[str, ...] = (
    "trial",
    "accuracy",
    "accuracy_drop",
    "latency_ms",
    "speedup",
    "compression_x",
    "macs",
    "params",
    "within_budget",
    "precision",
)


def dense_result(baseline: Baseline) -> TrialResult:
    """The dense model in the form of a trial (number -1), so that one rule judges it and the trials."""
    latency_high = baseline.latency_ms
    for measurement in baseline.measurements.values():
        if measurement.get("latency_ms") == baseline.latency_ms:
            latency_high = float(measurement.get("latency_high_ms", latency_high))
    return TrialResult(
        number=-1,
        status="complete",
        plan_digest="dense",
        seed=0,
        accuracy=baseline.accuracy,
        accuracy_drop=0.0,
        accuracy_stderr=baseline.accuracy_stderr,
        latency_ms=baseline.latency_ms,
        latency_high_ms=latency_high,
        speedup=1.0,
        speedup_low=1.0,
        compression_x=1.0,
        macs=baseline.macs,
        params=baseline.params,
        epochs=baseline.trained_epochs,
        measurements=baseline.measurements,
        size_bytes=baseline.size_bytes,
    )


def complete_trials(results: Mapping[int, TrialResult]) -> list[TrialResult]:
    """The measured trials by ascending number: the points of the plot."""
    return [results[number] for number in sorted(results) if results[number].status == "complete"]


def front_results(
    baseline: Baseline, results: Mapping[int, TrialResult], objectives: Objectives = LATENCY_ALONE
) -> list[TrialResult]:
    """The trials that neither another trial nor the dense model dominates, by descending latency.

    The dense model takes part, because it can be shipped too: a trial slower and less accurate is no offer.
    """
    points = objectives.points(results)
    dense = (baseline.accuracy, *[1.0] * len(objectives.costs))
    numbers = list(points)
    kept = front([*points.values(), dense])
    chosen = [results[numbers[index]] for index in kept if index < len(numbers)]
    return sorted(chosen, key=lambda trial: (-trial.dominates_key[1], -trial.dominates_key[0], trial.number))


def front_rows(
    baseline: Baseline,
    results: Mapping[int, TrialResult],
    within: Callable[[TrialResult], bool] | None = None,
    objectives: Objectives = LATENCY_ALONE,
) -> list[dict[str, Any]]:
    """The dense model first (trial "dense"), then the front by descending latency; keys are `COLUMNS`, and those of
    `more_columns` after them.

    Accuracy in [0, 1], its drop in percentage points, latency in ms. `within` says whether a trial keeps the
    budget; it is asked of the dense model too, as `dense_result`. Without it `within_budget` is None.
    """
    return [
        _row("dense" if trial.number < 0 else trial.number, trial, baseline, within) | _more(trial, objectives)
        for trial in (dense_result(baseline), *front_results(baseline, results, objectives))
    ]


def more_columns(objectives: Objectives) -> tuple[str, ...]:
    """The keys of a front row for costs that `COLUMNS` does not have: of another rig, `latency_ms:RIG` and
    `speedup:RIG`, and `size_bytes`."""
    of_rigs = [f"{figure}:{rig}" for rig in objectives.rigs for figure in ("latency_ms", "speedup")]
    return (*of_rigs, *(("size_bytes",) if SIZE in objectives.costs else ()))


def _more(trial: TrialResult, objectives: Objectives) -> dict[str, Any]:
    known: dict[str, Any] = {"size_bytes": trial.size_bytes}
    for rig in objectives.rigs:
        measured = trial.measurements.get(rig, {})
        known |= {f"latency_ms:{rig}": measured.get("latency_ms"), f"speedup:{rig}": measured.get("speedup")}
        if trial.number < 0:  # against itself: one, but for noise
            known[f"speedup:{rig}"] = 1.0
    return {name: known[name] for name in more_columns(objectives)}


def _row(
    name: str | int, trial: TrialResult, baseline: Baseline, within: Callable[[TrialResult], bool] | None
) -> dict[str, Any]:
    accuracy, _ = trial.dominates_key
    drop = trial.accuracy_drop
    return {
        "trial": name,
        "accuracy": accuracy,
        "accuracy_drop": 100.0 * (baseline.accuracy - accuracy) if drop is None else drop,
        "latency_ms": trial.latency_ms,
        "speedup": trial.speedup,
        "compression_x": trial.compression_x,
        "macs": trial.macs,
        "params": trial.params,
        "within_budget": None if within is None else bool(within(trial)),
        "precision": trial.precision,
    }


def failures(results: Mapping[int, TrialResult]) -> list[tuple[int, str]]:
    """(trial, reason) of every failed trial, by ascending number."""
    return [(n, results[n].reason or "") for n in sorted(results) if results[n].status == "failed"]


def status_counts(results: Mapping[int, TrialResult]) -> dict[Status, int]:
    """How many trials ended in each status; every status is a key."""
    counts: dict[Status, int] = dict.fromkeys(STATUSES, 0)
    for result in results.values():
        counts[result.status] += 1
    return counts


def status_line(results: Mapping[int, TrialResult]) -> str:
    """`32 trials: 20 complete, 8 infeasible, 4 failed`: the statuses that occur, in their fixed order."""
    total = len(results)
    counted = ", ".join(f"{count} {status}" for status, count in status_counts(results).items() if count)
    return f"{total} trial{'' if total == 1 else 's'}" + (f": {counted}" if counted else "")
