"""The multiple-choice knapsack: one choice of each unit, total cost within a budget, total value as large as can be.

Exact dynamic programming over integer costs (Sinha and Zoltners 1979 state the problem; the recursion is Bellman's).
Real-valued costs are rounded up to a grid first, so a budget is never broken, and what the rounding left over is filled
with the costs as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from admm.errors import PlanError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choices:
    """One unit's alternatives: `costs` and `values`, both [choices]; finite, in any order."""

    costs: Floats
    values: Floats

    @classmethod
    def of(cls, costs: ArrayLike, values: ArrayLike) -> Choices:
        """Check and copy. Raises `ValueError` for none, unequal lengths and numbers that are not finite."""
        c, v = np.array(costs, dtype=np.float64), np.array(values, dtype=np.float64)
        if c.ndim != 1 or c.shape != v.shape or not c.size:
            raise ValueError(f"costs and values are one array of choices each, got shapes {c.shape} and {v.shape}")
        if not (np.isfinite(c).all() and np.isfinite(v).all()):
            raise ValueError("costs and values of a choice must be finite")
        return cls(c, v)


class Knapsack:
    """The table of best values for every budget up to `budget` at once; `pick` reads a choice off it.

    Costs are counted from each unit's cheapest choice in steps of the spare budget / `bins`, rounded up. Where all are
    whole numbers and at most `bins` of their common divisor are spare, one step is that divisor, and the result is
    exact. Time is units x choices x bins, memory units x bins. Raises `PlanError` naming the least possible cost
    where nothing fits.
    """

    def __init__(self, units: Sequence[Choices], budget: float, bins: int = 4096) -> None:
        self._units = units
        self._cheapest = [float(unit.costs.min()) for unit in units]
        self.least = math.fsum(self._cheapest)
        spare = self._spare(budget)
        whole = all(bool((unit.costs == np.rint(unit.costs)).all()) for unit in units)
        # the widening outweighs the rounding of sums, so that no total can end above the budget
        step = self._common() if whole else 0.0
        self._step = step if step > 0.0 and spare <= bins * step else spare / bins * (1.0 + 1e-9)
        self._extent = int(spare / self._step) + 1 if self._step else 1
        self._orders: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._before: list[Floats] = []
        best = np.zeros(self._extent)
        for unit, cheapest in zip(units, self._cheapest, strict=True):
            best = self._add(unit, cheapest, best)

    def pick(self, budget: float, *, fill: bool = True) -> list[int]:
        """The index of the choice of each unit: the most valuable within `budget` (at most the one given first).

        `fill` spends what the rounding of costs left over.
        """
        spare = self._spare(budget)
        left = min(int(spare / self._step), self._extent - 1) if self._step else 0
        chosen: list[int] = []
        for unit, (order, steps), before in zip(
            reversed(self._units), reversed(self._orders), reversed(self._before), strict=True
        ):
            within = int(np.searchsorted(steps, left, side="right"))
            top = int((before[left - steps[:within]] + unit.values[order[:within]]).argmax())
            chosen.append(int(order[top]))
            left -= int(steps[top])
        chosen.reverse()
        return self._fill(chosen, budget) if fill else chosen

    def _spare(self, budget: float) -> float:
        if not budget >= self.least:
            raise PlanError(f"a budget of {budget:.6g} is out of reach: the least possible cost is {self.least:.6g}")
        return min(budget, math.fsum(float(unit.costs.max()) for unit in self._units)) - self.least

    def _steps(self, costs: Floats, cheapest: float) -> NDArray[np.int64]:
        if not self._step:  # no spare budget: only what costs no more than the cheapest
            return np.where(costs > cheapest, 1, 0).astype(np.int64)
        with np.errstate(over="ignore"):  # a step of next to nothing: all but the cheapest are out of reach
            return np.minimum(np.ceil((costs - cheapest) / self._step), 2.0**40).astype(np.int64)

    def _common(self) -> float:
        """The greatest common divisor of what whole costs lie above the cheapest choices; 0 where none lies above."""
        above = [unit.costs - cheapest for unit, cheapest in zip(self._units, self._cheapest, strict=True)]
        top = max((float(costs.max()) for costs in above), default=0.0)
        if top >= 2.0**53:  # a float64 no longer tells whole numbers apart
            return 0.0
        return float(np.gcd.reduce([int(np.gcd.reduce(costs.astype(np.int64))) for costs in above])) if above else 0.0

    def _add(self, unit: Choices, cheapest: float, best: Floats) -> Floats:
        """One more unit: best'[b] = max over its choices of best[b - cost] + value; which one, `pick` works out."""
        steps = self._steps(unit.costs, cheapest)
        order = np.array(_undominated(steps, unit.values, self._extent), dtype=np.int64)
        self._orders.append((order, steps[order]))
        self._before.append(best)
        out, buffer = np.full(self._extent, -np.inf), np.empty(self._extent)
        for start, value in zip(steps[order].tolist(), unit.values[order].tolist(), strict=True):
            candidate = np.add(best[: self._extent - start], value, out=buffer[start:])
            np.maximum(out[start:], candidate, out=out[start:])
        return out

    def _fill(self, chosen: list[int], budget: float) -> list[int]:
        """Spend what rounding left over, the largest gain for its cost first."""
        chosen = list(chosen)
        while True:
            costs = [float(u.costs[i]) for u, i in zip(self._units, chosen, strict=True)]
            left = budget - math.fsum(costs)
            best, at = 0.0, None
            for number, (unit, index) in enumerate(zip(self._units, chosen, strict=True)):
                extra, gain = unit.costs - costs[number], unit.values - unit.values[index]
                fits = (gain > 0.0) & (extra <= left)
                if fits.any():
                    worth = np.where(fits, gain / np.maximum(extra, 1e-300), 0.0)
                    top = int(worth.argmax())
                    # the difference was rounded: what is bought must fit when everything is summed up again
                    total = math.fsum([*costs[:number], float(unit.costs[top]), *costs[number + 1 :]])
                    if worth[top] > best and total <= budget:
                        best, at = float(worth[top]), (number, top)
            if at is None:
                return chosen
            chosen[at[0]] = at[1]


def _undominated(steps: NDArray[np.int64], values: Floats, extent: int) -> list[int]:
    """Choices that fit and are worth more than every cheaper one, cheapest first."""
    order = np.lexsort((-values, steps))
    order = order[steps[order] < extent]
    before = np.concatenate(([-np.inf], np.maximum.accumulate(values[order])[:-1]))
    return [int(i) for i in order[values[order] > before]]
