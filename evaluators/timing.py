"""The only timing loop: two callables in alternating blocks, and the paired statistics of their durations."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from evaluators.clock import Clock
from evaluators.errors import RigError
from evaluators.measurement import DeviceStamp, Measurement

_NS_PER_MS = 1e6
_MOST_CALLS = 1_000_000
#: The quantile of a block's repeats that ratios are made of.
QUIET = 0.25

Work = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingSettings:
    """The protocol's numbers; the defaults are the design's. Raises `ValueError` naming the bound."""

    warmups: int = 3
    """Calls before anything is timed; more, up to `max_warmups`, while each is still clearly faster."""
    max_warmups: int = 5
    min_block_ns: int = 4_000_000
    """Timed calls of one block last at least this long together."""
    min_repeat_ns: int = 200_000
    """Shorter calls are clocked several at a time, so that reading the clocks does not count."""
    min_pairs: int = 9
    max_pairs: int = 41
    bound: float = 0.03
    """Stop once both ends of the speed-up's interval lie within this fraction of it."""
    confidence: float = 0.95
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.warmups <= self.max_warmups:
            raise ValueError(f"warm-ups must satisfy 1 <= {self.warmups} <= {self.max_warmups}")
        if not 1 <= self.min_pairs <= self.max_pairs:
            raise ValueError(f"pairs must satisfy 1 <= {self.min_pairs} <= {self.max_pairs}")
        if self.min_block_ns < 1 or self.min_repeat_ns < 1 or self.resamples < 1:
            raise ValueError("min_block_ns, min_repeat_ns and resamples must be at least 1")
        if not self.bound > 0 or not 0 < self.confidence < 1:
            raise ValueError(f"bound must be > 0 and confidence in (0, 1), got {self.bound}, {self.confidence}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTiming:
    """Durations per call in nanoseconds: one value a block, block i of both sides being pair i."""

    candidate_ns: tuple[float, ...]
    reference_ns: tuple[float, ...]
    """Medians of a block's repeats: what a call takes."""
    candidate_quiet_ns: tuple[float, ...]
    reference_quiet_ns: tuple[float, ...]
    """Lower quartiles of a block's repeats: what the ratios are made of, since others on the machine only ever add
    time. Idle they are the medians' ratios; beside a trainer on the same core they move much less."""
    candidate_wall_ns: tuple[float, ...]
    """Wall time of each repeat of the candidate during which the thread never waited for a core."""
    rejected: int
    converged: bool
    seconds: float
    settings: TimingSettings

    def measurement(self, stamp: DeviceStamp) -> Measurement:
        """The figures of this run in milliseconds, with the stamp of where it ran."""
        settings = self.settings
        low, high = bootstrap_median(self.candidate_ns, settings)
        log_ratios = _log_ratios(self.reference_quiet_ns, self.candidate_quiet_ns)
        log_low, log_high = bootstrap_median(log_ratios, settings)
        wall = np.asarray(self.candidate_wall_ns) / _NS_PER_MS
        return Measurement(
            latency_ms=float(np.median(self.candidate_ns)) / _NS_PER_MS,
            latency_low_ms=low / _NS_PER_MS,
            latency_high_ms=high / _NS_PER_MS,
            dense_latency_ms=float(np.median(self.reference_ns)) / _NS_PER_MS,
            speedup=math.exp(float(np.median(log_ratios))),
            speedup_low=math.exp(log_low),
            speedup_high=math.exp(log_high),
            wall_p50_ms=float(np.quantile(wall, 0.5)) if wall.size else None,
            wall_p95_ms=float(np.quantile(wall, 0.95)) if wall.size else None,
            wall_min_ms=float(wall.min()) if wall.size else None,
            pairs=len(self.candidate_ns),
            rejected=self.rejected,
            converged=self.converged,
            seconds=self.seconds,
            stamp=stamp,
        )


def time_pair(candidate: Work, reference: Work, *, settings: TimingSettings, clock: Clock) -> PairedTiming:
    """Time `candidate` against `reference` in ABBA order (reference, candidate, candidate, reference, ...).

    Each block drops its first call; a block's value is the median of its repeats on the deciding clock, for a ratio
    their lower quartile. Drift that is slow against a pair cancels in the pair's ratio, and ABBA cancels what is
    linear between pairs.
    Raises `RigError` if the deciding clock does not move; whatever the callables raise passes through.
    """
    started = clock.wall()
    first, second = _Side(reference, settings, clock), _Side(candidate, settings, clock)
    converged = False
    for pair in range(settings.max_pairs):
        for side in (first, second) if pair % 2 == 0 else (second, first):
            side.run_block()
        converged = _within_bound(_log_ratios(first.quiet_ns, second.quiet_ns), settings)
        if pair + 1 >= settings.min_pairs and converged:
            break
    return PairedTiming(
        candidate_ns=tuple(second.blocks_ns),
        reference_ns=tuple(first.blocks_ns),
        candidate_quiet_ns=tuple(second.quiet_ns),
        reference_quiet_ns=tuple(first.quiet_ns),
        candidate_wall_ns=tuple(second.wall_ns),
        rejected=second.rejected,
        converged=converged,
        seconds=(clock.wall() - started) / 1e9,
        settings=settings,
    )


def bootstrap_median(values: Sequence[float], settings: TimingSettings) -> tuple[float, float]:
    """Percentile bootstrap interval of the median (Efron and Tibshirani 1993, section 13.3), seeded."""
    sample = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(settings.seed)
    draws = rng.integers(0, sample.size, size=(settings.resamples, sample.size))
    medians = np.median(sample[draws], axis=1)
    tail = (1.0 - settings.confidence) / 2.0
    low, high = np.quantile(medians, (tail, 1.0 - tail))
    return float(low), float(high)


@dataclass(slots=True)
class _Side:
    """One of the two callables: warmed up and calibrated on construction, then run block by block."""

    work: Work
    settings: TimingSettings
    clock: Clock
    calls: int = 1
    repeats: int = 1
    blocks_ns: list[float] = field(default_factory=list)
    quiet_ns: list[float] = field(default_factory=list)
    wall_ns: list[float] = field(default_factory=list)
    rejected: int = 0

    def __post_init__(self) -> None:
        with _collector_off():
            self._warm_up()
            self._calibrate()

    def _warm_up(self) -> None:
        previous = math.inf
        for done in range(self.settings.max_warmups):
            elapsed = self._timed(1)
            if done + 1 >= self.settings.warmups and elapsed >= 0.9 * previous:
                break
            previous = elapsed

    def _calibrate(self) -> None:
        """Choose calls per repeat and repeats per block from a run that lasted a whole block."""
        calls = 1
        while (elapsed := self._timed(calls)) < self.settings.min_block_ns:
            if calls >= _MOST_CALLS:
                raise RigError(f"the deciding clock moved {elapsed} ns over {calls} calls: it cannot time this model")
            wanted = calls * self.settings.min_block_ns / elapsed if elapsed else math.inf
            calls = min(max(calls + 1, math.ceil(min(wanted, 10 * calls))), _MOST_CALLS)
        per_call = elapsed / calls
        self.calls = min(max(1, math.ceil(self.settings.min_repeat_ns / per_call)), calls)
        self.repeats = math.ceil(calls / self.calls)

    def _timed(self, calls: int) -> int:
        begin = self.clock.deciding()
        for _ in range(calls):
            self.work()
        return self.clock.deciding() - begin

    def run_block(self) -> None:
        clock, work, calls = self.clock, self.work, self.calls
        deciding: list[float] = []
        with _collector_off():
            work()  # the other side's block left its own data in the caches
            delay = clock.run_queue_delay()
            for _ in range(self.repeats):
                wall_begin = clock.wall()
                begin = clock.deciding()
                for _ in range(calls):
                    work()
                end = clock.deciding()
                wall_end = clock.wall()
                delay, before = clock.run_queue_delay(), delay
                deciding.append((end - begin) / calls)
                if delay == before:
                    self.wall_ns.append((wall_end - wall_begin) / calls)
                else:
                    self.rejected += 1
        value = float(np.median(deciding))
        quiet = float(np.quantile(deciding, QUIET))
        if quiet <= 0:
            raise RigError("the deciding clock stood still during a block: it cannot time this model")
        self.blocks_ns.append(value)
        self.quiet_ns.append(quiet)


def _log_ratios(reference: Sequence[float], candidate: Sequence[float]) -> list[float]:
    return [math.log(r / c) for r, c in zip(reference, candidate, strict=True)]


def _within_bound(log_ratios: Sequence[float], settings: TimingSettings) -> bool:
    if len(log_ratios) < settings.min_pairs:
        return False
    centre = float(np.median(log_ratios))
    low, high = bootstrap_median(log_ratios, settings)
    return math.expm1(high - centre) <= settings.bound and -math.expm1(low - centre) <= settings.bound


@contextmanager
def _collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
