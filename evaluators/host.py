"""What the stamp says of the host processor, and pinning a thread to one of its cores."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from evaluators.errors import RigUnavailable

_CPUINFO = Path("/proc/cpuinfo")
#: Highest clock of the first core, in kHz; a virtual machine has no such file.
_HIGHEST_KHZ = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
#: Widest first: (name in the stamp, flag in /proc/cpuinfo).
_ISAS: tuple[tuple[str, str], ...] = (
    ("avx512", "avx512f"),
    ("avx2", "avx2"),
    ("avx", "avx"),
    ("sse4", "sse4_2"),
    ("sve2", "sve2"),
    ("sve", "sve"),
    ("neon", "asimd"),
)


@cache
def cpu_model() -> str:
    """The processor's name for itself with its highest clock, or the machine type where the system does not tell."""
    name = cpuinfo().get("model name") or platform.processor() or platform.machine() or "unknown"
    try:
        return f"{name}, up to {int(_HIGHEST_KHZ.read_text()) // 1000} MHz"
    except (OSError, ValueError):
        return name


@cache
def cpu_isa() -> str:
    """Widest vector instruction set the processor has; the machine type where the system does not tell."""
    info = cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    for name, flag in _ISAS:
        if flag in flags:
            return name
    return platform.machine() or "unknown"


def allowed_cores() -> tuple[int, ...]:
    """Cores the calling thread may run on, in ascending order."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def require_threads(threads: int) -> int:
    """`threads` if this process has as many cores; raises `RigUnavailable`."""
    cores = len(allowed_cores())
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= cores:
        raise RigUnavailable(f"threads must lie in 1..{cores}, the cores this process may use, got {threads!r}")
    return threads


@contextmanager
def pinned_to_one_core() -> Iterator[int | None]:
    """Keep the calling thread on one allowed core; its affinity is restored at the end.

    Gives the core, or `None` where the system has no affinity or refuses to set it. The last core is taken:
    the first one serves most interrupts.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    core = max(before)
    try:
        os.sched_setaffinity(0, {core})
    except OSError:
        yield None
        return
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)


@cache
def cpuinfo() -> dict[str, str]:
    """Key and value of the first processor's lines; empty where there is no such file."""
    try:
        text = _CPUINFO.read_text(errors="replace")
    except OSError:
        return {}
    entries: dict[str, str] = {}
    for line in text.partition("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        entries[key.strip()] = value.strip()
    return entries
