"""The timing loop under a fake clock: every figure is exact."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.clock import FakeClock, ThreadClock, WallClock, host_clock
from evaluators.errors import RigError
from evaluators.measurement import DeviceStamp
from evaluators.timing import PairedTiming, TimingSettings, bootstrap_median, time_pair

MS = 1_000_000
STAMP = DeviceStamp(
    rig="fake", device="d", isa="i", runtime="r", provider="p", threads=1, batch=1, clock="wall", platform="x"
)


class Recorder:
    """Callables on a fake clock; `log` keeps the side and the starting time of every call."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.log: list[tuple[str, int]] = []

    def side(self, name: str, duration: Callable[[int], int]) -> Callable[[], None]:
        calls = 0

        def call() -> None:
            nonlocal calls
            self.log.append((name, self.clock.wall()))
            self.clock.advance(duration(calls))
            calls += 1

        return call

    def runs(self) -> list[tuple[str, int]]:
        """(side, consecutive calls), in order."""
        return [(name, len(list(group))) for name, group in groupby(name for name, _ in self.log)]


def quantile(values: list[float], q: float) -> float:
    """Linear interpolation between order statistics (Hyndman and Fan 1996, type 7), written out."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@given(dense=st.integers(1_000, 20 * MS), small=st.integers(1_000, 20 * MS))
@settings(max_examples=40, deadline=None)
def test_constant_durations_are_measured_exactly(dense: int, small: int) -> None:
    clock = FakeClock()
    timing = time_pair(clock.call(small), clock.call(dense), settings=TimingSettings(), clock=clock)
    result = timing.measurement(STAMP)
    assert result.latency_ms == result.latency_low_ms == result.latency_high_ms == small / MS
    assert result.dense_latency_ms == dense / MS
    assert result.speedup == pytest.approx(dense / small, rel=1e-12)
    assert result.speedup_low == result.speedup == result.speedup_high
    assert result.wall_p50_ms == pytest.approx(small / MS, rel=1e-12)
    assert result.wall_min_ms == small / MS
    assert (result.pairs, result.converged, result.rejected) == (9, True, 0)
    assert result.seconds == clock.wall() / 1e9


@given(dense=st.integers(1_000, 10 * MS), small=st.integers(1_000, 10 * MS), pairs=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_blocks_alternate_abba_and_are_long_enough(dense: int, small: int, pairs: int) -> None:
    clock = FakeClock()
    recorder = Recorder(clock)
    time_pair(
        recorder.side("B", lambda _: small),
        recorder.side("A", lambda _: dense),
        settings=TimingSettings(min_pairs=pairs, max_pairs=pairs),
        clock=clock,
    )
    # Each side is warmed up and calibrated first; adjacent blocks of one side merge in ABBA.
    order = "".join(name for name, _ in recorder.runs())
    blocks = "".join("AB" if pair % 2 == 0 else "BA" for pair in range(pairs))
    expected = "".join(name for name, _ in groupby("AB" + blocks))
    assert order == expected
    if pairs > 1:
        # The second run of B ends pair 0 and starts pair 1: two blocks, each with a dropped call.
        name, calls = recorder.runs()[3]
        assert name == "B"
        assert (calls - 2) * small >= 2 * TimingSettings().min_block_ns


def test_first_call_of_a_block_is_dropped() -> None:
    clock = FakeClock()
    last = [""]

    def side(name: str, cost: int) -> Callable[[], None]:
        def call() -> None:
            clock.advance(cost if last[0] == name else 50 * cost)
            last[0] = name

        return call

    # With one pair the order is A, B: each block starts just after the other side ran.
    one_pair = TimingSettings(min_pairs=1, max_pairs=1)
    timing = time_pair(side("B", MS), side("A", 2 * MS), settings=one_pair, clock=clock)
    assert timing.candidate_ns == (MS,)
    assert timing.reference_ns == (2 * MS,)


def test_warm_ups_go_on_while_calls_get_faster() -> None:
    def calls_before_calibration(durations: list[int]) -> int:
        clock = FakeClock()
        recorder = Recorder(clock)
        time_pair(
            recorder.side("B", lambda i: durations[min(i, len(durations) - 1)]),
            recorder.side("A", lambda _: 10 * MS),
            settings=TimingSettings(min_pairs=1, max_pairs=1),
            clock=clock,
        )
        # Calls of 10 ms or more need one call to calibrate, and the block has two: one dropped, one timed.
        return sum(calls for name, calls in recorder.runs() if name == "B") - 3

    assert calls_before_calibration([10 * MS]) == 3
    assert calls_before_calibration([90 * MS, 60 * MS, 40 * MS, 40 * MS]) == 4
    assert calls_before_calibration([90 * MS, 80 * MS, 60 * MS, 40 * MS, 30 * MS, 20 * MS]) == 5


@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0.0, 1.0))
@settings(max_examples=40, deadline=None)
def test_stopping_rule_and_cap(seed: int, spread: float) -> None:
    clock = FakeClock()
    rng = np.random.default_rng(seed)
    protocol = TimingSettings(resamples=200)
    timing = time_pair(
        clock_call(clock, lambda: int(5 * MS * rng.lognormal(0.0, spread))),
        clock.call(10 * MS),
        settings=protocol,
        clock=clock,
    )
    assert protocol.min_pairs <= len(timing.candidate_ns) == len(timing.reference_ns) <= protocol.max_pairs
    result = timing.measurement(STAMP)
    narrow = result.speedup_high <= 1.03 * result.speedup and result.speedup_low >= 0.97 * result.speedup
    assert result.converged == narrow
    assert result.converged or result.pairs == protocol.max_pairs
    assert result.latency_low_ms <= result.latency_ms <= result.latency_high_ms


def test_noise_that_never_settles_stops_at_the_cap() -> None:
    clock = FakeClock()
    rng = np.random.default_rng(0)
    noisy = clock_call(clock, lambda: int(rng.integers(5 * MS, 50 * MS)))
    timing = time_pair(noisy, clock.call(10 * MS), settings=TimingSettings(), clock=clock)
    assert len(timing.candidate_ns) == 41
    assert not timing.converged


@given(st.lists(st.integers(5 * MS, 500 * MS), min_size=1, max_size=41))
@settings(max_examples=60, deadline=None)
def test_quantiles_are_exact(durations: list[int]) -> None:
    # Calls longer than a block: one repeat a block, so that each block's duration is known. Warm-up and
    # calibration
    # take the constant; each block then runs a dropped call and a timed one.
    clock = FakeClock()
    pairs = len(durations)
    seen = 0

    def candidate() -> None:
        nonlocal seen
        timed = seen - 4
        clock.advance(durations[timed // 2] if timed >= 0 and timed % 2 == 1 else 10 * MS)
        seen += 1

    timing = time_pair(
        candidate,
        clock.call(10 * MS),
        settings=TimingSettings(min_pairs=pairs, max_pairs=pairs, resamples=50),
        clock=clock,
    )
    assert list(timing.candidate_ns) == durations
    result = timing.measurement(STAMP)
    values = [d / MS for d in durations]
    assert result.latency_ms == pytest.approx(quantile(values, 0.5), rel=1e-12)
    assert result.wall_p50_ms == pytest.approx(quantile(values, 0.5), rel=1e-12)
    assert result.wall_p95_ms == pytest.approx(quantile(values, 0.95), rel=1e-12)
    assert result.wall_min_ms == pytest.approx(min(values), rel=1e-12)
    assert result.speedup == pytest.approx(
        math.exp(quantile([math.log(10 / value) for value in values], 0.5)), rel=1e-12
    )


def test_what_neighbours_add_to_half_of_the_repeats_moves_no_ratio() -> None:
    """A trainer on the same core empties the caches now and then: repeats are slower then, never faster."""
    clock = FakeClock()
    calls = 0

    def candidate() -> None:
        nonlocal calls
        calls += 1
        clock.advance(MS // 2 if calls % 2 else MS)

    settings = TimingSettings(min_pairs=9, max_pairs=9, resamples=50)
    timing = time_pair(candidate, clock.call(2 * MS), settings=settings, clock=clock)
    assert set(timing.candidate_quiet_ns) == {MS // 2}
    assert all(value > MS // 2 for value in timing.candidate_ns)  # what a call takes is told as it is
    assert timing.measurement(STAMP).speedup == pytest.approx(4.0)


def test_waiting_for_a_core_is_left_out_of_wall_figures_only() -> None:
    clock = FakeClock()
    seen = 0

    def candidate() -> None:
        nonlocal seen
        # Calls 4 and 5 are the first block: the timed one waits.
        clock.advance(10 * MS, delay_ns=90 * MS if seen == 5 else 0)
        seen += 1

    result = time_pair(candidate, clock.call(10 * MS), settings=TimingSettings(), clock=clock).measurement(STAMP)
    assert (result.pairs, result.rejected) == (9, 1)
    assert result.latency_ms == result.wall_p95_ms == 10.0


def test_a_core_never_free_leaves_no_wall_figures() -> None:
    clock = FakeClock()
    waits = clock.call(10 * MS, delay_ns=MS)
    result = time_pair(waits, clock.call(10 * MS), settings=TimingSettings(), clock=clock).measurement(STAMP)
    assert result.wall_p50_ms is result.wall_p95_ms is result.wall_min_ms is None
    assert (result.rejected, result.latency_ms) == (9, 10.0)


def test_without_run_queue_statistics_every_repeat_counts() -> None:
    clock = FakeClock(knows_delay=False)
    waits = clock.call(10 * MS, delay_ns=MS)
    result = time_pair(waits, clock.call(10 * MS), settings=TimingSettings(), clock=clock).measurement(STAMP)
    assert (result.rejected, result.wall_p50_ms) == (0, 11.0)


def test_slow_drift_cancels_in_the_pairs() -> None:
    clock = FakeClock()
    # Both sides slow down by half over the run, as a processor that gets warm does.
    drift = {"calls": 0}

    def drifting(base: int) -> Callable[[], None]:
        def call() -> None:
            drift["calls"] += 1
            clock.advance(int(base * (1 + drift["calls"] / 200)))

        return call

    protocol = TimingSettings(min_pairs=40, max_pairs=40)
    result = time_pair(drifting(5 * MS), drifting(15 * MS), settings=protocol, clock=clock).measurement(STAMP)
    assert result.speedup == pytest.approx(3.0, rel=0.02)
    assert result.latency_high_ms > 1.05 * result.latency_low_ms


def test_garbage_collector_is_off_in_blocks_and_back_afterwards() -> None:
    clock = FakeClock()
    states: set[bool] = set()

    def work() -> None:
        states.add(gc.isenabled())
        clock.advance(10 * MS)

    time_pair(work, work, settings=TimingSettings(), clock=clock)
    assert states == {False}
    assert gc.isenabled()


def test_an_error_passes_through_and_leaves_the_collector_on() -> None:
    clock = FakeClock()

    def broken() -> None:
        raise KeyError("broken")

    with pytest.raises(KeyError):
        time_pair(broken, clock.call(MS), settings=TimingSettings(), clock=clock)
    assert gc.isenabled()


def test_a_clock_that_stands_still_is_refused() -> None:
    clock = FakeClock()
    with pytest.raises(RigError, match="clock"):
        time_pair(lambda: None, lambda: None, settings=TimingSettings(), clock=clock)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=41))
@settings(max_examples=40, deadline=None)
def test_bootstrap_interval_holds_its_sample_and_repeats(values: list[float]) -> None:
    protocol = TimingSettings(resamples=100)
    low, high = bootstrap_median(values, protocol)
    assert min(values) <= low <= high <= max(values)
    assert bootstrap_median(values, protocol) == (low, high)


@pytest.mark.parametrize(
    "wrong",
    [{"warmups": 0}, {"warmups": 6}, {"min_pairs": 42}, {"min_block_ns": 0}, {"bound": 0.0}, {"confidence": 1.0}],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        TimingSettings(**wrong)


def test_one_thread_is_timed_in_cpu_time_more_in_wall_time() -> None:
    assert isinstance(host_clock(1), ThreadClock)
    assert type(host_clock(2)) is WallClock
    clock = host_clock(1)
    before = clock.deciding(), clock.wall()
    sum(range(100_000))
    assert clock.deciding() > before[0]
    assert clock.wall() > before[1]
    delay = clock.run_queue_delay()
    assert delay is None or delay >= 0


def test_unconverged_timing_says_so() -> None:
    timing = PairedTiming(
        candidate_ns=(1.0 * MS,),
        reference_ns=(2.0 * MS,),
        candidate_quiet_ns=(1.0 * MS,),
        reference_quiet_ns=(2.0 * MS,),
        candidate_wall_ns=(1.0 * MS,),
        rejected=0,
        converged=False,
        seconds=0.1,
        settings=TimingSettings(),
    )
    assert timing.measurement(STAMP).converged is False


def clock_call(clock: FakeClock, duration: Callable[[], int]) -> Callable[[], None]:
    return lambda: clock.advance(max(1, duration()))
