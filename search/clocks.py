"""The clock behind a latency, in words: thread CPU time must never be read as wall time."""

from __future__ import annotations

_WORDS = {
    "thread_cpu": "thread CPU time",
    "wall": "wall time",
    "cuda_event": "device time (CUDA events)",
}


def clock_words(clock: str) -> str:
    """How tables and plots name the clock of a `DeviceStamp`; an unknown one is named as it is."""
    return _WORDS.get(clock, clock)
