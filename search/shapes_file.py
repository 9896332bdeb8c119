"""The ONNX file of the network that a plan leads to, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from admm.groupmap import GroupMap
from admm.kept import Kept
from admm.plan import PruningPlan
from admm.remaining import remaining
from admm.shapes import kept_by_magnitude
from evaluators import check_parity, export_onnx
from evaluators.errors import EvaluationError
from evaluators.onnx_cut import Cut, cut_onnx
from evaluators.opset import DEFAULT_OPSET


def shapes_onnx(
    model: nn.Module,
    groups: GroupMap,
    plan: PruningPlan,
    example: torch.Tensor,
    align: int,
    dense: bytes | None = None,
    *,
    opset: int = DEFAULT_OPSET,
) -> bytes:
    """The ONNX file of the network a plan leads to, weights chosen by magnitude: for latency, not for accuracy.

    It is cut from `dense`, the file of `model`, where that is given and can be; else, seconds later, exported.
    Raises `ExportError`.
    """
    small, kept = kept_by_magnitude(model, groups, plan, align=align)
    content = None if dense is None else _cut(dense, model, small, kept, example)
    if content is not None:
        return content
    with TemporaryDirectory() as folder:
        return export_onnx(small, example, Path(folder) / "shapes.onnx", opset=opset).read_bytes()


def _cut(dense: bytes, model: nn.Module, small: nn.Module, kept: Kept, example: torch.Tensor) -> bytes | None:
    """What says the same as `small`; None where the exporter's names or shapes are in the way."""
    cuts = {
        name: Cut(
            axes=left.axes,
            filter_axis=left.filter_axis,
            living=None if left.living is None else left.living.cpu().numpy(),
            selects=left.selects,
        )
        for name, left in remaining(model, small, kept).items()
    }
    try:
        content = cut_onnx(dense, cuts)
        return content if check_parity(small.cpu(), content, [example.cpu()]).ok else None
    except EvaluationError:
        return None
