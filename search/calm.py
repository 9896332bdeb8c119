"""Measuring when the machine is calm: what a run knows of its dense network tells when it is not.

On a core whose neighbour works, a network that takes microseconds loses a quarter of its speed-up, and no interval
of one measurement tells so. The dense network beside it does: it reads slower than it has been seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evaluators import Measurement
from search.result import Baseline, TrialResult

#: By so much slower than ever seen, the dense network tells of other work on the machine.
DISTURBED = 0.1
#: Measurements, with a pause between them, until the calmest of them has to do.
LOOKS, FEW = 6, 2
PAUSE_S = 0.5

_SAME = ("rig", "device", "runtime", "provider", "threads", "batch", "clock")


@dataclass(slots=True, kw_only=True)
class Calm:
    """What the dense network takes where nothing disturbs it, in ms, by rig, device, runtime, threads and batch."""

    known: Mapping[tuple[Any, ...], float]
    looks: int = LOOKS
    """Fewer once the machine was busy all the time: it is asked each time, and not waited for."""

    @classmethod
    def of(cls, measurements: Iterable[Mapping[str, Any]]) -> Calm:
        """The least seen in these measurements (`Measurement.to_dict()`); what cannot be read is passed over."""
        known: dict[tuple[Any, ...], float] = {}
        for measured in measurements:
            try:
                key = tuple(measured["stamp"][name] for name in _SAME)
                latency = float(measured["dense_latency_ms"])
            except (KeyError, TypeError, ValueError):  # by an earlier version, or made by hand
                continue
            known[key] = min(latency, known.get(key, latency))
        return cls(known=known)

    @classmethod
    def of_run(cls, baseline: Baseline, results: Mapping[int, TrialResult], rig: str) -> Calm:
        """What a run has seen on this rig."""
        all_known = (baseline.measurements, *(result.measurements for result in results.values()))
        return cls.of(known[rig] for known in all_known if rig in known)

    def disturbed(self, measured: Measurement) -> bool:
        """Whether the dense network read slower in it than it is; False where nothing is known of this device."""
        least = self.known.get(self._key(measured))
        return least is not None and measured.dense_latency_ms > least * (1.0 + DISTURBED)

    def remark(self, measured: Measurement) -> str:
        """A disturbed measurement, in one line that says what to do."""
        least = self.known[self._key(measured)]
        return (
            f"the machine was busy: beside it the dense network took {measured.dense_latency_ms:.4g} ms, and has taken "
            f"{least:.4g} ms: a small network loses more by that than a large one: measure again when it is idle"
        )

    @staticmethod
    def _key(measured: Measurement) -> tuple[Any, ...]:
        return tuple(getattr(measured.stamp, name) for name in _SAME)

    def measured(
        self, measure: Callable[[], Measurement], *, sleep: Callable[[float], None] = time.sleep
    ) -> Measurement:
        """The first of up to `looks` measurements that nothing disturbed, else the calmest of them.

        Whether a figure pleases is not looked at: only the dense network's own decides.
        """
        taken = [measure()]
        while self.disturbed(taken[-1]) and len(taken) < self.looks:
            sleep(PAUSE_S)
            taken.append(measure())
        calm = not self.disturbed(taken[-1])
        self.looks = LOOKS if calm else FEW
        return taken[-1] if calm else min(taken, key=lambda m: m.dense_latency_ms)
