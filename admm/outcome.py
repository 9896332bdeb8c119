"""What a pruning run says of itself: a report for each step, and the smaller network at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from admm.kept import Kept
from admm.plan import PruningPlan
from admm.trace import AdmmTrace

Phase = Literal["admm", "finetune", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step did: its phase, its number there (from 1), mean loss, epochs so far, accuracy if known."""

    phase: Phase
    index: int
    loss: float
    epochs: float
    accuracy: float | None = None
    """ADMM: of the projected weights, as if pruned now. Retraining: of the shrunk network, after its last epoch."""
    primal_residual: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneResult:
    """The smaller network and how it came about."""

    model: nn.Module
    """Plain modules, physically smaller, eval mode; shape and single weights pruned are zeros in it."""
    requested: PruningPlan
    effective: PruningPlan
    kept: Kept
    trace: AdmmTrace
    epochs: float
    notes: tuple[str, ...] = field(default=())
