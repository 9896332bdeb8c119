"""What remains of each tensor of the dense network in the smaller one, for whoever cuts another form of it alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from admm.compact import SelectedInput
from admm.kept import Kept
from admm.slicing import channel_axis, filter_axis, input_axis, width_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Remaining:
    """One tensor: what of it is left."""

    axes: Mapping[int, list[int]] = field(default_factory=dict)
    """Axis -> ascending dense indices that remain; axes that keep all are left out."""
    filter_axis: int = 0
    """The axis that counts what a bias has one value for."""
    living: Tensor | None = None
    """Bool, in the small tensor's shape: False where it is zero; None where nothing is."""
    selects: tuple[int, list[int]] | None = None
    """Of a layer that reads some of what arrives: its channel axis, from the end, and the positions it reads."""


def remaining(dense: nn.Module, small: nn.Module, kept: Kept) -> dict[str, Remaining]:
    """By the dense network's tensor names, those that `small` = `compact(dense, kept)` holds less of, or with zeros."""
    left: dict[str, Remaining] = {}
    for name, module in dense.named_modules():
        weight = module._parameters.get("weight")
        if weight is None:
            continue
        sides, inner = kept.get(name, {}), small.get_submodule(name)
        selects: tuple[int, list[int]] | None = None
        if isinstance(inner, SelectedInput):
            selects = (input_axis(module), inner.index.tolist())
            inner = inner.layer
        axes: dict[int, list[int]] = {}
        rows = filter_axis(module) if weight.ndim > 1 else 0
        if "out" in sides:
            axes[rows] = sides["out"]
            for key in (*module._parameters, *module._buffers):
                value = getattr(module, key)
                if key != "weight" and value is not None and value.ndim == 1:
                    left[f"{name}.{key}"] = Remaining(axes={0: sides["out"]})
        if "in" in sides or "select" in sides:
            chosen = set(sides.get("in", range(width_of(module, "in"))))
            axes[channel_axis(module)] = sorted(chosen & set(sides.get("select", chosen)))
        left_over = inner._parameters["weight"]
        assert left_over is not None
        alive = left_over.detach() != 0
        living = None if bool(alive.all()) else alive
        if axes or living is not None:
            left[f"{name}.weight"] = Remaining(axes=axes, filter_axis=rows, living=living, selects=selects)
    return left
