"""Figures as short as they may be said, and the parts of a measurement that the page shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from search.final_measure import Remeasured


def significant(value: Any, digits: int = 6) -> Any:
    """A number as short as it may be said; None for one that is not finite, anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, float):
        return value
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def each_significant(values: list[float | None] | None) -> list[Any] | None:
    return None if values is None else [significant(value, 4) for value in values]


def interval_of(measurement: Mapping[str, Any] | None, what: str) -> list[float | None] | None:
    ends = ("latency_low_ms", "latency_high_ms") if what == "latency" else ("speedup_low", "speedup_high")
    if measurement is None or any(end not in measurement for end in ends):
        return None
    return [significant(measurement[end]) for end in ends]


def again_of(again: Remeasured | None, name: str) -> dict[str, Any] | None:
    measured = None if again is None else again.networks.get(name)
    if measured is None:
        return None
    return {
        "latency": significant(measured.latency_ms),
        "interval": [significant(measured.latency_low_ms), significant(measured.latency_high_ms)],
        "speedup": significant(measured.speedup),
        "speedups": [significant(measured.speedup_low), significant(measured.speedup_high)],
    }
