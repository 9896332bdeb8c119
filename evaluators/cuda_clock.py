"""The deciding clock of a CUDA device: events on its stream, read as one counter that only rises."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch

from evaluators.clock import WallClock


class Event(Protocol):
    """The part of `torch.cuda.Event` that the clock uses."""

    def record(self) -> object:
        """Mark this place in the stream."""
        ...

    def synchronize(self) -> object:
        """Wait until the device has come to it."""
        ...

    def elapsed_time(self, end_event: Event, /) -> float:
        """Milliseconds from this event to `end_event`, both passed."""
        ...


class CudaEventClock(WallClock):
    """Device time between events decides; implements `evaluators.clock.Clock`.

    A reading waits for the device, adds the time since the last one, flushes the L2 cache and marks a new beginning,
    so that flushing and waiting lie outside what is timed. `elapsed_time` is a float32 of milliseconds: short spans
    are added up as integers, since one long span would lose the microseconds. Wall time leaves out what the readings
    themselves took, which a caller of the model never waits for.
    """

    kind = "cuda_event"

    def __init__(self, event: Callable[[], Event], flush: Callable[[], object] = lambda: None) -> None:
        self._event = event
        self._flush = flush
        self._counted_ns = 0
        self._reading_ns = 0
        self._begin = event()
        self._begin.record()

    def deciding(self) -> int:
        end = self._event()
        end.record()
        end.synchronize()
        entered = time.perf_counter_ns()
        self._counted_ns += round(self._begin.elapsed_time(end) * 1e6)
        self._flush()
        # Waited for as well: a wall time of the model must not hold the rest of the flush.
        settled = self._event()
        settled.record()
        settled.synchronize()
        self._begin = self._event()
        self._begin.record()
        self._reading_ns += time.perf_counter_ns() - entered
        return self._counted_ns

    def wall(self) -> int:
        return super().wall() - self._reading_ns


def cuda_clock(*, flush_bytes: int) -> CudaEventClock:
    """The clock of torch's current device and stream, overwriting `flush_bytes` of memory after every reading."""
    scratch = torch.empty(max(flush_bytes, 1), dtype=torch.int8, device="cuda")

    def event() -> Event:
        made: Any = torch.cuda.Event(enable_timing=True)
        return cast(Event, made)

    return CudaEventClock(event, scratch.zero_ if flush_bytes else lambda: None)


def l2_bytes(index: int = 0) -> int:
    """Size of the device's L2 cache; 64 MiB where torch does not tell, more than most have."""
    size = getattr(torch.cuda.get_device_properties(index), "L2_cache_size", 0)
    return int(size) or 2**26
