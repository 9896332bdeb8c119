"""Early stopping for several objectives: successive halving by non-dominated layers, as a Ray Tune scheduler.

A rung is an ADMM iteration. There, the projected weights' validation accuracy and what the network costs (its shapes)
place a trial among all that passed the rung; what lies in the worse half of the layers is stopped before more is spent.
(Successive halving: Jamieson & Talwalkar 2016; layers by non-domination: NSGA-II, Deb et al. 2002, section III-A.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.objectives import LATENCY_ALONE, Objectives
from search.pareto import front
from search.result import TrialResult

#: Trials that must have passed a rung before anything is stopped there.
ENOUGH = 6
#: The best share of the trials at a rung that goes on.
KEEP = 0.5


def rung_iterations(iterations: int) -> tuple[int, ...]:
    """The ADMM iterations that are rungs: two thirds of the way, where the residual has begun to fall, and the end."""
    return tuple(sorted({max(1, math.ceil(iterations * 2 / 3)), iterations}))


def layers(points: Sequence[tuple[float, ...]]) -> list[int]:
    """The non-dominated layer of each (accuracy up, costs down), 0 the best; NaN in a last layer of its own."""
    rank = [-1] * len(points)
    left = list(range(len(points)))
    layer = 0
    while left:
        best = {left[i] for i in front([points[i] for i in left])}
        if not best:  # only NaN is left
            best = set(left)
        for index in best:
            rank[index] = layer
        left = [i for i in left if i not in best]
        layer += 1
    return rank


@dataclass
class RungBoard:
    """What trials showed at each rung; knows no Ray, so that it can be tested and filled from old results."""

    rungs: tuple[int, ...]
    points: dict[int, dict[int, tuple[float, ...]]] = field(default_factory=dict)
    """rung -> trial number -> (accuracy, costs relative to dense)."""
    stopped: dict[int, str] = field(default_factory=dict)
    """trial number -> why it was stopped."""
    objectives: Objectives = LATENCY_ALONE

    def fill(self, results: Mapping[int, TrialResult]) -> None:
        """Take over what earlier starts recorded."""
        for number, result in results.items():
            costs = self.objectives.relative(result)
            if costs is None:
                continue
            for iteration, accuracy in result.rungs:
                if iteration in self.rungs:
                    self.points.setdefault(iteration, {})[number] = (accuracy, *costs)

    def verdict(self, number: int, rung: int, accuracy: float, *costs: float) -> str | None:
        """Record a trial at a rung, with its costs relative to dense; the reason to stop it, or None to go on."""
        if rung not in self.rungs:
            return None
        board = self.points.setdefault(rung, {})
        board[number] = (accuracy, *costs)
        if len(board) < ENOUGH:
            return None
        numbers = list(board)
        rank = dict(zip(numbers, layers([board[n] for n in numbers]), strict=True))
        better = sum(r < rank[number] for r in rank.values())
        if better < KEEP * len(numbers):
            return None
        self.stopped[number] = (
            f"dominated at ADMM iteration {rung}: {better} of {len(numbers)} trials there were better "
            f"(accuracy {accuracy:.4f} when pruned then)"
        )
        return self.stopped[number]


class RungScheduler(FIFOScheduler):
    """Stops trials on the board's verdict; the searcher then files why."""

    def __init__(self, board: RungBoard) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._board = board

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """STOP or CONTINUE, by the report's `number`, `rung`, `rung_accuracy` and `rung_costs`."""
        accuracy, costs = result.get("rung_accuracy"), result.get("rung_costs")
        if accuracy is None or costs is None or result.get("done"):
            return str(TrialScheduler.CONTINUE)
        reason = self._board.verdict(int(result["number"]), int(result["rung"]), float(accuracy), *map(float, costs))
        return str(TrialScheduler.CONTINUE if reason is None else TrialScheduler.STOP)
