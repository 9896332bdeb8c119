"""Whether a run is being driven, and how far it is: read off its folder by a stranger who locks and writes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from search.job import Job
from search.lock import LOCK_NAME
from search.record import RESULT_NAME, numbered
from search.result import TrialResult
from search.store import RunStore, StoreError

#: running: a driver holds the run. finished: all trials asked for are done. stopped: neither, it can go on.
#: unknown: it is signed by a driver on another host, which cannot be asked from here.
State = Literal["running", "finished", "stopped", "unknown"]

_LOCKS = Path("/proc/locks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """Who signed the run's lock, and whether it still holds it (None: that cannot be told from this machine)."""

    pid: int
    host: str
    started: float
    """Seconds since the epoch."""
    alive: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a look at the folder tells. Times are seconds since the epoch."""

    state: State
    driver: Driver | None
    heartbeat: float | None
    """When anything in the run was written last: a trial, or the checkpoint of one that runs."""
    done: int
    """Trials that count against those asked for."""
    asked: int
    running: tuple[int, ...]
    """Numbers of the trials that were begun and are not finished."""
    left_s: float | None
    """By the pace of this start; None where nothing runs or nothing is finished yet."""


def run_state(store: RunStore, job: Job, results: Mapping[int, TrialResult], *, now: float | None = None) -> RunState:
    """The state of a run at `now` (this moment if None). Takes no lock and writes nothing, whatever the driver does."""
    now = time.time() if now is None else now
    driver = read_driver(store.root)
    done = sum(result.spent for result in results.values())
    begun = tuple(n for n in _numbers(store.partial_dir) if n not in results)
    if driver is not None and driver.alive:
        state: State = "running"
    elif driver is not None and driver.alive is None:
        state = "unknown"
    else:
        state = "finished" if done >= job.search.trials else "stopped"
    held = state in ("running", "unknown")
    return RunState(
        state=state,
        driver=driver if held else None,
        heartbeat=_last_written(store, results),
        done=done,
        asked=job.search.trials,
        running=begun if held else (),
        left_s=_left(store, results, driver.started, job.search.trials - done) if driver is not None and held else None,
    )


def read_driver(root: Path) -> Driver | None:
    """Who signed the lock of the run in `root`; None where it was left in order, or never taken."""
    path = root / LOCK_NAME
    try:
        with path.open("rb") as file:
            signed: Any = json.loads(file.read(4096))
            inode = os.fstat(file.fileno()).st_ino
        pid, host = int(signed["pid"]), str(signed["host"])
        started = datetime.fromisoformat(signed["started"]).timestamp()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    host = "".join(c for c in host if c.isprintable())[:100]
    alive = _holds(pid, inode) if host == socket.gethostname() else None
    return Driver(pid=pid, host=host, started=started, alive=alive)


def _holds(pid: int, inode: int) -> bool:
    """Whether process `pid` of this machine holds a lock on the file: a killed driver's signature stays behind.

    Asking the kernel by taking the lock would, for that moment, keep a driver out that starts just then.
    """
    with contextlib.suppress(OSError):
        # `1: FLOCK  ADVISORY  WRITE 4242 08:01:1234567 0 EOF`; the inode stands last in the file's name
        fields = [line.split() for line in _LOCKS.read_text().splitlines()]
        return any("FLOCK" in f and str(pid) in f and any(part.endswith(f":{inode}") for part in f) for f in fields)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, and another user's
        return True
    return True


def _numbers(folder: Path) -> list[int]:
    with contextlib.suppress(StoreError):
        return numbered(folder)
    return []


def _written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:  # renamed or removed at this very moment
        return None


def _last_written(store: RunStore, results: Mapping[int, TrialResult]) -> float | None:
    paths = [store.job_path, store.root / "front.json", store.root / "sensitivity.json"]
    paths += [store.trial_dir(number) / RESULT_NAME for number in results]
    with contextlib.suppress(OSError):
        paths += [path for path in store.partial_dir.glob("*/*") if not path.name.startswith(".")]
    return max((when for when in map(_written, paths) if when is not None), default=None)


def _left(store: RunStore, results: Mapping[int, TrialResult], started: float, missing: int) -> float | None:
    """Seconds to the last trial asked for, by what this start has finished so far."""
    counted = [number for number, result in results.items() if result.spent]
    times = [_written(store.trial_dir(number) / RESULT_NAME) for number in counted]
    fresh = sorted(when for when in times if when is not None and when >= started)
    if not fresh or missing <= 0:
        return None
    # from the first trial on: what came before it (the dense network, the first plans) does not come again
    if len(fresh) > 1:
        return (fresh[-1] - fresh[0]) / (len(fresh) - 1) * missing
    return (fresh[0] - started) * missing
