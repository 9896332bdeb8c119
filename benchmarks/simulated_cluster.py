"""Workers that only wait: the driver's real searcher, rung board and store, told what a cluster would tell them.

What Ray Tune would call is called here in the same order: `suggest` after each report until it has nothing more, the
scheduler on each report, `on_trial_complete` at the end. A worker writes and publishes its record as a real one does.
Tune's own share of the driver is not in it: `throughput.py` measures that.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from admm.compact import WEIGHTS_FILE
from admm.plan import PruningPlan
from evaluators.measurement import DeviceStamp, Measurement
from search.result import TrialResult
from search.rungs import RungScheduler
from search.sampler import Proposal
from search.searcher import PlanSearcher
from search.store import RunStore
from tests.search.simulator import DENSE, Simulated

#: Share of what is missing to the dense accuracy that a longer schedule closes.
RISE = 0.35
RIG = "onnxruntime-cpu"
STAMP = DeviceStamp(
    rig=RIG,
    device="simulated",
    isa="none",
    runtime="none",
    provider="CPUExecutionProvider",
    threads=1,
    batch=1,
    clock="thread_cpu",
    platform="simulated",
)


@dataclass
class Spent:
    """CPU seconds of this process, in the driver's part and in what workers would do on their own machines."""

    asking: float = 0.0
    """The driver's, until a trial is handed out."""
    telling: float = 0.0
    """The driver's, from a trial's first report to its end."""
    workers: float = 0.0
    asked: list[float] = field(default_factory=list)
    """`asking` so far when each trial was handed out."""
    ended: list[float] = field(default_factory=list)
    """`telling` so far when each trial had ended."""

    @property
    def driver(self) -> float:
        """All of the driver's part."""
        return self.asking + self.telling

    def by_quarter(self) -> list[float]:
        """Seconds a trial: to hand out the first, second, third and last quarter of them, and to end it."""
        return [a + b for a, b in zip(_quarters(self.asked), _quarters(self.ended), strict=True)]

    @contextmanager
    def handing_out(self) -> Iterator[None]:
        """The block is the driver's."""
        began = time.process_time()
        try:
            yield
        finally:
            self.asking += time.process_time() - began

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """The block is the driver's."""
        began = time.process_time()
        try:
            yield
        finally:
            self.telling += time.process_time() - began

    @contextmanager
    def working(self) -> Iterator[None]:
        """The block is a worker's."""
        began = time.process_time()
        try:
            yield
        finally:
            self.workers += time.process_time() - began


