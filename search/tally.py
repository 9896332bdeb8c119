"""What the progress lines say of the finished trials, kept up trial by trial: nothing looks at all of them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from search.budget import Budget
from search.objectives import LATENCY_ALONE, Objectives
from search.result import Baseline, Status, TrialResult


class Tally:
    """Counts, the best trial within the budget and the front of what was added so far.

    The front is that of `front.front_results`: the dense model takes part and is not counted.
    """

    def __init__(
        self,
        baseline: Baseline | None = None,
        budget: Budget | None = None,
        results: Iterable[TrialResult] = (),
        objectives: Objectives = LATENCY_ALONE,
    ) -> None:
        self._budget, self._objectives = budget, objectives
        self._dense = None if baseline is None else (baseline.accuracy, *[1.0] * len(objectives.costs))
        self._front: list[tuple[float, ...]] = [] if self._dense is None else [self._dense]
        self._seen: set[int] = set()
        self._statuses: Counter[Status] = Counter()
        self.spent = 0
        """Trials that count against the number asked for."""
        self.twins = 0
        """Those that took the weights which another trial had trained for the other precision."""
        self.finals = 0
        """Plans of the final front that were trained on."""
        self.best: TrialResult | None = None
        """The most accurate complete trial, of those within the budget where there is one; the first of equals."""
        for result in results:
            self.add(result)

    def count(self, status: Status) -> int:
        """Trials that ended so."""
        return self._statuses[status]

    @property
    def front(self) -> int:
        """Trials that neither another one nor the dense model dominates."""
        return len(self._front) - (self._dense in self._front)

    def add(self, result: TrialResult) -> None:
        """A finished trial; one that was added before changes nothing."""
        if result.number in self._seen:
            return
        self._seen.add(result.number)
        self._statuses[result.status] += 1
        self.spent += result.spent
        self.twins += result.weights_of is not None
        self.finals += result.source == "final"
        if result.status != "complete":
            return
        within = self._budget is None or self._budget.holds(result)
        if within and (self.best is None or result.dominates_key[0] > self.best.dominates_key[0]):
            self.best = result
        point = self._objectives.point(result)
        if point is not None and not any(_dominates(other, point) for other in self._front):
            self._front = [other for other in self._front if not _dominates(point, other)]
            self._front.append(point)


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether (accuracy, *costs) is as good in all and better in one."""
    return one != other and one[0] >= other[0] and all(a <= b for a, b in zip(one[1:], other[1:], strict=True))
