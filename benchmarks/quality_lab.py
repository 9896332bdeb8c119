"""What search methods are compared in: a laboratory that trains plans, and the loop that spends epochs there.

The loop is that of the driver without Ray: a method proposes a plan, the plan's trial goes from stage to stage, the
rung board stops it where it is dominated, and the method is told. Every method meets the same board and the same clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from admm.plan import PruningPlan
from search.result import TrialResult
from search.rungs import RungBoard
from search.space import Space

#: The way of training of survivors: ADMM and retraining for longer. No rung judges it: the plan was judged before.
LONG = "long"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One plan to train: `how` is the way ("admm", `LONG`, or a rival's own), `seed` orders the training batches."""

    plan: PruningPlan
    seed: int
    how: str = "admm"
    start: Trial | None = None
    """The finished trial whose weights it begins with; None: the dense network's."""
    stretch: float = 1.0
    """Times the schedule that its plan has been trained for in the end."""

    @property
    def key(self) -> str:
        """What tells it from all others."""
        own = f"{self.how}-{self.plan.digest()}-{self.seed}" + (f"-x{self.stretch:g}" if self.stretch != 1.0 else "")
        return own if self.start is None else f"{own}-from-{hashlib.sha256(self.start.key.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a trial showed after `epochs` (of this trial): at a rung, or with `rung` None at its end."""

    rung: int | None
    epochs: float
    accuracy: float
    """At a rung of the projected weights, at the end of the shipped ONNX file; validation data, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a plan's shapes say before any training; latencies on the deciding rig."""

    latency_ms: float
    relative_latency: float
    """Pruned / dense, paired."""
    macs: int
    params: int
    compression_x: float


class Lab(Protocol):
    """Where trials are run: really trained, or told by a surrogate."""

    @property
    def space(self) -> Space:
        """The plans that may be asked for."""

    @property
    def rungs(self) -> tuple[int, ...]:
        """The ADMM iterations at which trials may be stopped."""

    @property
    def dense_accuracy(self) -> float:
        """Of the dense network, on the validation data."""

    def figures(self, plan: PruningPlan) -> Figures:
        """Measured once for each plan, or predicted."""

    def stages(self, trial: Trial) -> Iterator[Stage]:
        """The trial stage by stage, as far as the caller wants to know; raises `UserError` for one that fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A method's proposal under a number of its own."""

    number: int
    trial: Trial
    params: Mapping[str, int] = field(default_factory=dict)
    source: str = ""
    """Who proposed it, where a method has several sources."""


class Method(Protocol):
    """One way of choosing plans."""

    @property
    def charged(self) -> float:
        """Epochs that it spent before its first proposal."""

    def ask(self) -> Ask | None:
        """The next plan, or None when there is none."""

    def tell(self, result: TrialResult) -> None:
        """What became of a proposal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A finished trial of a run."""

    epochs: float
    """Spent by the run when it was finished."""
    accuracy: float
    relative_latency: float
    source: str
    plan: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One run of one method: what it finished, what it stopped, and what it spent."""

    points: tuple[Point, ...]
    stopped: int
    epochs: float
    charged: float

    def to_dict(self) -> dict[str, Any]:
        """For the JSON line: figures only, plans left out."""
        return {
            "complete": len(self.points),
            "stopped": self.stopped,
            "epochs": round(self.epochs, 3),
            "charged_before": round(self.charged, 3),
            "points": [
                [round(p.epochs, 3), round(p.accuracy, 5), round(p.relative_latency, 5), p.source] for p in self.points
            ],
        }


def play(lab: Lab, method: Method, *, epochs: float) -> Played:
    """Let `method` spend `epochs`: a trial beyond them does not count, and is not begun where that is known."""
    board = RungBoard(lab.rungs)
    spent, stopped = method.charged, 0
    points: list[Point] = []
    whole: dict[str, float] = {}  # what a trial that was not stopped took, by its way
    while spent < epochs:
        asked = method.ask()
        if asked is None:
            break
        if spent + whole.get(asked.trial.how, 0.0) > epochs:
            spent = epochs
            break
        figures = lab.figures(asked.trial.plan)
        last: Stage | None = None
        reason: str | None = None
        seen: list[Stage] = []
        stages = lab.stages(asked.trial)
        for last in stages:
            if spent + last.epochs > epochs:
                break
            seen.append(last)
            if last.rung is not None and asked.trial.how != LONG and asked.trial.stretch == 1.0:
                reason = board.verdict(asked.number, last.rung, last.accuracy, figures.relative_latency)
            if reason is not None:
                break
        if last is None or not seen or seen[-1] is not last:
            spent = epochs
            break
        spent += last.epochs
        if reason is None:
            whole[asked.trial.how] = last.epochs
            points.append(
                Point(
                    epochs=spent,
                    accuracy=last.accuracy,
                    relative_latency=figures.relative_latency,
                    source=asked.source,
                    plan=asked.trial.plan.to_dict(),
                )
            )
        else:
            stopped += 1
        method.tell(result_of(asked, figures, seen, reason))
    return Played(points=tuple(points), stopped=stopped, epochs=min(spent, epochs), charged=method.charged)


def result_of(asked: Ask, figures: Figures, seen: Sequence[Stage], reason: str | None) -> TrialResult:
    """The record of a trial in the form that samplers are told; `reason` says why it was stopped."""
    trial = asked.trial
    speedup = 1.0 / figures.relative_latency
    common: dict[str, Any] = {
        "number": asked.number,
        "plan_digest": trial.plan.digest(),
        "seed": trial.seed,
        "latency_ms": figures.latency_ms,
        "latency_high_ms": figures.latency_ms,
        "speedup": speedup,
        "speedup_low": speedup,
        "epochs": seen[-1].epochs,
        "params_sampled": dict(asked.params),
        "source": asked.source,
        "stretch": trial.stretch,
        "requested": trial.plan.to_dict(),
        "rungs": tuple((stage.rung, stage.accuracy) for stage in seen if stage.rung is not None),
    }
    if reason is not None:
        return TrialResult(status="stopped", reason=reason, **common)
    return TrialResult(
        status="complete",
        accuracy=seen[-1].accuracy,
        compression_x=figures.compression_x,
        macs=figures.macs,
        params=figures.params,
        **common,
    )
