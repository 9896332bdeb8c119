"""One driver for one run: a second is refused by the name of the first."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from search.atomic import StoreError, disk_errors

LOCK_NAME = "driver.lock"


@contextlib.contextmanager
def driver_lock(root: Path) -> Iterator[None]:
    """Hold the run folder `root` for this driver; raises `StoreError` naming the driver that holds it.

    The kernel drops a `flock` with its last holder, so a driver that was killed never leaves a run locked,
    and a pid that was used again never looks like a driver. The file's content only names the holder; it
    stays in place, because removing it would let two drivers lock two files of one name.
    """
    path = root / LOCK_NAME
    with disk_errors("lock", path):
        # Not inherited over exec (PEP 446): a Ray process that outlives the driver does not keep the run.
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(handle, path)
        with disk_errors("write", path):
            _sign(handle)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, 0)
            fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def _take(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        run = path.parent.resolve().name
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise StoreError(f"run {run} is being driven by {_holder(handle)}: wait for it or stop it") from None
        raise StoreError(
            f"cannot lock {path}: {error.strerror}: choose a --storage on a file system that has locks"
        ) from None


def _sign(handle: int) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(holder).encode() + b"\n", 0)


def _holder(handle: int) -> str:
    # The holder signs just after it locked: give it a moment before calling it nameless.
    for _ in range(20):
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            content = json.loads(os.pread(handle, 4096, 0))
            since = datetime.fromisoformat(content["started"]).astimezone()
            host = "".join(c for c in str(content["host"]) if c.isprintable())[:100]
            return f"pid {int(content['pid'])} on host {host} since {since:%Y-%m-%d %H:%M:%S}"
        time.sleep(0.01)
    return "another process that has not signed its lock"
