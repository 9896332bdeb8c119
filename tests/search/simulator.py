"""A search without any training: an analytic network, workers that only wait, and a clock that only they move.

Accuracy falls with a convex damage of each layer, latency is a product of what neighbouring layers keep: the shapes of
a real search (thirty coupled dimensions, two noisy objectives), at a microsecond a trial.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from search.budget import Budget
from search.result import Baseline, TrialResult
from search.sampler import Proposal, SpaceExhausted, StudySampler
from search.space import Dimension, Space

DENSE = 0.95
CHANCE = 0.1
#: What of the dense latency no pruning removes.
OVERHEAD = 0.04


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """`layers` layers of two structures each; every number in it follows from `seed`, the noise from plan and seed."""

    layers: int = 15
    steps: int = 10
    seed: int = 0
    accuracy_noise: float = 0.001
    latency_noise: float = 0.005
    budget: Budget | None = None
    epochs: float = 8.0
    rough: float = 0.0
    """How far damages are from adding up: what hurts two neighbouring layers hurts more together, beyond a cliff."""
    space: Space = field(init=False)
    _damages: tuple[tuple[float, float, float], ...] = field(init=False)
    _costs: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        rng = random.Random(f"network {self.seed}")
        sparsities = tuple(round(0.9 * i / (self.steps - 1), 6) for i in range(self.steps))
        space = Space(
            tuple(
                Dimension(layer=f"l{i:02d}", structure=structure, sparsities=sparsities)
                for i in range(self.layers)
                for structure in ("filter", "shape")
            )
        )
        costs = [rng.lognormvariate(0.0, 0.8) for _ in range(self.layers)]
        # a layer's damage at half removed, how steeply it grows, and which of the two structures hurts more
        damages = tuple(
            (rng.lognormvariate(math.log(0.05 / self.layers), 1.0), rng.uniform(2.0, 5.0), rng.uniform(0.7, 1.4))
            for _ in range(self.layers)
        )
        object.__setattr__(self, "space", space)
        object.__setattr__(self, "_damages", damages)
        object.__setattr__(self, "_costs", tuple(c / sum(costs) for c in costs))

    @property
    def baseline(self) -> Baseline:
        """The dense model's record."""
        return Baseline(
            accuracy=DENSE, accuracy_stderr=self.accuracy_noise, latency_ms=1.0, macs=1000, params=1000, weights=1000
        )

    def accuracy(self, params: Mapping[str, int]) -> float:
        """Without noise, in [CHANCE, DENSE]."""
        total, last = 0.0, 0.0
        for (scale, steepness, taste), (filters, shapes) in zip(self._damages, self._removed(params), strict=True):
            removed = 1.0 - (1.0 - filters) ** taste * (1.0 - shapes) ** (1.0 / taste)
            damage = scale * math.expm1(steepness * removed) / math.expm1(steepness * 0.5)
            cliff = self.rough * 0.02 * (removed > 0.9 - 0.1 * steepness)
            total += damage + cliff + self.rough * math.sqrt(damage * last)
            last = damage
        return CHANCE + (DENSE - CHANCE) * math.exp(-total)

    def relative_latency(self, params: Mapping[str, int]) -> float:
        """Without noise: what a layer keeps times what the one before it keeps; lowered shapes cost a tenth more."""
        latency, before = OVERHEAD, 1.0
        for cost, (filters, shapes) in zip(self._costs, self._removed(params), strict=True):
            columns = min(1.0, 1.1 * (1.0 - shapes)) if shapes else 1.0
            latency += (1.0 - OVERHEAD) * cost * before * (1.0 - filters) * columns
            before = 1.0 - filters
        return latency

    def _removed(self, params: Mapping[str, int]) -> Iterator[tuple[float, float]]:
        dimensions = iter(self.space.dimensions)
        for d in dimensions:
            yield d.sparsities[params[d.name]], (e := next(dimensions)).sparsities[params[e.name]]

    def evaluate(self, proposal: Proposal) -> TrialResult:
        """What a worker would record; the same plan always gets the same figures."""
        digest = proposal.plan.digest()
        rng = random.Random(int.from_bytes(hashlib.sha256(f"{self.seed} {digest}".encode()).digest()[:8], "big"))
        latency = self.relative_latency(proposal.params) * math.exp(rng.gauss(0.0, self.latency_noise))
        values: dict[str, Any] = {
            "number": proposal.number,
            "plan_digest": digest,
            "seed": 0,
            "params_sampled": dict(proposal.params),
            "requested": proposal.plan.to_dict(),
            "latency_ms": latency,
            "latency_high_ms": latency * math.exp(2 * self.latency_noise),
            "speedup": 1.0 / latency,
            "speedup_low": math.exp(-2 * self.latency_noise) / latency,
        }
        if self.budget is not None and self.budget.excess(values["latency_high_ms"], values["speedup_low"]) > 0.0:
            return TrialResult(status="infeasible", reason="over budget by its shapes", **values)
        accuracy = min(1.0, max(0.0, self.accuracy(proposal.params) + rng.gauss(0.0, self.accuracy_noise)))
        return TrialResult(
            status="complete",
            accuracy=accuracy,
            accuracy_drop=100.0 * (DENSE - accuracy),
            accuracy_stderr=self.accuracy_noise,
            compression_x=1.0 / latency,
            macs=1,
            params=1,
            epochs=self.epochs,
            **values,
        )


Evaluate = Callable[[Proposal], TrialResult]


def search(
    sampler: StudySampler,
    evaluate: Evaluate,
    *,
    trials: int,
    workers: int = 1,
    results: dict[int, TrialResult] | None = None,
    infeasible_per_trial: int = 8,
) -> dict[int, TrialResult]:
    """The rules of `PlanSearcher` without Ray: unfinished trials first, then new ones, until `trials` were trained.

    Plans over budget are counted apart and take a hundredth of a trial's time; too many in a row end the search.
    `results` is the record, filled before the sampler is told.
    """
    results = {} if results is None else results
    again = sampler.unfinished()
    clock, in_a_row = 0.0, 0
    running: list[tuple[float, int, TrialResult]] = []
    waits = random.Random("durations")
    while True:
        spent = sum(r.status != "infeasible" for r in results.values())
        open_ended = in_a_row < infeasible_per_trial * trials
        while len(running) < workers and spent + len(running) < trials and open_ended:
            try:
                proposal = again.pop(0) if again else sampler.ask()
            except SpaceExhausted:
                open_ended = False
                break
            result = evaluate(proposal)
            took = waits.uniform(0.5, 1.5) * (0.01 if result.status == "infeasible" else 1.0)
            heapq.heappush(running, (clock + took, proposal.number, result))
        if not running:
            return results
        clock, number, result = heapq.heappop(running)
        results[number] = result
        sampler.tell(result)
        in_a_row = in_a_row + 1 if result.status == "infeasible" else 0
