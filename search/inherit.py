"""Whose weights a trial begins with: those of the nearest finished, less pruned plan, or those of its own plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from admm.plan import PruningPlan
from search.result import TrialResult

#: Rows and columns that the table of sparsities begins with; it doubles when it is full.
ROWS, COLUMNS = 64, 16


class Starts:
    """The complete trials of a run by what they remove, so that no proposal looks at each of them.

    `has_weights` says whether a trial's weights are at hand; it is asked of the likely ones only.
    """

    def __init__(self, has_weights: Callable[[int], bool]) -> None:
        self._has_weights = has_weights
        self._results: list[TrialResult] = []
        self._by_plan: dict[str, list[TrialResult]] = {}
        self._columns: dict[tuple[str, str], int] = {}
        # [trials, (layer, structure)] sparsities, and [trials] what orders them
        self._removed = np.zeros((ROWS, COLUMNS))
        self._macs, self._accuracy, self._numbers = np.zeros(ROWS), np.zeros(ROWS), np.zeros(ROWS, dtype=np.int64)

    def add(self, result: TrialResult) -> None:
        """A finished trial; one that is not complete has no weights to begin with."""
        if result.status != "complete":
            return
        row = len(self._results)
        if row == len(self._removed):
            self._removed = np.concatenate([self._removed, np.zeros_like(self._removed)])
            self._macs, self._accuracy = np.tile(self._macs, 2), np.tile(self._accuracy, 2)
            self._numbers = np.tile(self._numbers, 2)
        for layer, structures in result.requested.items():
            for structure, sparsity in structures.items():
                column = self._column(layer, structure)  # may widen the table
                self._removed[row, column] = sparsity
        self._macs[row], self._accuracy[row] = result.macs or 0, result.accuracy or 0.0
        self._numbers[row] = result.number
        self._results.append(result)
        self._by_plan.setdefault(result.plan_digest, []).append(result)

    def nearest(self, plan: PruningPlan) -> TrialResult | None:
        """Of the trials that remove no more than `plan` anywhere, and less somewhere, the one that removes most.

        What a trial removes is told by its MACs, and where these are equal by its accuracy. None where there is no such
        trial with its weights at hand: the dense network it is then. One that removes nothing is that network as well.
        """
        found = self._inside(plan)
        return next((result for result in found if self._has_weights(result.number)), None)

    def same_plan(self, plan: PruningPlan, stretch: float) -> TrialResult | None:
        """Of the trials of this very plan, trained for less than `stretch`, the one trained most."""
        shorter = [result for result in self._by_plan.get(plan.digest(), ()) if result.stretch < stretch]
        shorter.sort(key=lambda r: (-r.stretch, r.number))
        return next((result for result in shorter if self._has_weights(result.number)), None)

    def twins(self, plan: PruningPlan) -> tuple[int, ...]:
        """The numbers of all trials of this very plan, ascending."""
        return tuple(sorted(result.number for result in self._by_plan.get(plan.digest(), ())))

    def _inside(self, plan: PruningPlan) -> Iterator[TrialResult]:
        """The trials that `plan` contains, those that remove most first."""
        known = len(self._results)
        wanted, more = np.zeros(self._removed.shape[1]), False
        for layer in plan:
            for structure, sparsity in plan[layer].items():
                column = self._columns.get((layer, structure))
                if column is None:
                    more = True  # nobody removed anything there
                else:
                    wanted[column] = sparsity
        rows = self._removed[:known]
        inside = (rows <= wanted).all(axis=1) & (rows > 0.0).any(axis=1)
        if not more:
            inside &= (rows < wanted).any(axis=1)
        chosen = np.flatnonzero(inside)
        order = np.lexsort((self._numbers[chosen], -self._accuracy[chosen], self._macs[chosen]))
        return (self._results[index] for index in chosen[order])

    def _column(self, layer: str, structure: str) -> int:
        column = self._columns.setdefault((layer, structure), len(self._columns))
        if column == self._removed.shape[1]:
            self._removed = np.concatenate([self._removed, np.zeros_like(self._removed)], axis=1)
        return column
