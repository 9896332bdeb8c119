"""What a user asks for when nobody sets a layer's sparsity by hand: one number, and what may be pruned to reach it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from admm.cost import CostTable, LayerSize, MacCost, WeightCost, layer_shapes
from admm.errors import PlanError
from admm.messages import nearest
from admm.plan import STRUCTURES

Layers = tuple[str, ...] | Callable[[str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One bound on the whole network; the sparsity of every layer follows from it.

    Exactly one of `compression_x`, `mac_fraction`, or `cost` with `at_most`. Raises `PlanError` for none or several,
    and for a number outside its bounds.
    """

    compression_x: float | None = None
    """Dense prunable weights / kept non-zero weights, at least 1; layers that are left alone count in both."""
    mac_fraction: float | None = None
    """Kept MACs / dense MACs, in (0, 1]; ideal ones, see `MacCost`."""
    cost: CostTable | None = None
    """A table of one's own; goes with `at_most`."""
    at_most: float | None = None
    """The most that the network may cost by `cost`."""
    structures: tuple[str, ...] = ("unstructured",)
    """What may be removed, any of filter, channel, shape, unstructured."""
    layers: Layers | None = None
    """Names of the layers that may lose weights of their own, or a function of the name; None: all prunable ones. A
    layer left out still loses the input channels whose filters go."""
    min_keep: int = 1
    """Units of each structure that stay in every layer (all of them where it has no more): a clamp."""

    def __post_init__(self) -> None:
        given = [n for n in ("compression_x", "mac_fraction", "cost") if getattr(self, n) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise PlanError(f"a target is one of compression_x, mac_fraction, or cost with at_most: got {got}")
        if (self.cost is None) != (self.at_most is None):
            raise PlanError("cost and at_most belong together: the table, and the most the network may cost by it")
        _require(self.compression_x, "compression_x", "at least 1", lambda x: x >= 1.0)
        _require(self.mac_fraction, "mac_fraction", "in (0, 1]", lambda x: 0.0 < x <= 1.0)
        _require(self.at_most, "at_most", "at least 0", lambda x: x >= 0.0)
        if isinstance(self.structures, str) or not self.structures:
            raise PlanError(f"structures is a tuple of {', '.join(STRUCTURES)}, got {self.structures!r}")
        unknown = [s for s in self.structures if s not in STRUCTURES]
        if unknown:
            raise PlanError(f"unknown structure {unknown[0]!r}: use some of {', '.join(STRUCTURES)}")
        object.__setattr__(self, "structures", tuple(s for s in STRUCTURES if s in self.structures))
        if isinstance(self.layers, str):
            raise PlanError(f"layers is a tuple of layer names or a function of one, got {self.layers!r}")
        if self.layers is not None and not callable(self.layers):
            object.__setattr__(self, "layers", tuple(self.layers))
        if isinstance(self.min_keep, bool) or not isinstance(self.min_keep, int) or self.min_keep < 1:
            raise PlanError(
                f"min_keep must be a whole number of at least 1, got {self.min_keep!r}: no layer may be empty"
            )

    @property
    def asked(self) -> str:
        """The bound in words, for messages."""
        if self.cost is not None:
            return f"at_most={self.at_most:g} by {type(self.cost).__name__}"
        name = "compression_x" if self.compression_x is not None else "mac_fraction"
        return f"{name}={getattr(self, name):g}"

    def allows(self, layer: str) -> bool:
        """Whether the layer may lose weights of its own."""
        if self.layers is None:
            return True
        return self.layers(layer) if callable(self.layers) else layer in self.layers

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; raises `PlanError` where a table or a function is part of the target."""
        if self.cost is not None or callable(self.layers):
            what = "its cost table" if self.cost is not None else "its function of layer names"
            raise PlanError(f"this target cannot be written as JSON because of {what}: use a number and layer names")
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key in ("compression_x", "mac_fraction", "structures", "layers", "min_keep")
            if (value := getattr(self, key)) is not None
        }

    @classmethod
    def from_dict(cls, content: Any) -> Target:
        """Read what `to_dict` wrote, or a user wrote by hand; unknown keys are errors."""
        if not isinstance(content, Mapping):
            raise PlanError(f"a target maps names to values, got {type(content).__name__}")
        known = ("compression_x", "mac_fraction", "structures", "layers", "min_keep")
        for key in content:
            if key not in known:
                raise PlanError(f"a target has no {key!r}: {nearest(key, known)}")
        values = dict(content)
        for key in ("structures", "layers"):
            value = values.get(key)
            if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
                values[key] = tuple(value)
            elif value is not None:
                raise PlanError(f"{key} of a target is a list of names, got {value!r}")
        if values.get("structures", ()) is None:
            del values["structures"]
        return cls(**values)

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Bound:
    """A target made concrete for one network: the table, the most it may come to, and what the dense network does."""

    table: CostTable
    most: float
    dense: float
    target: Target

    @classmethod
    def of(cls, target: Target, model: nn.Module, positions: Mapping[str, int] | None = None) -> Bound:
        """`positions` (from `output_positions`) is needed for `mac_fraction` alone. Raises `PlanError`."""
        table = _table(target, positions)
        sizes = {name: shape.size for name, shape in layer_shapes(model).items()}
        if not sizes:
            raise PlanError("the network has no prunable layer: convolutions and Linear layers are pruned")
        unknown = [n for n in target.layers if n not in sizes] if isinstance(target.layers, tuple) else []
        if unknown:
            raise PlanError(f"the network has no prunable layer {unknown[0]!r}: {nearest(unknown[0], sizes)}")
        dense = sum(table.cost(name, size) for name, size in sizes.items())
        if target.at_most is not None:
            return cls(table, target.at_most, dense, target)
        if target.compression_x is not None:
            # the tolerance takes back the rounding of 71.2 and the like, never a whole weight
            return cls(table, math.floor(dense / target.compression_x * (1.0 + 1e-12)), dense, target)
        assert target.mac_fraction is not None
        return cls(table, dense * target.mac_fraction, dense, target)

    def at(self, share: float) -> float:
        """The bound on the way from the dense network to the target: dense^(1 - share) x bound^share."""
        if share >= 1.0 or self.most <= 0.0 or self.most >= self.dense:
            return self.most
        return float(self.dense ** (1.0 - share) * self.most**share)

    def unreachable(self, least: Mapping[str, LayerSize], bound: float) -> PlanError:
        """The error for a bound below what the smallest sizes cost: names the furthest that can be asked for."""
        costs = {name: self.table.cost(name, size) for name, size in least.items()}
        total, heaviest = sum(costs.values()), max(costs, key=lambda name: costs[name])
        reach = f"at_most={total:g}"
        if self.target.compression_x is not None:
            reach = f"compression_x={math.floor(self.dense / total * 100) / 100:g}"
        elif self.target.mac_fraction is not None:
            reach = f"mac_fraction={math.ceil(total / self.dense * 1e4) / 1e4:g}"
        asked = self.target.asked if bound == self.most else f"a bound of {bound:g}"
        return PlanError(
            f"{asked} is out of reach: with {', '.join(self.target.structures)} in the layers allowed "
            f"{reach} is the furthest, {heaviest!r} alone then costs {costs[heaviest]:g} of {total:g}; allow more "
            "layers or structures, or ask for less"
        )


def _table(target: Target, positions: Mapping[str, int] | None) -> CostTable:
    if target.cost is not None:
        return target.cost
    if target.compression_x is not None:
        return WeightCost()
    if positions is None:
        raise PlanError(
            f"{target.asked} needs to know how often a weight is used: give positions=output_positions(...)"
        )
    return MacCost(positions)


def _require(value: float | None, name: str, bound: str, holds: Callable[[float], bool]) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not holds(value):
        raise PlanError(f"{name} must be a number {bound}, got {value!r}")