def _quarters(totals: list[float]) -> list[float]:
    """Mean of each quarter of the steps of a running total; a quarter without any is 0."""
    bounds = [len(totals) * quarter // 4 for quarter in range(5)]
    at = [0.0, *totals]
    return [(at[end] - at[begin]) / max(1, end - begin) for begin, end in itertools.pairwise(bounds)]


class Trial:
    """One trial on one simulated worker: the reports that its steps make, and its record."""

    def __init__(self, network: Simulated, store: RunStore, config: Mapping[str, Any], steps: tuple[int, int]) -> None:
        names = ("number", "params", "precision", "stretch", "source")
        proposal = Proposal(plan=PruningPlan.from_json(config["plan"]), **{name: config[name] for name in names})
        self._store, self._iterations = store, steps[0]
        self._rng = random.Random(f"rungs {proposal.number}")
        self.number = proposal.number
        self.result = self._record(network, proposal, config["start"])
        #: an infeasible trial ends when its shapes are measured, another after its last step
        self.steps = 1 if self.result.status == "infeasible" else 2 + sum(steps)
        self._attempt = store.attempt_dir(self.number, "worker")
        self._step = 0

    def _record(self, network: Simulated, proposal: Proposal, start: tuple[int, float] | None) -> TrialResult:
        found = network.evaluate(proposal)
        changes: dict[str, Any] = {
            "source": proposal.source,
            "stretch": proposal.stretch,
            "started_from": None if start is None else start[0],
            "measurements": {RIG: measurement_of(found).to_dict()},
            "seconds": 60.0,
        }
        if found.status == "complete":
            assert found.accuracy is not None
            gained = (1.0 - RISE ** (proposal.stretch - 1.0)) * max(0.0, DENSE - found.accuracy)
            accuracy = found.accuracy + gained
            changes |= {"accuracy": accuracy, "accuracy_drop": 100.0 * (DENSE - accuracy)}
            changes |= {"accuracies": {RIG: accuracy}}
        return replace(found, **changes)

    def report(self) -> dict[str, Any]:
        """What the next step reports, as `PruneTrainable.step` does; the last one publishes the record."""
        self._step += 1
        number, done = self.result.number, self._step == self.steps
        message: dict[str, Any] = {"number": number, "rung": None, "rung_accuracy": None, "rung_costs": None}
        iteration = self._step - 1
        if not done and 1 <= iteration <= self._iterations and self.result.stretch == 1.0:
            assert self.result.accuracy is not None
            assert self.result.speedup is not None
            # pruned early, a network is worse than it will be, and by how much says little
            accuracy = self.result.accuracy - 0.02 * (1.0 - iteration / self._iterations) - self._rng.uniform(0.0, 0.01)
            self.result = replace(self.result, rungs=(*self.result.rungs, (iteration, accuracy)))
            message |= {"rung": iteration, "rung_accuracy": accuracy, "rung_costs": (1.0 / self.result.speedup,)}
        if done:
            if self.result.status == "complete":
                (self._attempt / WEIGHTS_FILE).write_bytes(b"")
            self._store.commit(number, self._attempt, self.result)
        return message | {"so_far": json.dumps(self._so_far().to_dict()), "done": done}

    def _so_far(self) -> TrialResult:
        share = self._step / self.steps
        if self.result.status != "complete":
            return self.result
        values = {"accuracy": None, "accuracy_drop": None, "accuracy_stderr": None, "compression_x": None}
        return replace(
            self.result, status="stopped", reason="stopped early", epochs=share * self.result.epochs, **values
        )


def measurement_of(result: TrialResult) -> Measurement:
    """A record of the length that a rig's has."""
    assert result.latency_ms is not None
    assert result.latency_high_ms is not None
    assert result.speedup is not None
    assert result.speedup_low is not None
    return Measurement(
        latency_ms=result.latency_ms,
        latency_low_ms=2 * result.latency_ms - result.latency_high_ms,
        latency_high_ms=result.latency_high_ms,
        dense_latency_ms=1.0,
        speedup=result.speedup,
        speedup_low=result.speedup_low,
        speedup_high=2 * result.speedup - result.speedup_low,
        wall_p50_ms=result.latency_ms,
        wall_p95_ms=result.latency_ms,
        wall_min_ms=result.latency_ms,
        pairs=21,
        rejected=0,
        converged=True,
        seconds=1.0,
        stamp=STAMP,
    )


def simulate(
    searcher: PlanSearcher,
    scheduler: RungScheduler,
    network: Simulated,
    store: RunStore,
    *,
    steps: tuple[int, int],
    spent: Spent,
    on_end: Callable[[int], None] = lambda ended: None,
) -> None:
    """Until the searcher has finished; `steps` are ADMM iterations and epochs of retraining of a trial.

    `on_end` is told how many trials have ended.
    """
    durations = random.Random("durations")
    waiting: list[tuple[float, str]] = []  # (when the next report comes, Ray's name of the trial)
    live: dict[str, Trial] = {}
    clock, named, finished = 0.0, 0, False
    while True:
        while not finished:
            name = f"t{named}"
            with spent.handing_out():
                config = searcher.suggest(name)
            finished = config == Searcher.FINISHED
            if finished or config is None:
                break
            named += 1
            spent.asked.append(spent.asking)
            with spent.working():
                live[name] = Trial(network, store, config, steps)
            heapq.heappush(waiting, (clock + lasting(durations), name))
        if not waiting:
            return
        clock, name = heapq.heappop(waiting)
        trial = live[name]
        with spent.working():
            message = trial.report()
        with spent.hearing():
            decision = scheduler.on_trial_result(None, None, message)
            over = message["done"] or decision == TrialScheduler.STOP
            if over:
                searcher.on_trial_complete(name, message)
        if not over:
            heapq.heappush(waiting, (clock + lasting(durations), name))
            continue
        del live[name]
        spent.ended.append(spent.telling)
        on_end(len(spent.ended))


def lasting(rng: random.Random) -> float:
    """Seconds of one step: most alike, some long."""
    return math.exp(rng.gauss(0.0, 0.5))
