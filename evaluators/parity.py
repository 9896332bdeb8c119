"""The parity gate: two forms of one network must say the same, or the artefact is not shipped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluators.accuracy import OnnxPredictor, Predict, module_predictor
from evaluators.errors import EvaluationError

#: Design: unlowered ONNX against its module, fp32.
TOLERANCE = 1e-5
#: Design: a lowered file against its module, fp32; its sums are in another order.
LOWERED_TOLERANCE = 1e-4
#: Outputs smaller than this are compared absolutely: their last bits are rounding of what cancelled before.
FLOOR = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Largest difference between two forms of a network, and what was allowed.

    `ok` means max_abs <= tolerance * max(scale, floor), shapes equal and every output finite.
    """

    max_abs: float
    """max|a - b| over all inputs; NaN or infinite where the outputs are, or where the shapes differ."""
    scale: float
    """max|a|, the first form being the reference."""
    tolerance: float
    samples: int
    ok: bool
    reason: str | None = None
    """One line for a breach, else `None`."""

    def require(self) -> ParityReport:
        """Itself if `ok`; raises `ParityError` with the one-line reason otherwise."""
        if not self.ok:
            raise ParityError(self)
        return self


class ParityError(EvaluationError):
    """Two forms of one network that do not agree; `report` has the figures."""

    def __init__(self, report: ParityReport) -> None:
        super().__init__(report.reason or "parity breach")
        self.report = report

    def __reduce__(self) -> tuple[type[ParityError], tuple[ParityReport]]:
        return ParityError, (self.report,)


def check_parity(
    module: nn.Module,
    onnx: Path | bytes,
    inputs: Sequence[Tensor],
    *,
    tolerance: float = TOLERANCE,
    floor: float = FLOOR,
) -> ParityReport:
    """Compare a module in evaluation mode with its ONNX form in ONNX Runtime on batches [batch, ...].

    Raises `RigError` for a file that cannot be loaded or run, `ValueError` for no inputs.
    """
    return compare(module_predictor(module), OnnxPredictor(onnx), inputs, tolerance, floor)


def compare_modules(
    a: nn.Module,
    b: nn.Module,
    inputs: Sequence[Tensor],
    tolerance: float = TOLERANCE,
    floor: float = FLOOR,
) -> ParityReport:
    """Compare two modules in evaluation mode, `a` being the reference."""
    return compare(module_predictor(a), module_predictor(b), inputs, tolerance, floor)


def compare(a: Predict, b: Predict, inputs: Sequence[Tensor], tolerance: float, floor: float) -> ParityReport:
    if not inputs or any(len(batch) == 0 for batch in inputs):
        raise ValueError("parity needs at least one batch, and none may be empty")
    max_abs = scale = 0.0
    samples = 0
    reason: str | None = None
    for batch in inputs:
        left, right = a(batch).to(torch.float64), b(batch).to(torch.float64)
        samples += len(batch)
        if left.shape != right.shape:
            max_abs = math.inf
            reason = f"parity breach: output shapes differ, {list(left.shape)} against {list(right.shape)}"
            break
        difference = _largest(left - right)
        # NaN loses every comparison: it must not be dropped by max().
        max_abs = difference if math.isnan(difference) else max(max_abs, difference)
        scale = max(scale, _largest(left))
        if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
            reason = "parity breach: an output is not finite"
            break
    allowed = tolerance * max(scale, floor)
    if reason is None and not max_abs <= allowed:
        bound = f"{allowed:.3g} ({tolerance:g} x {max(scale, floor):.3g})"
        reason = f"parity breach: max abs difference {max_abs:.3g} exceeds {bound}"
    return ParityReport(
        max_abs=max_abs, scale=scale, tolerance=tolerance, samples=samples, ok=reason is None, reason=reason
    )


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
