"""What front.json says beyond the table: who is tied, what was measured again, and how the search came to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search.budget import Budget
from search.dominance import Figures, tied_with
from search.final_measure import Remeasured
from search.objective_names import MACS, ON, SIZE
from search.objectives import LATENCY_ALONE, Objectives
from search.progress_log import accuracy_floor, progress
from search.result import Baseline, TrialResult
from search.sensitivity import epochs_spent
from search.store import RunStore

#: Ties of one trial that are named under the table, before the rest is counted.
NAMED = 5


def ties(
    results: Mapping[int, TrialResult], on_front: Sequence[int], objectives: Objectives = LATENCY_ALONE
) -> dict[int, list[int]]:
    """For each trial on the front the complete trials, on it or off it, that the noise does not tell from it."""
    figures = {n: of for n, of in ((n, Figures.of(r, objectives)) for n, r in results.items()) if of is not None}
    best = {n: figures[n] for n in on_front if n in figures}
    return tied_with(best, {n: of for n, of in figures.items() if n not in best})


def detailed_rows(
    rows: Sequence[Mapping[str, Any]],
    results: Mapping[int, TrialResult],
    again: Remeasured | None,
    objectives: Objectives = LATENCY_ALONE,
) -> list[dict[str, Any]]:
    """The rows of `front_rows` with `tied_with` (trial numbers), and `latency_again` (ms) and `speedup_again` as
    {"median", "low", "high"}: the search's last measurement in a fresh process, None where there is none.
    """
    tied = ties(results, [row["trial"] for row in rows if row["trial"] in results], objectives)
    detailed = []
    for row in rows:
        now = None if again is None else again.networks.get(str(row["trial"]))
        latency = speedup = None
        if now is not None:
            latency = {"median": now.latency_ms, "low": now.latency_low_ms, "high": now.latency_high_ms}
            speedup = {"median": now.speedup, "low": now.speedup_low, "high": now.speedup_high}
        more = {"tied_with": tied.get(row["trial"], []), "latency_again": latency, "speedup_again": speedup}
        detailed.append({**row, **more})
    return detailed


def tied_line(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """`tied, within the noise: trial 7 with 12 and 13`, each pair once; None where no two are tied."""
    said, parts = set(), []
    for row in rows:
        others = [other for other in row["tied_with"] if (other, row["trial"]) not in said]
        said |= {(row["trial"], other) for other in others}
        if others:
            parts.append(f"trial {row['trial']} with {_listed(others)}")
    return f"tied, within the noise: {', '.join(parts)}" if parts else None


def _listed(numbers: Sequence[int]) -> str:
    named = [str(number) for number in numbers[:NAMED]]
    if len(numbers) > NAMED:
        named.append(f"{len(numbers) - NAMED} more")
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def missed_lines(rows: Sequence[Mapping[str, Any]], again: Remeasured | None, budget: Budget | None) -> list[str]:
    """A line for each row that keeps the budget in its record and missed it when measured again."""
    if again is None or budget is None or budget.rig != again.rig:
        return []
    lines = []
    for row in rows:
        now = again.networks.get(str(row["trial"]))
        if now is None or not row["within_budget"] or budget.met_by(now):
            continue
        name = "the dense network" if row["trial"] == "dense" else f"trial {row['trial']}"
        lines.append(
            f"{name} keeps the budget of {budget} in its record, and missed it when measured again: up to "
            f"{now.latency_high_ms:.4g} ms, {now.speedup_low:.2f}x at least"
        )
    return lines


def progress_content(
    store: RunStore,
    baseline: Baseline,
    results: Mapping[int, TrialResult],
    budget: Budget | None,
    objectives: Objectives = LATENCY_ALONE,
) -> dict[str, Any]:
    """`progress`: a row a finished trial, epochs with those of the sensitivity table; `objectives`: by name;
    `reference`: where it counts from. The hypervolume is accuracy above the reference times the natural log of the
    gain in each cost: of the speed-up, and of how many times less of what else is an objective.
    """
    before = epochs_spent(store.root)
    return {
        "reference": {
            "accuracy": accuracy_floor(baseline.accuracy),
            "latency_ms": baseline.latency_ms,
            "epochs_before": round(before, 3),
            **_dense_costs(baseline, objectives),
        },
        "objectives": list(objectives.names),
        "progress": [
            {
                "trial": row.trial,
                "epochs": round(row.epochs, 3),
                "hypervolume": round(row.hypervolume, 7),
                "best_accuracy": None if row.best_accuracy is None else round(row.best_accuracy, 6),
            }
            for row in progress(results, baseline, budget, before=before, objectives=objectives)
        ],
    }


def _dense_costs(baseline: Baseline, objectives: Objectives) -> dict[str, Any]:
    """The dense figures of the costs beside the deciding rig's latency, by the names of the objectives."""
    counted = {MACS: baseline.macs, SIZE: baseline.size_bytes}
    costs = {name: counted[name] for name in objectives.costs if name in counted}
    latencies = {f"{ON}{rig}": baseline.measurements.get(rig, {}).get("latency_ms") for rig in objectives.rigs}
    return costs | latencies
