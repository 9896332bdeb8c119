"""The first trials of a search, found before any training, for a ladder of budgets: plans from sensitivity x forecast,
and a few from the weights' energy x forecast.

`first_plans` is all that a search calls. Without a forecast of latency there are no plans, and no epoch is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from admm.compute import Compute
from search import forecast as forecasts
from search import sensitivity as sensitivities
from search.bench import Prepared
from search.budget import Budget
from search.budgeted_plans import Budgeted
from search.forecast import Forecast, make_forecast
from search.ladder import EXPONENT, Problem, WarmPlan
from search.sensitivity import Sensitivity, measure_sensitivity
from search.trial import MeasureOn

#: Speed-ups asked for beyond the budget's own: what the forecast errs by, and what a trial may lose on the rig.
JUST_UNDER = (1.0, 1.04, 1.1)
#: Plans in all.
COUNT = 8
#: Of so many plans, one keeps the weights' energy instead of the loss that one-shot pruning shows.
ONE_IN = 4
#: The source of those.
BUDGETED = "budgeted projection"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstPlans:
    """What is known before the first epoch, and the plans that follow from it, the one to try first in front."""

    plans: tuple[WarmPlan, ...] = ()
    forecast: Forecast | None = None
    sensitivity: Sensitivity | None = None
    notes: tuple[str, ...] = ()
    """What the user is told: why there are none, budgets that no plan is forecast to keep."""

    @property
    def params(self) -> list[dict[str, int]]:
        """Steps of the space's dimensions, for the sampler to enqueue."""
        return [dict(plan.params) for plan in self.plans]

    @property
    def epochs(self) -> float:
        """Spent on the table, forward passes a third: they count before the first trial's."""
        return 0.0 if self.sensitivity is None else self.sensitivity.epochs

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "plans": [plan.to_dict() for plan in self.plans],
            "forecast": None if self.forecast is None else self.forecast.to_dict(),
            "sensitivity": None if self.sensitivity is None else self.sensitivity.to_dict(),
            "notes": list(self.notes),
        }


def first_plans(
    prepared: Prepared,
    *,
    folder: Path | None,
    dense_latency_ms: float,
    dense: bytes | None = None,
    measure: MeasureOn | None = None,
    device: torch.device | None = None,
    count: int = COUNT,
    exponent: float = EXPONENT,
    say: Callable[[str], None] = lambda line: None,
) -> FirstPlans:
    """Forecast, sensitivities and the ladder of a job whose dense network is trained.

    `prepared.model` holds the dense weights, `dense` is its ONNX file, measured at `dense_latency_ms` on the deciding
    rig. `folder` is the run's: `forecast.json` and `sensitivity.json` are kept there and taken up again (None: nothing
    is written). Without a forecast there are no plans, and `notes` say why. Raises `UserError`, `StoreError`.
    """
    made, why = make_forecast(
        prepared,
        dense=dense,
        measure=measure,
        path=None if folder is None else folder / forecasts.FILE_NAME,
        say=say,
    )
    if made is None:
        return FirstPlans(notes=(f"{why}: the search starts without plans of its own",))
    table = measure_sensitivity(
        prepared.task,
        prepared.model,
        prepared.profile,
        align=prepared.job.align,
        compute=Compute(**prepared.job.compute.model_dump()),
        device=device,
        path=None if folder is None else folder / sensitivities.FILE_NAME,
        say=say,
    )
    asked, notes = asked_speedup(prepared, dense_latency_ms)
    problem = Problem(prepared.profile.space, table, made, exponent)
    fastest = problem.fastest
    if asked is not None and asked > fastest:
        notes += (
            f"the forecast is sure of {fastest:.3g}x at most, {asked:.3g}x is asked: the plans go as far as they can",
        )
    say("finding the first plans")
    others = count // ONE_IN
    found = _by_energy(prepared, made, problem, budgeted_speedups(fastest, asked, others))
    found += problem.ladder(ladder_budgets(fastest, asked, count - others)).plans
    # of dense there is a figure already
    plans = _in_order([plan for plan in found if prepared.profile.space.plan(plan.params)], asked)
    return FirstPlans(plans=plans, forecast=made, sensitivity=table, notes=notes)


