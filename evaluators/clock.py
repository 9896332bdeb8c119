"""The clocks of the timing loop; the loop never asks the time of anything else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

_SCHEDSTAT = Path("/proc/thread-self/schedstat")
#: A deciding clock coarser than this cannot resolve a block of a few milliseconds (Windows ticks: 15.6 ms).
_COARSEST_SECONDS = 1e-6


class Clock(Protocol):
    """Three monotonic readings in nanoseconds, all of the thread that asks."""

    def deciding(self) -> int:
        """The clock that latencies and speed-ups are computed from."""
        ...

    def wall(self) -> int:
        """Wall time."""
        ...

    def run_queue_delay(self) -> int | None:
        """Time this thread has been runnable but waited for a core; `None` where the system does not say."""
        ...


class WallClock:
    """Wall time decides: for several threads, or where no fine thread CPU clock exists."""

    kind = "wall"

    def deciding(self) -> int:
        return time.perf_counter_ns()

    def wall(self) -> int:
        return time.perf_counter_ns()

    def run_queue_delay(self) -> int | None:
        # schedstat: time on the core, time waiting for one, slices run (Documentation/scheduler/sched-
        # stats.rst).
        try:
            return int(_SCHEDSTAT.read_bytes().split()[1])
        except (OSError, ValueError, IndexError):
            return None


class ThreadClock(WallClock):
    """CPU time of the calling thread decides: whatever else runs on the machine; for one thread."""

    kind = "thread_cpu"

    def deciding(self) -> int:
        return time.thread_time_ns()


class FakeClock:
    """A clock that stands still until `advance`: makes every figure of the timing loop exact in tests."""

    kind = "wall"

    def __init__(self, *, knows_delay: bool = True) -> None:
        self._deciding = self._wall = self._delay = 0
        self._knows_delay = knows_delay

    def deciding(self) -> int:
        return self._deciding

    def wall(self) -> int:
        return self._wall

    def run_queue_delay(self) -> int | None:
        return self._delay if self._knows_delay else None

    def advance(self, cpu_ns: int, *, delay_ns: int = 0) -> None:
        """Let `cpu_ns` of work and `delay_ns` of waiting for a core go by."""
        self._deciding += cpu_ns
        self._wall += cpu_ns + delay_ns
        self._delay += delay_ns

    def call(self, cpu_ns: int, *, delay_ns: int = 0) -> Callable[[], None]:
        """A callable that takes exactly this long on this clock."""
        return lambda: self.advance(cpu_ns, delay_ns=delay_ns)


def host_clock(threads: int) -> WallClock:
    """The deciding clock of the design's protocol: thread CPU time for one thread, wall time for more."""
    try:
        fine = time.get_clock_info("thread_time").resolution <= _COARSEST_SECONDS
    except ValueError:
        fine = False
    return ThreadClock() if threads == 1 and fine else WallClock()
