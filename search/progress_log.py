"""How far a search has come: hypervolume and best accuracy after each trial, computed from the results alone.

The reference is fixed, so that runs compare: the dense accuracy less three percentage points, the dense costs, and
costs on a log scale (halving one counts the same from anywhere). The dense model itself adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from search.budget import Budget
from search.objectives import LATENCY_ALONE, Objectives
from search.result import Baseline, TrialResult
from search.volume import covered

#: How far below the dense accuracy a trial adds to the hypervolume: 3 percentage points.
ACCURACY_SPAN = 0.03


class Progress(NamedTuple):
    """After `trial`: training spent so far, hypervolume, and the best accuracy within the budget (None: none yet)."""

    trial: int
    epochs: float
    hypervolume: float
    best_accuracy: float | None


def accuracy_floor(dense_accuracy: float) -> float:
    """The reference's accuracy."""
    return dense_accuracy - ACCURACY_SPAN


def log_hypervolume(
    results: Mapping[int, TrialResult], baseline: Baseline, objectives: Objectives = LATENCY_ALONE
) -> float:
    """What the complete trials cover: fraction of accuracy times the natural log of each cost's gain."""
    rows = progress(results, baseline, objectives=objectives)
    return rows[-1].hypervolume if rows else 0.0


def progress(
    results: Mapping[int, TrialResult],
    baseline: Baseline,
    budget: Budget | None = None,
    *,
    before: float = 0.0,
    objectives: Objectives = LATENCY_ALONE,
) -> list[Progress]:
    """One row a finished trial, by number: for front.json and the report. Without a budget every trial is within.

    `before` is what was spent before the first trial, in epochs.
    """
    area, epochs, best = covered(accuracy_floor(baseline.accuracy), len(objectives.costs)), before, None
    rows = []
    for number in sorted(results):
        result = results[number]
        epochs += result.epochs
        if result.status == "complete":
            assert result.accuracy is not None
            point = objectives.point(result)
            if point is not None:
                area.add(*point)
            if (budget is None or budget.holds(result)) and (best is None or result.accuracy > best):
                best = result.accuracy
        rows.append(Progress(number, epochs, area.value, best))
    return rows
