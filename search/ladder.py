"""Plans of least predicted damage for a ladder of latency budgets: a knapsack whose costs depend on each other.

Damage is additive over dimensions; latency is not, since the filters of one layer are the channels of the next. So the
multiple-choice knapsack is solved on costs linearised around a plan (`admm.knapsack`, as sequential programming does),
started from a greedy path and finished by exchanges that are charged by the true forecast. A plan is only ever returned
where the forecast with its margin keeps the budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from admm.errors import PlanError
from admm.knapsack import Choices, Knapsack
from search.sensitivity import Sensitivity
from search.space import Space

#: Power of each rise of the loss before they are added up: found on the digits, see `benchmarks/warm_start.py`.
EXPONENT = 0.75
#: Steps ahead that the greedy path looks at, and that a linearised cost is believed.
_AHEAD, _REACH = 3, 2
_ROUNDS, _BINS = 8, 2048
#: Relative: what rounding may do to a sum.
_EPSILON = 1e-9
Steps = tuple[int, ...]


class Latency(Protocol):
    """What the ladder asks of a forecast."""

    @property
    def margin(self) -> float:
        """By how much a latency may be higher than it is forecast, relative to it."""
        ...

    def relative(self, params: Mapping[str, Any], /) -> float:
        """Latency of a plan over the dense network's; should not rise with a step."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmPlan:
    """One plan of the ladder."""

    params: Mapping[str, int]
    """Steps of the space's dimensions."""
    asked: float
    """The speed-up it was made for."""
    speedup: float
    """Forecast, the middle of what is likely."""
    safe_speedup: float
    """Less the margin: at least `asked`."""
    damage: float
    """Predicted: comparable among plans of one table only."""
    source: str = "warm start"
    """What found it."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "params": dict(self.params),
            "asked": self.asked,
            "speedup": self.speedup,
            "safe_speedup": self.safe_speedup,
            "damage": self.damage,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """A plan for each budget that can be kept, in the order asked, and one line for each that cannot."""

    plans: tuple[WarmPlan, ...]
    unreachable: tuple[str, ...] = ()


def ladder(
    space: Space, sensitivity: Sensitivity, forecast: Latency, budgets: Sequence[float], *, exponent: float = EXPONENT
) -> Ladder:
    """The plan of least predicted damage for each speed-up of `budgets`, kept by the forecast with its margin.

    Damage never falls when more is asked for: a plan made for more stands in where it does less harm. Raises
    `ValueError` for a budget that is no positive finite number or an exponent that is not positive.
    """
    return Problem(space, sensitivity, forecast, exponent).ladder(budgets)


class Problem:
    """Damages and costs of one space: plans are tuples of steps, costs are cautious relative latencies."""

    def __init__(self, space: Space, sensitivity: Sensitivity, forecast: Latency, exponent: float = EXPONENT) -> None:
        if not 0.0 < exponent < math.inf:
            raise ValueError(f"exponent must be positive and finite, got {exponent!r}")
        self._forecast = forecast
        self._names = [d.name for d in space.dimensions]
        self.damages = [np.asarray(sensitivity.curve(d)) ** exponent for d in space.dimensions]
        self.last: Steps = tuple(len(d.sparsities) - 1 for d in space.dimensions)
        self._costs: dict[Steps, float] = {}
        self._path: list[Steps] = []

    @property
    def fastest(self) -> float:
        """The largest speed-up that a plan of the space is sure of, as far as raises one by one tell."""
        return 1.0 / self.cost(self._end)

    def ladder(self, budgets: Sequence[float]) -> Ladder:
        """See `ladder`."""
        for budget in budgets:
            if not 0.0 < budget < math.inf:
                raise ValueError(f"a budget is a speed-up, positive and finite, got {budget!r}")
        limit, last = self.fastest, self.cost(self._end)
        found: dict[float, Steps] = {}
        tighter: Steps | None = None
        # the most asked for first: its plan keeps all budgets below
        for budget in sorted({b for b in budgets if b <= limit * (1.0 + _EPSILON)}, reverse=True):
            bound = max(1.0 / budget * (1.0 + _EPSILON), last)
            starts = [next((s for s in self._whole_path() if self.cost(s) <= bound), self._end)]
            starts += [] if tighter is None else [tighter]
            found[budget] = tighter = min((self.improved(start, bound) for start in starts), key=self.damage)
        return Ladder(
            plans=tuple(self.plan(found[budget], budget) for budget in budgets if budget in found),
            unreachable=tuple(self._out_of_reach(budget) for budget in budgets if budget not in found),
        )

    def _out_of_reach(self, budget: float) -> str:
        middle = self.fastest * (1.0 + self._forecast.margin)
        return (
            f"no plan of the space is forecast to be {budget:.4g}x as fast: the fastest one is {self.fastest:.4g}x, "
            f"{middle:.4g}x less a margin of {self._forecast.margin:.1%}"
        )

    @property
    def _end(self) -> Steps:
        """The fastest plan known: where no raise saves time any more, or all steps at their last."""
        return min((self._whole_path()[-1], self.last), key=self.cost)

    def cost(self, steps: Steps) -> float:
        """Relative latency with the margin on top."""
        known = self._costs.get(steps)
        if known is None:
            params = dict(zip(self._names, steps, strict=True))
            known = self._costs[steps] = self._forecast.relative(params) * (1.0 + self._forecast.margin)
        return known

    def damage(self, steps: Steps) -> float:
        """The sum over the dimensions."""
        return math.fsum(float(d[s]) for d, s in zip(self.damages, steps, strict=True))

    def steps_of(self, params: Mapping[str, int]) -> Steps:
        """A plan of the space as the ladder has them."""
        return tuple(params[name] for name in self._names)

    def plan(self, steps: Steps, asked: float, source: str = "warm start") -> WarmPlan:
        """As it is handed out."""
        params = dict(zip(self._names, steps, strict=True))
        relative = self._forecast.relative(params)
        return WarmPlan(
            params=params,
            asked=asked,
            speedup=1.0 / relative,
            safe_speedup=1.0 / (relative * (1.0 + self._forecast.margin)),
            damage=self.damage(steps),
            source=source,
        )

    def _whole_path(self) -> list[Steps]:
        """From dense, always the raise of least damage for the time it saves, until none saves any."""
        if not self._path:
            steps: Steps | None = (0,) * len(self.last)
            while steps is not None:
                self._path.append(steps)
                further = self._cheapest_raise(steps, _AHEAD)
                steps = self._cheapest_raise(steps, max(self.last)) if further is None else further
        return self._path

    def _cheapest_raise(self, steps: Steps, ahead: int) -> Steps | None:
        now, best, chosen = self.cost(steps), (math.inf, 0.0), None
        for i, step in enumerate(steps):
            for raised in range(step + 1, min(step + ahead, self.last[i]) + 1):
                trial = (*steps[:i], raised, *steps[i + 1 :])
                saved = now - self.cost(trial)
                if saved <= _EPSILON * now:
                    continue
                worth = (float(self.damages[i][raised] - self.damages[i][step]) / saved, -saved)
                if worth < best:
                    best, chosen = worth, trial
        return chosen

    def improved(self, steps: Steps, bound: float) -> Steps:
        """A plan within `bound`, at least as good as `steps`, which is: programmes and exchanges in turns."""
        for _ in range(_ROUNDS):
            before = steps
            steps = min((steps, self._linear(steps, bound)), key=self.damage)
            steps = self._exchanged(steps, bound)
            if self.damage(steps) >= self.damage(before) - _EPSILON * abs(self.damage(before)):
                break
        return steps

    def _linear(self, steps: Steps, bound: float) -> Steps:
        """The best plan within reach by costs linearised here; its budget moved until the true cost fits."""
        now = self.cost(steps)
        grids, choices = [], []
        for i, step in enumerate(steps):
            grid = range(max(step - _REACH, 0), min(step + _REACH, self.last[i]) + 1)
            costs = [self.cost((*steps[:i], s, *steps[i + 1 :])) - now for s in grid]
            grids.append(grid)
            choices.append(Choices.of(costs, [-self.damages[i][s] for s in grid]))
        least = math.fsum(float(c.costs.min()) for c in choices)
        slack = bound - now
        low, high = least, max(slack, least) + 0.5 * max(slack - least, 0.0)
        try:
            table = Knapsack(choices, high, _BINS)
        except PlanError:
            return steps
        best = steps
        budget = max(slack, least)
        for _ in range(8):
            trial = tuple(grid[k] for grid, k in zip(grids, table.pick(budget, fill=False), strict=True))
            if self.cost(trial) <= bound:
                low = budget
                best = min((best, trial), key=self.damage)
            else:
                high = budget
            budget = (low + high) / 2.0
        return best

    def _exchanged(self, steps: Steps, bound: float) -> Steps:
        """Give back what fits, and raise one dimension to lower another, while that does less harm."""
        while True:
            moves = [
                (gain, i, s)
                for i, step in enumerate(steps)
                for s in range(step)
                if (gain := float(self.damages[i][step] - self.damages[i][s])) > 0.0
            ]
            better = self._first_that_fits(steps, moves, bound)
            if better is None:
                return steps
            steps = better

    def _first_that_fits(self, steps: Steps, moves: Sequence[tuple[float, int, int]], bound: float) -> Steps | None:
        """The lowering, alone or paid for by one raise, that saves most damage and keeps the bound."""
        trials: list[tuple[float, Steps]] = []
        least = _EPSILON * max(self.damage(steps), 1e-300)
        for gain, i, s in moves:
            lowered = (*steps[:i], s, *steps[i + 1 :])
            trials.append((gain, lowered))
            for j, step in enumerate(steps):
                if j == i:
                    continue
                for raised in range(step + 1, min(step + _AHEAD, self.last[j]) + 1):
                    net = gain - float(self.damages[j][raised] - self.damages[j][step])
                    if net > least:
                        trials.append((net, (*lowered[:j], raised, *lowered[j + 1 :])))
        for net, trial in sorted(trials, key=lambda t: -t[0]):
            if net > least and self.cost(trial) <= bound:
                return trial
        return None
