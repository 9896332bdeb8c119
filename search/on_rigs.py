"""A trial's record as the job's rigs see it now: which figures decide, and what was never measured on them.

A run goes on with another rig, or with other threads: records hold what was measured by rig, and stay. What a job
cannot judge by what its record holds is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from search.budget import Budget
from search.job import Job, RigSpec
from search.objective_names import SIZE, rig_of
from search.result import TrialResult

#: Trials of one reason that are named in a line, before the rest is counted.
NAMED = 12


def judged_on(spec: RigSpec) -> str:
    """The rig as a study is told of it: with other threads, batch or precision it answers another question."""
    extra = {"threads": spec.threads, "batch": spec.batch, "precision": spec.precision}
    plain = {"threads": 1, "batch": 1, "precision": None}
    said = [f"{key} {value}" for key, value in extra.items() if value != plain[key]]
    return f"{spec.name} ({', '.join(said)})" if said else spec.name


def measured_on(measurements: Mapping[str, Mapping[str, Any]], spec: RigSpec) -> bool:
    """Whether these hold one of this rig with its threads and batch."""
    stamp = measurements.get(spec.name, {}).get("stamp")
    if stamp is None:  # made by hand: taken at its word
        return spec.name in measurements
    return (stamp.get("threads"), stamp.get("batch")) == (spec.threads, spec.batch)


def deciding_specs(job: Job) -> list[RigSpec]:
    """The rigs without which no trial can be judged: the deciding one, the objectives' and the budget's."""
    budget = Budget.of(job)
    names = [job.deciding_rig.name, *(name for name in map(rig_of, job.search.objectives) if name is not None)]
    return [job.rig(name) for name in dict.fromkeys([*names, *([budget.rig] if budget is not None else [])])]


def seen_by(job: Job, result: TrialResult) -> TrialResult | str:
    """The record with the deciding rig's figures on top, or why it cannot be judged, in a few words.

    A record without any measurement by rig is taken at its word: it failed, or is of an earlier version.
    """
    if not result.measurements or result.status == "failed":
        return result
    deciding = job.deciding_rig
    # a plan that was over budget by its shapes was measured where that shows, and nowhere else
    specs = deciding_specs(job) if result.status != "infeasible" else [deciding]
    for spec in specs:
        if not measured_on(result.measurements, spec):
            return f"not measured on {judged_on(spec)}"
    sized = deciding.name in result.sizes or result.size_bytes is not None
    if SIZE in job.search.objectives and result.status == "complete" and not sized:
        return "the size of its file is not known"
    return _decided_by(deciding.name, result)


def _decided_by(rig: str, result: TrialResult) -> TrialResult:
    measured = result.measurements[rig]
    if result.speedup == measured.get("speedup") and result.latency_ms == measured.get("latency_ms"):
        own = result.sizes.get(rig, result.size_bytes)
        return result if own == result.size_bytes else replace(result, size_bytes=own)
    accuracy, drop = result.accuracy_on(rig), result.accuracy_drop
    if result.accuracy is not None and accuracy is not None and drop is not None:
        drop += 100.0 * (result.accuracy - accuracy)
    return replace(
        result,
        accuracy=accuracy,
        accuracy_drop=drop,
        latency_ms=measured["latency_ms"],
        latency_high_ms=measured["latency_high_ms"],
        speedup=measured["speedup"],
        speedup_low=measured["speedup_low"],
        size_bytes=result.sizes.get(rig),
    )


def passed_over(reasons: Mapping[int, str]) -> list[str]:
    """`trials 3, 5 to 9: not measured on torch-cpu: passed over`: a line for each reason."""
    by_reason: dict[str, list[int]] = {}
    for number, reason in sorted(reasons.items()):
        by_reason.setdefault(reason, []).append(number)
    return [
        f"trial{'s' if len(numbers) > 1 else ''} {listed(numbers)}: {reason}: passed over"
        for reason, numbers in by_reason.items()
    ]


def listed(numbers: Sequence[int]) -> str:
    """`3, 5 to 9` for ascending numbers; many are cut short."""
    parts = [f"{a} to {b}" if b > a + 1 else f"{a}, {b}" if b > a else str(a) for a, b in _spans(numbers)]
    shown = parts[:NAMED]
    return ", ".join(shown) + (f" and {len(parts) - NAMED} more" if len(parts) > NAMED else "")


def _spans(numbers: Iterable[int]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return spans
