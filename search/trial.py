"""What a trial is made of: the bench that all trials of a run share, the one plan to try, and what its steps report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from admm.outcome import StepReport
from admm.plan import PruningPlan
from admm.target import Target
from admm.trace import TraceRecord
from evaluators import Measurement
from search.job import Job
from search.profile import Profile
from search.result import Baseline, TrialResult
from search.tasks.base import PreparedTask

#: (rig name, ONNX bytes) -> measurement against the dense model.
MeasureOn = Callable[[str, bytes], Measurement]


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

    def __post_init__(self) -> None:
        self.plan.to_dict()


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
