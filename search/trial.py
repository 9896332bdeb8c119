"""What a trial is made of: the bench that all trials of a run share, the one plan to try, and what its steps report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from admm.outcome import StepReport
from admm.plan import PruningPlan
from admm.target import Target
from admm.team import Team
from admm.trace import TraceRecord
from evaluators import Measurement
from evaluators.lowering import LayerTimes
from search.job import Job
from search.module_rigs import Modules
from search.precision import Precision
from search.profile import Profile
from search.result import Baseline, TrialResult
from search.shipped import CALIBRATION, Form, calibration_inputs, shipped_form
from search.tasks.base import PreparedTask


class MeasureOn(Protocol):
    """Latency on a rig by its name, paired with a reference."""

    def __call__(self, rig: str, candidate: bytes, reference: bytes | None = None, /) -> Measurement:
        """Of an ONNX file against another one, or of a module's payload on a rig of modules; None is the dense one."""
        ...


class Crew(Protocol):
    """Other processes that train the same trial as this one, each with its part of every batch."""

    def begin(self, spec: TrialSpec, resumed: bool) -> Team:
        """Let the others open the trial, from its checkpoint if this process did; the team to train in."""

    def step(self, own: Callable[[], StepReport]) -> StepReport:
        """One step in all processes, `own` in this one. Raises `AttemptLost` when one of the others is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every trial of a run shares: the job, the task, the dense network and its figures, and how to measure."""

    job: Job
    task: PreparedTask
    dense: nn.Module
    profile: Profile
    baseline: Baseline
    measure: MeasureOn
    device: torch.device
    file: bytes | None = None
    """The dense network's ONNX file, from which those of shapes are cut; None where the job has no rig of files."""
    modules: Modules | None = None
    """Who answers for the rigs that measure modules; None where the job has none."""
    crew: Crew | None = None
    """Who trains with this process; None where it trains alone."""
    times: LayerTimes = field(default_factory=LayerTimes)
    """What layers were measured to gain by lowering: trials of one process share it."""

    def form(self, content: bytes, *, precision: Precision | None = None, samples: int = CALIBRATION) -> Form:
        """An fp32 ONNX file in the form that is shipped; `samples` calibrate it where that is int8.

        The job's first precision unless one is named.
        """
        return shipped_form(
            self.job,
            content,
            self.measure,
            precision=precision or self.job.precisions[0],
            block=self.profile.block,
            times=self.times,
            calibration=partial(calibration_inputs, self.task, samples),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A finished trial, less pruned or of the same plan, whose weights another one begins with."""

    number: int
    folder: Path
    """Holds its plan.json and weights.safetensors."""
    stretch: float = 0.0
    """Of a trial of the same plan, its stretch; 0 of another plan's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """One trial: its number, its plan and the sampler's parameters.

    `plan` may be a `Target`, whose plan is found while it trains: its shapes are then not known before, so no budget
    is checked ahead. Raises `PlanError` for a target that plan.json could not tell of.
    """

    number: int
    plan: PruningPlan | Target
    params: Mapping[str, int]
    seed: int
    precision: Precision = "fp32"
    stretch: float = 1.0
    """Times the job's iterations and epochs that the plan has been trained for in the end."""
    source: str = ""
    """Who proposed it."""
    start: Start | None = None
    """Whose weights it begins with; None: the dense network's."""
    twins: tuple[int, ...] | None = None
    """The finished trials of the same plan, one of which may have trained its weights; None: they are looked for."""

    def __post_init__(self) -> None:
        self.plan.to_dict()
        before = 0.0 if self.start is None else self.start.stretch
        if not max(before, 0.99) < self.stretch < math.inf:
            bound = "at least 1" if before < 1.0 else f"above the {before:g} that its start was trained for"
            raise ValueError(f"stretch must be {bound} and finite, got {self.stretch!r}")

    def scheduled(self, job: Job, before: float) -> Job:
        """The job with the schedule that is left to this trial, whose plan was trained for `before` times it.

        Weights that were pruned by this very plan have nothing left for ADMM to prune: all epochs go to retraining.
        """
        times = self.stretch - before
        if times == 1.0 and before == 0.0:
            return job
        iterations = math.ceil(job.admm.iterations * times - 1e-9)
        epochs = math.ceil(job.finetune.epochs * times - 1e-9)
        if before > 0.0:
            iterations, epochs = 0, math.ceil(epochs_of(job) * times - 1e-9)
        return job.model_copy(
            update={
                "admm": job.admm.model_copy(update={"iterations": iterations}),
                "finetune": job.finetune.model_copy(update={"epochs": epochs}),
            }
        )


def epochs_of(job: Job) -> int:
    """Of one trial, ADMM and retraining together."""
    return job.admm.iterations * job.admm.epochs_per_iteration + job.finetune.epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a step says to whoever drives: steps done and to do, and the rung figures while training."""

    step: int
    total: int
    phase: str
    rung: int | None = None
    """The ADMM iteration just ended."""
    accuracy: float | None = None
    """Validation accuracy of the projected weights, after an ADMM iteration."""
    relative_latency: float | None = None
    """Of the plan's shapes, where they were measured before training."""
    report: StepReport | None = None
    """What training said of this step, where it trained."""
    record: TraceRecord | None = None
    """Residuals, rho and what is kept, tensor by tensor, after an ADMM iteration."""
    result: TrialResult | None = None
    """Set by the last step."""
