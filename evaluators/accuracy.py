"""Accuracy of a model as shipped: a predictor, batches and a per-sample metric give a `Score`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from evaluators.errors import RigError, one_line
from evaluators.modes import evaluating, module_output
from evaluators.ort_session import graph_dtype, open_session

Predict = Callable[[Tensor], Tensor]
Metric = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Mean of a per-sample metric, its standard error (0 for one sample) and the number of samples."""

    value: float
    stderr: float
    samples: int


class OnnxPredictor:
    """Calls an ONNX model with one input on tensors [batch, ...] and gives its first output, on the CPU.

    A graph whose batch is fixed is fed in pieces of that size, the last one filled up and cut again. Raises
    `RigError` for a model that cannot be loaded or run.
    """

    def __init__(self, model: bytes | Path, *, threads: int = 1) -> None:
        self._session = open_session(model, threads=threads)
        nodes = self._session.get_inputs()
        if len(nodes) != 1:
            raise RigError(f"the model has {len(nodes)} inputs, one is needed: {[node.name for node in nodes]}")
        self._name: str = nodes[0].name
        self._dtype = graph_dtype(nodes[0])
        first = nodes[0].shape[0] if nodes[0].shape else None
        #: Batch size the graph insists on; `None` where it takes any.
        self.fixed_batch: int | None = first if isinstance(first, int) else None

    def __call__(self, batch: Tensor) -> Tensor:
        if len(batch) == 0:
            raise ValueError("an empty batch cannot be run through a model")
        array = np.ascontiguousarray(batch.detach().cpu().numpy(), dtype=self._dtype)
        if self.fixed_batch is None or self.fixed_batch == len(array):
            return torch.from_numpy(self._run(array))
        size = self.fixed_batch
        missing = -len(array) % size
        padded = np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
        pieces = [self._run(padded[i : i + size]) for i in range(0, len(padded), size)]
        return torch.from_numpy(np.concatenate(pieces)[: len(array)])

    def _run(self, array: np.ndarray) -> np.ndarray:
        try:
            output = self._session.run(None, {self._name: array})[0]
        except Exception as error:
            raise RigError(f"ONNX Runtime cannot run the model: {one_line(error)}") from error
        return np.asarray(output)


def module_predictor(module: nn.Module) -> Predict:
    """Predictions of a module in evaluation mode without gradients; its modes are put back after a call."""

    def predict(batch: Tensor) -> Tensor:
        with evaluating(module):
            return module_output(module, batch)

    return predict


def evaluate(predict: Predict, batches: Iterable[tuple[Tensor, Tensor]], metric: Metric) -> Score:
    """Score `predict` over `batches` of (inputs [batch, ...], targets [batch, ...]).

    `metric(outputs, targets)` gives one value per sample, shape [batch]. Raises `ValueError` for no data at
    all, a metric of another shape, or one that is not finite.
    """
    values: list[Tensor] = []
    for number, (inputs, targets) in enumerate(batches):
        scored = metric(predict(inputs), targets).detach().cpu().to(torch.float64)
        if scored.shape != (len(inputs),):
            raise ValueError(
                f"the metric must give one value per sample: shape [{len(inputs)}], got {list(scored.shape)}"
            )
        if not torch.isfinite(scored).all():
            raise ValueError(f"the metric is not finite in batch {number}: the model's outputs are not usable")
        values.append(scored)
    scores = torch.cat(values) if values else torch.empty(0)
    samples = len(scores)
    if samples == 0:
        raise ValueError("no data to evaluate on: the batches are empty")
    stderr = float(scores.std(correction=1)) / math.sqrt(samples) if samples > 1 else 0.0
    return Score(value=float(scores.mean()), stderr=stderr, samples=samples)


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """1.0 where the largest of outputs [batch, classes] is at targets [batch], else 0.0; NaN is wrong."""
    right = outputs.argmax(dim=1) == targets.to(outputs.device)
    return (right & ~outputs.isnan().any(dim=1)).to(torch.float32)
