"""First plans from the weights' energy: the budgeted projection of `admm`, told by the latency forecast how far to go.

The second source beside `ladder`: that one asks what each dimension does to the loss by itself, this one what is left
of the weights' energy when all are cut at once, coupled layers together. Where they disagree a trial decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from admm.allocate import Allocator
from admm.cost import output_positions
from admm.errors import PlanError
from admm.plan import N_OF_M
from admm.target import Target
from search.bench import Prepared
from search.forecast import Forecast

#: Halvings of the range of MAC fractions: the last one moves a plan by less than its latency is known.
ROUNDS = 7


class Budgeted:
    """Steps of a job's space that keep most of the weights' energy, for speed-ups of the forecast.

    `prepared.model` holds the dense weights. A job of `n:m` alone has nothing to allocate.
    """

    def __init__(self, prepared: Prepared, forecast: Forecast) -> None:
        self._prepared, self._forecast = prepared, forecast
        self._structures = tuple(s for s in prepared.job.structures if s != N_OF_M)
        self._allocator = self._made() if self._structures else None
        self._values = {name: p.detach() for name, p in prepared.model.named_parameters()}
        self._known: dict[float, Mapping[str, int] | None] = {}

    def _made(self) -> Allocator:
        """For the whole network; each speed-up asks it for a smaller bound."""
        prepared, model = self._prepared, self._prepared.model
        every, chosen = prepared.profile.groups.layers, prepared.profile.layers
        return Allocator(
            model,
            prepared.profile.groups,
            Target(mac_fraction=1.0, structures=self._structures, layers=None if chosen == every else chosen),
            align=prepared.job.align,
            positions=output_positions(model, prepared.task.example_input),
        )

    def steps(self, speedup: float) -> Mapping[str, int] | None:
        """Of the plan with the largest MAC fraction for which the forecast with its margin is sure of `speedup` > 1.

        None for a speed-up that no fraction leads to.
        """
        if self._allocator is None:
            return None
        # ln of the fraction kept: nothing removed at 0, and far below any structure's reach at the other end
        slow, fast, best = 0.0, -2.0 * math.log(speedup) - 1.0, None
        for _ in range(ROUNDS):
            middle = (slow + fast) / 2.0
            steps = self._allocated(self._allocator, round(middle, 9))
            if steps is not None and self._forecast.safe_speedup(steps) < speedup:
                slow = middle
            else:
                # a fraction out of reach is too small, whatever it would take
                fast, best = middle, steps if steps is not None else best
        return best

    def _allocated(self, allocator: Allocator, log_fraction: float) -> Mapping[str, int] | None:
        """The space's steps of the allocation that keeps this fraction of the MACs; None where it is out of reach."""
        if log_fraction not in self._known:
            try:
                bound = math.exp(log_fraction) * allocator.bound.dense
                plan = allocator.allocate(self._values, bound=bound).plan
            except PlanError:
                self._known[log_fraction] = None
            else:
                self._known[log_fraction] = self._prepared.profile.space.params(plan)
        return self._known[log_fraction]
