"""What to prune: a `PruningPlan` names, layer by layer, the sparsity of each structure."""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from admm.errors import PlanError

#: Canonical order of the structures: what a coarser one removes, a finer one no longer sees.
STRUCTURES: tuple[str, ...] = ("filter", "channel", "shape", "unstructured")
#: The pattern n:m with m = 4 and what its sparsities mean; hardware knows no other, so it is none to search over.
N_OF_M = "n:m"
PATTERNS: dict[float, str] = {0.25: "3:4", 0.5: "2:4", 0.75: "1:4"}

#: Sparsities are stored with this many decimals, so that a plan survives JSON and has one digest.
DECIMALS = 6

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120
#: A value from an untrusted file, short enough for a message of one line.
_shown = _REPR.repr


@dataclass(frozen=True, slots=True)
class LayerPlan(Mapping[str, float]):
    """One layer's sparsity (fraction removed, in [0, 1)) for each structure: `{"filter": 0.5, "shape": 0.6}`.

    Structures are kept in canonical order, rounded to six decimals; zeros are dropped, so that two plans that ask
    for the same thing are equal. `{"n:m": 0.5}` is 2:4 (0.25: 3:4, 0.75: 1:4) and goes with `filter` only. Raises
    `PlanError` for an unknown structure, a sparsity outside [0, 1), or what cannot be mixed.
    """

    sparsity: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.sparsity, Mapping):
            raise PlanError(f"a layer's plan maps structure to sparsity, got {_shown(self.sparsity)}")
        clean: dict[str, float] = {}
        every = (*STRUCTURES, N_OF_M)
        unknown = [name for name in self.sparsity if name not in every]
        if unknown:
            raise PlanError(f"unknown structure {_shown(unknown[0])}: use one of {', '.join(every)}")
        for structure in every:
            value = self.sparsity.get(structure, 0.0)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise PlanError(f"sparsity must be a number in [0, 1), got {_shown(value)} for {structure!r}")
            # compared before it is a float: a whole number may be too large for one
            rounded = round(float(value), DECIMALS) if -1 <= value <= 1 else math.nan
            if not 0.0 <= rounded < 1.0:
                raise PlanError(
                    f"sparsity must lie in [0, 1), got {_shown(value)} for {structure!r}: to drop a layer, exclude it"
                )
            if rounded > 0.0:
                clean[structure] = rounded
        if N_OF_M in clean:
            _check_pattern(clean)
        object.__setattr__(self, "sparsity", MappingProxyType(clean))

    def __getitem__(self, structure: str) -> float:
        return self.sparsity[structure]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sparsity)

    def __len__(self) -> int:
        return len(self.sparsity)

    def __hash__(self) -> int:
        return hash(tuple(self.sparsity.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self.sparsity) == dict(other)

    def __reduce__(self) -> tuple[Any, ...]:
        return LayerPlan, (dict(self.sparsity),)


@dataclass(frozen=True, slots=True)
class PruningPlan(Mapping[str, LayerPlan]):
    """The layer plans of a network, keyed by module name in sorted order; frozen, JSON in and out.

    The filter sparsity of a coupled group stands at the group's name (its first member). Layers with nothing to
    remove are dropped. Raises `PlanError` naming the layer and the bound.
    """

    layers: Mapping[str, LayerPlan | Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Mapping):
            raise PlanError(f"a plan maps layer names to sparsities, got {type(self.layers).__name__}")
        clean: dict[str, LayerPlan] = {}
        for name in sorted(self.layers, key=str):
            if not isinstance(name, str):
                raise PlanError(f"layer names are strings, got {_shown(name)}")
            try:
                layer = LayerPlan(self.layers[name])
            except PlanError as error:
                raise PlanError(f"layer {_shown(name)}: {error}") from None
            if len(layer):
                clean[name] = layer
        object.__setattr__(self, "layers", MappingProxyType(clean))

    def __getitem__(self, name: str) -> LayerPlan:
        layer = self.layers[name]
        assert isinstance(layer, LayerPlan)
        return layer

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PruningPlan) and self.to_dict() == other.to_dict()

    def __reduce__(self) -> tuple[Any, ...]:
        return PruningPlan, (self.to_dict(),)

    def sparsity(self, name: str, structure: str) -> float:
        """The sparsity asked of one structure in one layer; 0.0 where the plan says nothing."""
        return self[name].get(structure, 0.0) if name in self else 0.0

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Plain dictionaries, in canonical order."""
        return {name: dict(self[name]) for name in self}

    def to_json(self) -> str:
        """Canonical JSON: the same plan always gives the same text."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Read a plan; also accepts a `plan.json` of a run or export, whose plan stands under `requested`."""
        try:
            content = json.loads(text, object_pairs_hook=_without_repeats)
        except PlanError:
            raise
        except (ValueError, RecursionError) as error:
            raise PlanError(f"not JSON: {error}") from None
        if not isinstance(content, dict):
            raise PlanError(f"a plan maps layer names to sparsities, got {type(content).__name__}")
        if "requested" in content and isinstance(content["requested"], dict) and "kept" in content:
            content = content["requested"]
        return cls(content)

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def _check_pattern(layer: Mapping[str, float]) -> None:
    """Raises `PlanError` for a pattern that hardware does not know, or beside a structure that would break it."""
    if layer[N_OF_M] not in PATTERNS:
        known = ", ".join(f"{sparsity} ({name})" for sparsity, name in PATTERNS.items())
        raise PlanError(f"sparsity of 'n:m' must be one of {known}, got {layer[N_OF_M]}")
    other = [structure for structure in layer if structure not in ("filter", N_OF_M)]
    if other:
        raise PlanError(f"'n:m' goes with 'filter' only, not with {other[0]!r}: give the layer one of the two")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; `json` itself would silently believe the last of two layers of one name."""
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise PlanError(f"{_shown(name)} stands twice in the plan: keep one of them")
        content[name] = value
    return content