def asked_speedup(prepared: Prepared, dense_latency_ms: float) -> tuple[float | None, tuple[str, ...]]:
    """(the job's budget as a speed-up on its deciding rig, notes); None without one, or where it is for another rig."""
    budget = Budget.of(prepared.job)
    if budget is None:
        return None, ()
    if budget.rig != prepared.job.deciding_rig.name:
        return None, (
            f"the budget is for {budget.rig}, latency is forecast on {prepared.job.deciding_rig.name}: the first plans "
            "are spread over all speed-ups",
        )
    return budget.speedup if budget.latency_ms is None else dense_latency_ms / budget.latency_ms, ()


def ladder_budgets(fastest: float, asked: float | None, count: int = COUNT) -> list[float]:
    """At most `count` speed-ups above 1 and up to `fastest`, rising in equal proportions, denser around `asked`.

    With a budget there are some just under it, others from there to the fastest, and some between dense and it. None
    where the fastest is no faster than dense.
    """
    if not fastest > 1.0:
        return []
    if asked is None:
        return _rising(np.geomspace(1.0, fastest, count + 1)[1:], fastest)
    own = [min(max(asked * more, 1.0), fastest) for more in JUST_UNDER[:count]]
    rest = count - len(own)
    beyond = (rest + 1) // 2
    above = np.geomspace(own[-1], fastest, beyond + 2)[1:-1]
    below = np.geomspace(1.0, own[0], rest - beyond + 2)[1:-1]
    return _rising([*own, *above, *below], fastest)


def budgeted_speedups(fastest: float, asked: float | None, count: int) -> list[float]:
    """Speed-ups that the budgeted projection is asked for: the budget and just under it, else evenly in proportion."""
    if count < 1 or not fastest > 1.0:
        return []
    if asked is None:
        return _rising(np.geomspace(1.0, fastest, count + 2)[1:-1], fastest)
    return _rising(asked * np.geomspace(1.0, JUST_UNDER[-1], count), fastest)


def _by_energy(
    prepared: Prepared, forecast: Forecast, problem: Problem, speedups: Iterable[float]
) -> tuple[WarmPlan, ...]:
    budgeted = Budgeted(prepared, forecast)
    found = {speedup: budgeted.steps(speedup) for speedup in speedups}
    return tuple(
        problem.plan(problem.steps_of(steps), speedup, BUDGETED)
        for speedup, steps in found.items()
        if steps is not None
    )


def _rising(budgets: Iterable[float], fastest: float) -> list[float]:
    """Each once, the least asked for first; none above the fastest by rounding, none that asks for nothing."""
    found: list[float] = []
    for budget in sorted(min(float(b), fastest) for b in budgets):
        if budget > (found[-1] if found else 1.0) * (1.0 + 1e-6):
            found.append(budget)
    return found


def _in_order(found: Iterable[WarmPlan], asked: float | None) -> tuple[WarmPlan, ...]:
    """Each plan once: just under the budget first, then what is faster, then what is not; else from the middle out."""
    # of one plan found for several budgets, the last: the ladder's, for the most that it was made for
    by_params = {tuple(sorted(plan.params.items())): plan for plan in found}
    plans = sorted(by_params.values(), key=lambda p: p.safe_speedup)
    if not plans:
        return ()
    if asked is None:
        middle = float(np.sqrt(plans[0].safe_speedup * plans[-1].safe_speedup))
        return tuple(sorted(plans, key=lambda p: abs(np.log(p.safe_speedup / middle))))
    within = [p for p in plans if p.safe_speedup >= asked * (1.0 - 1e-6)]
    return (*within, *reversed([p for p in plans if p not in within]))
