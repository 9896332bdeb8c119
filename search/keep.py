"""Whose weights a complete search keeps, and how much disk its folder takes.

Of a trial whose weights go, `result.json`, `plan.json` and `trace.jsonl` stay, so that the record is whole and the
network can be made again. Each file is removed alone: a kill in between leaves files that the next end of the search
removes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from admm.compact import WEIGHTS_FILE
from search.atomic import disk_errors
from search.budget import Budget
from search.export import candidates
from search.front import complete_trials, front_results
from search.front_details import ties
from search.job import Job
from search.objectives import LATENCY_ALONE, Objectives
from search.result import Baseline, TrialResult
from search.store import MODEL_NAME, RunStore
from search.study_notes import drop_dead_links

#: What may go, the weights first: they say whether a trial is kept, also where the rest is still to be removed.
HEAVY = (WEIGHTS_FILE, MODEL_NAME)
#: Trials kept within the budget, the most accurate first: where one misses it when measured again, the next is taken.
NEXT_BEST = 8
#: From here on the folder's size is said in any case.
LARGE_BYTES = 10**9


def wanted(
    baseline: Baseline,
    results: Mapping[int, TrialResult],
    budget: Budget | None,
    objectives: Objectives = LATENCY_ALONE,
) -> set[int]:
    """Numbers of the trials whose weights are kept: the front, what is tied with it, the front and the `NEXT_BEST`
    within the budget, and the trials that these began with, without which they cannot be trained again.
    """
    kept = {trial.number for trial in front_results(baseline, results, objectives)}
    kept |= {other for others in ties(results, sorted(kept), objectives).values() for other in others}
    if budget is not None:
        within = {n: r for n, r in results.items() if r.status == "complete" and budget.holds(r)}
        kept |= {trial.number for trial in front_results(baseline, within, objectives)}
        if within:
            kept |= {trial.number for trial in candidates(baseline, within, budget=budget)[:NEXT_BEST]}
    return kept | _began_with(kept, results)


def _began_with(numbers: Iterable[int], results: Mapping[int, TrialResult]) -> set[int]:
    found: set[int] = set()
    left = list(numbers)
    while left:
        result = results.get(left.pop())
        # weights of a twin are its own copy, but the twin's record says what they began with
        for start in () if result is None else (result.started_from, result.weights_of):
            if start is not None and start not in found:
                found.add(start)
                left.append(start)
    return found


def has_weights(store: RunStore, number: int) -> bool:
    """Whether a trial can still be handed over."""
    return (store.trial_dir(number) / WEIGHTS_FILE).exists()


def how_to_make_again(store: RunStore, number: int) -> str:
    """The line for a trial whose weights were not kept."""
    plan = store.trial_dir(number) / "plan.json"
    return (
        f"the weights of trial {number} were not kept: "
        f"prunefront prune {store.root} --plan {plan} --out NEW_FOLDER makes it again"
    )


def remove_unwanted(store: RunStore, job: Job, baseline: Baseline, results: Mapping[int, TrialResult]) -> int:
    """Remove the heavy files that `search.keep_weights` does not want; how many trials lost theirs now.

    Raises `StoreError` for a file that cannot be removed; those before it are gone.
    """
    if job.search.keep_weights == "all":
        return 0
    kept = wanted(baseline, results, Budget.of(job), Objectives.of(job, baseline))
    removed = 0
    for trial in complete_trials(results):
        if trial.number in kept:
            continue
        there = [path for name in HEAVY if (path := store.trial_dir(trial.number) / name).exists()]
        for path in there:
            with disk_errors("remove", path):
                path.unlink(missing_ok=True)
        removed += bool(there)
    drop_dead_links(store)
    return removed


def disk_line(store: RunStore, job: Job, results: Mapping[int, TrialResult], removed: int) -> str | None:
    """`run folder: 12 MB, weights of 9 of 24 trials kept`, where any were removed now or the folder is large."""
    size = folder_bytes(store.root)
    if not removed and size < LARGE_BYTES:
        return None
    complete = [trial.number for trial in complete_trials(results)]
    kept = sum(has_weights(store, number) for number in complete)
    line = f"run folder: {_size(size)}, weights of {kept} of {len(complete)} trials kept"
    if job.search.keep_weights == "all":
        line += f": search.keep_weights: front in {store.job_path} keeps those of the best alone"
    return line


def folder_bytes(root: Path) -> int:
    """Length of all files below a folder; those that go meanwhile count as none."""
    total = 0
    for place, _, names in os.walk(root):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def _size(count: int) -> str:
    for size, unit in ((10**9, "GB"), (10**6, "MB")):
        # 999.6 MB rounds to 1000 MB: it is written in the larger unit
        if count >= size * 0.9995:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{max(1, round(count / 1000))} kB"
