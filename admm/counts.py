"""From how much energy each unit holds to how many units of each set stay, within a bound on the cost.

Knows counts, sizes and costs, and neither weights nor masks: what the counts really come to is for `allocate` to see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from admm.cost import CostTable, LayerSize, Ledger
from admm.knapsack import Choices, Knapsack
from admm.unit_sets import Ranking, UnitSets

#: Counts looked at of one decision at a time, and steps of the budget.
CHOICES, BINS = 192, 4096
#: Passes at most in which the grid of counts is refined: 192 choices, then 192 between the neighbours of the best, ...
PASSES = 10


class CountSolver:
    """Counts for the sets of `units`, charged by `table`."""

    def __init__(self, units: UnitSets, table: CostTable) -> None:
        self.units = units
        self._ledger = Ledger(table)

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
        bound -= self._apart()
        for _ in range(PASSES if sets else 0):
            grids = [u.grid(*r, CHOICES, k) for u, r, k in zip(sets, ranges, counts, strict=True)]
            choices = self._choices(grids, counts, rankings)
            # the least may be what is asked for, and sums of the same costs differ in the last digit
            budget = max(bound, math.fsum(float(c.costs.min()) for c in choices))
            chosen = Knapsack(choices, budget, BINS).pick(budget)
            counts = [int(grid[i]) for grid, i in zip(grids, chosen, strict=True)]
            zoomed = [u.zoom(grid, i) for u, grid, i in zip(sets, grids, chosen, strict=True)]
            if zoomed == ranges:
                break
            ranges = zoomed
        return counts

    def _apart(self) -> float:
        """What the layers cost that no decision touches."""
        touched = {layer for units in self.units.sets for layer in units.layers}
        sizes = self.units.sizes(self.units.least)
        return sum(self._ledger.cost(layer, size) for layer, size in sizes.items() if layer not in touched)

    def _choices(
        self, grids: Sequence[NDArray[np.int64]], counts: Sequence[int], rankings: Sequence[Ranking]
    ) -> list[Choices]:
        """Each decision's alternatives, all others as in `counts`: cost of the layers touched, and energy kept."""
        found: list[Choices] = []
        for number, (units, grid, ranking) in enumerate(zip(self.units.sets, grids, rankings, strict=True)):
            trial = list(counts)
            costs = []
            for count in grid:
                trial[number] = int(count)
                costs.append(sum(self._ledger.cost(layer, self.units.size(layer, trial)) for layer in units.layers))
            found.append(Choices.of(costs, ranking.prefix[grid]))
        return found

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
