"""What a driver starts ends with it, by kill -9 too: a watcher beside it waits for its end, then clears up.

Left alone, Ray's workers go on for seconds after their driver was killed, and would still write into a run folder that
the next driver has taken over; its agents stay for a minute. This file is the watcher's script as well, so it imports
nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

#: In the environment of a process that is to end with its driver, and so of all that it starts.
MARK = "PRUNEFRONT_ENDS_WITH"
_PROC = Path("/proc")


class Watcher:
    """Watch over the processes started within `marking()` until the context is left or this process dies.

    Where the system has no /proc, nothing is watched.
    """

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Watcher:
        if (_PROC / "self" / "environ").exists():
            # A session of its own: Ctrl-C and a closed terminal are for the driver to see.
            command = [sys.executable, "-I", "-S", __file__, self.mark]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=10)

    @property
    def environment(self) -> dict[str, str]:
        """What a process that is to end with this one is started with, beside all else."""
        # Ray's processes give themselves a title, and would write it over their environment.
        return {MARK: self.mark, "SPT_NOENV": "1"}

    @contextlib.contextmanager
    def marking(self) -> Iterator[None]:
        """Processes started in here, and theirs, end with this one."""
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def marked(mark: str) -> list[int]:
    """The processes of this user, zombies apart, that carry the mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # somebody else's, or it has just ended
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _watch(mark: str) -> None:
    sys.stdin.buffer.read()  # ends with the driver, however that ends
    deadline = time.monotonic() + 60.0
    while (left := marked(mark)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


if __name__ == "__main__":
    _watch(sys.argv[1])
