"""How searches are judged: hypervolume over epochs, and the share of the gap to the best-known front that is closed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quality_lab import Played

from search.pareto import hypervolume

#: The reference's accuracy lies so much below the dense network's; its latency is the dense one's.
DROP = 0.03

#: (accuracy in [0, 1], latency relative to dense).
Measured = tuple[float, float]


def volume(points: Sequence[Measured], dense_accuracy: float) -> float:
    """Hypervolume in percentage points times the natural logarithm of the speed-up, beyond dense - 3 pp and 1x."""
    logs = [(100.0 * accuracy, math.log(latency)) for accuracy, latency in points]
    return hypervolume(logs, (100.0 * (dense_accuracy - DROP), 0.0))


def trace(played: Played, dense_accuracy: float) -> list[tuple[float, float]]:
    """(epochs spent, hypervolume then) after each finished trial."""
    points: list[Measured] = []
    found = []
    for point in played.points:
        points.append((point.accuracy, point.relative_latency))
        found.append((point.epochs, volume(points, dense_accuracy)))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One seed: ours against the best of the others."""

    best_baseline: str
    ours: float
    baseline: float
    """Hypervolume of the best baseline after all epochs."""
    closed: float | None
    """Share of the gap between the best baseline and the ceiling that ours closes; None without a gap."""
    ratio: float | None
    """Ours / best baseline; None where that is nothing."""
    passed_at: float | None
    """Share of all epochs at which ours reaches the best baseline's final value; None if it never does."""

    @property
    def below(self) -> bool:
        """Whether a baseline is above ours."""
        return self.ours < self.baseline

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, rounded."""
        return {
            "best_baseline": self.best_baseline,
            "ours": round(self.ours, 5),
            "baseline": round(self.baseline, 5),
            "closed": _rounded(self.closed),
            "ratio": _rounded(self.ratio),
            "passed_at": _rounded(self.passed_at),
        }


def compare(
    runs: Mapping[str, Played], *, ours: str, dense_accuracy: float, ceiling: float, epochs: float
) -> Comparison:
    """Judge one seed's runs, all of `epochs`."""
    traces = {name: trace(played, dense_accuracy) for name, played in runs.items()}
    final = {name: steps[-1][1] if steps else 0.0 for name, steps in traces.items()}
    best = max((name for name in final if name != ours), key=lambda name: final[name])
    gap = ceiling - final[best]
    reached = [spent for spent, value in traces[ours] if value >= final[best]]
    return Comparison(
        best_baseline=best,
        ours=final[ours],
        baseline=final[best],
        closed=(final[ours] - final[best]) / gap if gap > 0.0 else None,
        ratio=final[ours] / final[best] if final[best] > 0.0 else None,
        passed_at=reached[0] / epochs if reached else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All seeds together, by medians."""

    closed: float
    never_below: bool
    ratio: float | None
    passed_at: float | None
    """None where ours passes in fewer than half of the seeds."""

    @classmethod
    def of(cls, seeds: Sequence[Comparison]) -> Verdict:
        """A seed without a gap counts as closed where ours is not below, and as nothing closed where it is."""
        closed = [c.closed if c.closed is not None else float(not c.below) for c in seeds]
        ratios = [c.ratio for c in seeds if c.ratio is not None]
        passed = statistics.median(c.passed_at if c.passed_at is not None else math.inf for c in seeds)
        return cls(
            closed=statistics.median(closed),
            never_below=not any(c.below for c in seeds),
            ratio=statistics.median(ratios) if ratios else None,
            passed_at=passed if math.isfinite(passed) else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, rounded."""
        return {
            "closed": _rounded(self.closed),
            "never_below": self.never_below,
            "ratio": _rounded(self.ratio),
            "passed_at": _rounded(self.passed_at),
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
