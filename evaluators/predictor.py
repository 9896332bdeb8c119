"""Latency of a network from its shapes: a line through the work of a few measured networks.

Relative latency is close to linear in the work counted in whole blocks of channels (`evaluators.work`), and five or six
measured networks calibrate it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from evaluators.blocks import nonnegative_fit
from evaluators.errors import EvaluationError
from evaluators.work import Blocks, Work, module_work, onnx_work, rounding

#: With fewer networks than this a fit uses MACs alone.
_FEW = 6
#: What a fit may use: fields and properties of `Work`. The first always counts.
FEATURES: tuple[str, ...] = ("macs", "streamed", "elements")


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyPredictor:
    """Relative latency (pruned / dense, so 1 / speed-up) as a line in the work; coefficients are >= 0.

    Made by `fit`; holds for the device, batch and family of networks it was fitted on.
    """

    block: int
    depthwise: int
    constant: float
    """Relative latency of no work at all."""
    coefficients: Mapping[str, float]
    """Relative latency for each unit of work; only the features that count (`FEATURES`)."""
    mean_error: float
    """Mean relative error, each network predicted by a fit to the others (leave-one-out): cautious, since the
    smallest and the largest are then outside what was fitted.
    """
    max_error: float
    """The largest of these errors."""
    residual: float
    """Mean relative error of the fit on its own networks: optimistic."""
    count: int
    """Networks fitted to."""
    stamp: Mapping[str, Any] = field(default_factory=dict)
    """Where the latencies were measured."""

    @classmethod
    def fit(
        cls,
        measured: Sequence[tuple[bytes | Path | Work, float]],
        *,
        block: int,
        depthwise: int | None = None,
        stamp: Mapping[str, Any] | None = None,
    ) -> LatencyPredictor:
        """Fit to at least three networks and their relative latencies; the dense one should be among them.

        Least squares in relative errors, coefficients >= 0. Fewer than six networks fit MACs alone; six and more the
        other features too, of which those that do not help come out as zero. Networks below half a million weights
        should be among them if small ones are to be predicted. Raises `EvaluationError`.
        """
        blocks = rounding(block, depthwise)
        if len(measured) < 3:
            raise EvaluationError(f"a predictor is fitted to at least 3 networks, got {len(measured)}: measure more")
        works = [_work_of(network, blocks) for network, _ in measured]
        times = np.array([float(latency) for _, latency in measured])
        if not (np.isfinite(times).all() and (times > 0).all()):
            odd = next(t for t in times if not (math.isfinite(t) and t > 0))
            raise EvaluationError(f"a relative latency must be a positive finite number, got {odd:g}")
        if max(w.macs for w in works) <= min(w.macs for w in works):
            raise EvaluationError("the networks measured all do the same work: measure some of different widths")
        names = FEATURES if len(measured) >= _FEW else FEATURES[:1]
        errors = _left_out_errors(works, times, names)
        constant, *slopes = _fit(works, times, names)
        return cls(
            block=block,
            depthwise=blocks.depthwise,
            constant=constant,
            coefficients={name: slope for name, slope in zip(names, slopes, strict=True) if slope > 0.0},
            mean_error=float(errors.mean()),
            max_error=float(errors.max()),
            residual=float(
                np.mean(
                    [abs(_predicted(w, constant, names, slopes) / t - 1.0) for w, t in zip(works, times, strict=True)]
                )
            ),
            count=len(measured),
            stamp=dict(stamp or {}),
        )

    def predict(self, model: bytes | Path) -> float:
        """Relative latency of an ONNX model, without running it."""
        return self.predict_work(onnx_work(model, self.block, depthwise=self.depthwise))

    def predict_module(self, module: nn.Module, example_input: Tensor) -> float:
        """Relative latency of a module's export, without exporting it."""
        return self.predict_work(module_work(module, example_input, self.block, depthwise=self.depthwise))

    def predict_work(self, work: Work) -> float:
        """Relative latency from work counted with this predictor's blocks."""
        return _predicted(work, self.constant, self.coefficients, self.coefficients.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self), "coefficients": dict(self.coefficients), "stamp": dict(self.stamp)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LatencyPredictor:
        """Read what `to_dict` wrote; `ValueError` names a missing or unknown key."""
        if odd := sorted({str(key) for key in content} ^ {f.name for f in fields(cls)}):
            raise ValueError(f"not a latency predictor: {odd[0]!r} is missing or unknown")
        coefficients = {str(name): float(value) for name, value in content["coefficients"].items()}
        if unknown := sorted(set(coefficients) - set(FEATURES)):
            raise ValueError(f"not a latency predictor of this version: unknown feature {unknown[0]!r}")
        return cls(**{**content, "coefficients": coefficients, "stamp": dict(content["stamp"])})


def _work_of(network: bytes | Path | Work, blocks: Blocks) -> Work:
    return network if isinstance(network, Work) else onnx_work(network, blocks.block, depthwise=blocks.depthwise)


def _fit(works: Sequence[Work], times: np.ndarray, names: Sequence[str]) -> list[float]:
    """[constant, a coefficient for each name], non-negative, least squares of relative errors."""
    features = np.array([[1.0, *(getattr(work, name) for name in names)] for work in works])
    scale = features.max(axis=0)
    scale[scale == 0] = 1.0
    solution = nonnegative_fit(features / scale / times[:, None], np.ones_like(times))
    return [float(value) for value in solution / scale]


def _left_out_errors(works: Sequence[Work], times: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Relative error of each network under a fit to the others."""
    errors = []
    for i, work in enumerate(works):
        rest = [*works[:i], *works[i + 1 :]]
        constant, *slopes = _fit(rest, np.delete(times, i), names)
        errors.append(abs(_predicted(work, constant, names, slopes) / times[i] - 1.0))
    return np.array(errors)


def _predicted(work: Work, constant: float, names: Iterable[str], slopes: Iterable[float]) -> float:
    return constant + sum(slope * float(getattr(work, name)) for name, slope in zip(names, slopes, strict=True))
