"""A trial's record as Optuna files it: its state, values and constraint, and the whole of it as a finished trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState

from admm.errors import PlanError
from admm.plan import PruningPlan
from search.budget import Budget
from search.objectives import LATENCY_ALONE, Objectives
from search.result import TrialResult
from search.space import Space
from search.study_notes import about_trial

STATES = {
    "complete": TrialState.COMPLETE,
    "infeasible": TrialState.PRUNED,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def values_of(result: TrialResult, objectives: Objectives = LATENCY_ALONE) -> list[float] | None:
    """(accuracy, relative costs) of a complete trial; what ended otherwise, or lacks a figure, has no values."""
    point = objectives.point(result)
    return None if point is None else list(point)


def state_of(result: TrialResult, objectives: Objectives = LATENCY_ALONE) -> TrialState:
    """How the study files it: a complete trial without usable figures teaches nothing, and is a failure to it."""
    if result.status == "complete" and objectives.point(result) is None:
        return TrialState.FAIL
    return STATES[result.status]


def constraints_of(result: TrialResult, budget: Budget | None) -> dict[str, float]:
    """How far over the budget, where that is known."""
    excess = None if budget is None else budget.excess_of(result)
    return {} if excess is None else {"over_budget": excess}


def noted(source: str, stretch: float) -> dict[str, Any]:
    """What a study notes of a proposal: whose it is, and for how many times the schedule where that is not once."""
    return {"source": source} | ({"stretch": stretch} if stretch != 1.0 else {})


def stretch_of(trial: FrozenTrial) -> float:
    """How many times the job's schedule the trial is trained for."""
    return float(trial.user_attrs.get("stretch", 1.0))


def steps_to(space: Space, result: TrialResult, precision: str | None = None) -> dict[str, int] | None:
    """By the plan, not by the steps of old: in another space other steps may lead there, or none.

    `precision` is the result's own unless one is named.
    """
    try:
        steps = space.params(PruningPlan(result.requested), precision or result.precision)
    except (PlanError, ValueError):
        return None
    return steps if space.plan(steps).digest() == result.plan_digest else None


def filed(
    space: Space,
    distributions: Mapping[str, IntDistribution],
    result: TrialResult | None,
    budget: Budget | None,
    attributes: Mapping[str, Any],
    objectives: Objectives = LATENCY_ALONE,
    artefacts: Mapping[str, str] | None = None,
) -> FrozenTrial:
    """A finished trial with this result, or one that only takes a number: no result, or no plan of this space.

    `attributes` are the sampler's own, `artefacts` those of the trial's files.
    """
    steps = None if result is None else steps_to(space, result)
    if result is None or steps is None:
        return optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"filled": "no result"})
    return optuna.trial.create_trial(
        state=state_of(result, objectives),
        values=values_of(result, objectives),
        params=steps,
        distributions=dict(distributions),
        user_attrs={**noted(result.source or "earlier", result.stretch), **about_trial(result)},
        system_attrs={**attributes, **(artefacts or {})},
        constraints=constraints_of(result, budget),
    )
