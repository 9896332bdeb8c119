"""From how much energy each unit holds to how many units of each set stay, within a bound on the cost.

Knows counts, sizes and costs, and neither weights nor masks: what the counts really come to is for `allocate` to see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from admm.cost import CostTable, LayerSize, Ledger, MacCost, WeightCost
from admm.knapsack import Choices, Knapsack
from admm.unit_sets import Ranking, UnitSets

#: Counts looked at of one decision at a time, and steps of the budget.
CHOICES, BINS = 192, 4096
#: Passes at most in which the grid of counts is refined: 192 choices, then 192 between the neighbours of the best, ...
PASSES = 10
#: Tables by which every weight more costs more.
BY_THE_WEIGHT = (WeightCost, MacCost)


class CountSolver:
    """Counts for the sets of `units`, charged by `table`."""

    def __init__(self, units: UnitSets, table: CostTable) -> None:
        self.units = units
        self._table, self._ledger = table, Ledger(table)

    def total(self, counts: Sequence[int]) -> float:
        """What the network costs at these counts, as far as counts tell."""
        return self.charge(self.units.sizes(counts))

    def charge(self, sizes: Mapping[str, LayerSize]) -> float:
        """What layers of these sizes cost."""
        return self._ledger.total(sizes)

    def forget(self) -> None:
        """Give the memory of asked costs back."""
        self._ledger.forget()

    def uniform(self, bound: float, structures: Sequence[str]) -> list[int]:
        """The same share of the units everywhere, as large as `bound` allows; structures not named stay whole."""
        sets = self.units.sets

        def at(share: float) -> list[int]:
            counts = [u.admissible(int(share * u.units)) if u.structure in structures else u.units for u in sets]
            for number, units in enumerate(sets):
                if units.structure == "unstructured" and units.structure in structures:  # of what the others leave
                    left = self.units.size(units.name, [*counts[:number], units.units, *counts[number + 1 :]])
                    counts[number] = units.admissible(int(share * left.weights))
            return counts

        if self.total(at(1.0)) <= bound:
            return at(1.0)
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.total(at(middle)) <= bound else (low, middle)
        return at(low)

    def by_threshold(self, rankings: Sequence[Ranking], bound: float, *, normalise: bool) -> list[int]:
        """Counts of the units above one global threshold, the lowest that `bound` allows.

        `normalise` measures each unit's energy by the mean of its set (a weight by its layer's root mean square).
        """
        sets = self.units.sets
        scores = []
        for ranking in rankings:
            energy = np.sort(ranking.sorted_energy.double().cpu().numpy())
            scores.append(energy / max(float(energy.mean()), 1e-300) if normalise else energy)

        def above(threshold: float) -> list[int]:
            return [
                u.admissible(s.size - int(np.searchsorted(s, threshold))) for u, s in zip(sets, scores, strict=True)
            ]

        if self.total(above(0.0)) <= bound:
            return above(0.0)
        positive = np.concatenate([s[s > 0.0] for s in scores])
        if not positive.size:
            return self.units.least
        low, high = float(np.log(positive.min())) - 1.0, float(np.log(positive.max())) + 1.0
        for _ in range(64):
            middle = (low + high) / 2
            low, high = (low, middle) if self.total(above(np.exp(middle))) <= bound else (middle, high)
        return above(np.exp(high))

    def refined(self, rankings: Sequence[Ranking], bound: float) -> list[int]:
        """Counts where no two decisions meet: the knapsack, on grids ever finer around its solution."""
        sets = self.units.sets
        counts = self.units.least
        ranges = [(1, units.units) for units in sets]
        stairs = [self._stairs(number, counts) for number in range(len(sets))]
        bound -= self.apart()
        for _ in range(PASSES if sets else 0):
            grids = [
                self._on_edges(number, u.grid(*r, CHOICES, k), counts) if edges is None else edges
                for number, (u, r, k, edges) in enumerate(zip(sets, ranges, counts, stairs, strict=True))
            ]
            choices = self._choices(grids, counts, rankings)
            # the least may be what is asked for, and sums of the same costs differ in the last digit
            budget = max(bound, math.fsum(float(c.costs.min()) for c in choices))
            chosen = Knapsack(choices, budget, BINS).pick(budget)
            counts = [int(grid[i]) for grid, i in zip(grids, chosen, strict=True)]
            zoomed = [
                u.zoom(grid, i) if edges is None else r
                for u, grid, i, r, edges in zip(sets, grids, chosen, ranges, stairs, strict=True)
            ]
            if zoomed == ranges:
                break
            ranges = zoomed
        return counts

    def _stairs(self, number: int, counts: Sequence[int]) -> NDArray[np.int64] | None:
        """The last count of each cost, ascending, where a set has at most `CHOICES` costs; else None.

        A table in blocks (latency at aligned widths) has few: with all of them there is no grid to miss one.
        """
        if type(self._table) in BY_THE_WEIGHT:
            return None
        units, edges, count = self.units.sets[number], [], 0
        while count < units.units:
            first = units.admissible(count + 1)
            count = int(self._last_of_cost(number, np.array([first]), counts)[0])
            edges.append(count)
            if len(edges) > CHOICES:
                return None
        return np.array(edges, dtype=np.int64)

    def _on_edges(self, number: int, grid: NDArray[np.int64], counts: Sequence[int]) -> NDArray[np.int64]:
        """`grid` with each count moved to the largest that costs the same: a budget buys all of a block or none."""
        if type(self._table) in BY_THE_WEIGHT:
            return grid
        return np.unique(self._last_of_cost(number, grid, counts))

    def _last_of_cost(self, number: int, grid: NDArray[np.int64], counts: Sequence[int]) -> NDArray[np.int64]:
        """For each count of `grid` the largest admissible one of the same cost: by doubling, then bisection."""
        units = self.units.sets[number]
        cost = self._costs_along(number, grid, counts)

        def at(steps: NDArray[np.int64]) -> NDArray[np.int64]:
            moved: NDArray[np.int64] = np.minimum((-(-grid // units.align) + steps) * units.align, units.units)
            return moved

        def same(steps: NDArray[np.int64]) -> NDArray[np.bool_]:
            within: NDArray[np.bool_] = self._costs_along(number, at(steps), counts) <= cost
            return within

        low, high = np.zeros_like(grid), np.ones_like(grid)
        open_ended = same(high) & (at(high) < units.units)
        while open_ended.any():
            low, high = np.where(open_ended, high, low), np.where(open_ended, 2 * high, high)
            open_ended &= same(high) & (at(high) < units.units)
        # the end of the units may be reached at the same cost: then `high` itself is the answer
        low = np.where(same(high), high, low)
        while (high - low > 1).any():
            middle = (low + high) // 2
            fits = same(middle)
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        return np.where(low > 0, at(low), grid)

    def apart(self) -> float:
        """What the layers cost that no decision touches."""
        touched = {layer for units in self.units.sets for layer in units.layers}
        sizes = self.units.sizes(self.units.least)
        return sum(self._ledger.cost(layer, size) for layer, size in sizes.items() if layer not in touched)

    def _choices(
        self, grids: Sequence[NDArray[np.int64]], counts: Sequence[int], rankings: Sequence[Ranking]
    ) -> list[Choices]:
        """Each decision's alternatives, all others as in `counts`: cost of the layers touched, and energy kept."""
        return [
            Choices.of(self._costs_along(number, grid, counts), ranking.prefix[grid])
            for number, (grid, ranking) in enumerate(zip(grids, rankings, strict=True))
        ]

    def _costs_along(self, number: int, grid: NDArray[np.int64], counts: Sequence[int]) -> NDArray[np.float64]:
        """What the layers that set `number` touches cost at each of its counts in `grid`: [counts]."""
        total = np.zeros(len(grid))
        for layer in self.units.sets[number].layers:
            filters, columns, weights = self.units.sizes_along(layer, number, grid, counts)
            if type(self._table) is WeightCost:
                total += weights
            elif type(self._table) is MacCost and layer in self._table.positions:
                total += weights * self._table.positions[layer]
            else:
                sizes = zip(filters.tolist(), columns.tolist(), weights.tolist(), strict=True)
                total += [self._ledger.cost(layer, LayerSize(f, c, w)) for f, c, w in sizes]
        return total

    def linear_step(self, counts: Sequence[int], rankings: Sequence[Ranking], bound: float, reach: float) -> list[int]:
        """The best counts within `reach` of the present ones by costs and energies linearised there.

        The linear budget is then moved until the counts really cost as much as `bound` allows and no more.
        """
        sets = self.units.sets
        grids = [u.grid(k / reach, k * reach, CHOICES, k) for u, k in zip(sets, counts, strict=True)]
        choices = self._choices(grids, counts, rankings)
        now = [int((grid == k).nonzero()[0][0]) for grid, k in zip(grids, counts, strict=True)]
        present = sum(float(c.costs[i]) for c, i in zip(choices, now, strict=True))
        least = math.fsum(float(c.costs.min()) for c in choices)
        slack = bound - self.total(counts)
        high = max(present + slack, least)
        high += 0.5 * (high - least)
        table = Knapsack(choices, high, BINS)
        low, best = least, None
        for step in range(10):
            budget = min(max(present + slack, least), high) if step == 0 else (low + high) / 2
            trial = [int(grid[i]) for grid, i in zip(grids, table.pick(budget, fill=False), strict=True)]
            if self.total(trial) <= bound:
                low, best = budget, trial
            else:
                high = budget
        return self._topped_up(best or list(counts), rankings, bound)

    def _topped_up(self, counts: Sequence[int], rankings: Sequence[Ranking], bound: float) -> list[int]:
        """Spend what is left on whatever single raise brings the most energy for its cost."""
        counts = list(counts)
        spent = self.total(counts)
        while True:
            best, raised = 0.0, None
            for number, (units, ranking) in enumerate(zip(self.units.sets, rankings, strict=True)):
                more = units.admissible(counts[number] + 1)
                gain = float(ranking.prefix[more] - ranking.prefix[counts[number]])
                if more == counts[number] or gain <= 0.0:
                    continue
                before = counts[number]
                at = self._cost_of(number, before, counts)
                extra = self._cost_of(number, more, counts) - at
                if spent + extra <= bound and gain / max(extra, 1e-300) > best:
                    best, raised = gain / max(extra, 1e-300), (number, more)
            if raised is None:
                return counts
            number, more = raised
            at, units = self._cost_of(number, counts[number], counts), self.units.sets[number]
            while True:  # twice the raise while it fits, as single weights come in thousands
                further = units.admissible(min(2 * more - counts[number], units.units))
                if further == more or spent + self._cost_of(number, further, counts) - at > bound:
                    break
                more = further
            counts[number] = more
            spent = self.total(counts)

    def _cost_of(self, number: int, count: int, counts: Sequence[int]) -> float:
        trial = [*counts[:number], count, *counts[number + 1 :]]
        return sum(self._ledger.cost(layer, self.units.size(layer, trial)) for layer in self.units.sets[number].layers)
