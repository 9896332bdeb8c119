"""Real processes for the reliability tests: start them, wait for what they say, kill them, see what is left of them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[3]
PROGRAM = (sys.executable, "-c", "from search.cli import main; main()")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
#: Long enough for a loaded machine; what is waited for takes seconds.
PATIENCE_S = 600.0


class Process:
    """A child in a session of its own, as a terminal would start it, and all lines that it has said so far."""

    def __init__(self, *command: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self._said = threading.Condition()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**ENVIRONMENT, **(environment or {})},
            cwd=cwd,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in [self.pid, *self.session()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):
            for line in self._process.stdout:
                with self._said:
                    self.lines.append(line.rstrip("\n"))
                    self._said.notify_all()
        with self._said:
            self._said.notify_all()

    def tell(self, line: str) -> None:
        """One line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def wait_for(self, text: str, *, after: int = 0) -> str:
        """The first line from number `after` on that holds `text`; fails when the process ends without it."""
        deadline = time.monotonic() + PATIENCE_S
        with self._said:
            while True:
                found = [line for line in self.lines[after:] if text in line]
                if found:
                    return found[0]
                alive = self._reader.is_alive() and time.monotonic() < deadline
                assert alive, f"never said {text!r}:\n" + "\n".join(self.lines)
                self._said.wait(0.2)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Until `holds()`; fails when the process ends before."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert self._process.poll() is None, "ended early:\n" + self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.01)

    def wait(self) -> int:
        """Its exit code, negative for the signal that killed it."""
        code = self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def end(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the process, or as Ctrl-C does to its process group."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    @property
    def text(self) -> str:
        """All it said."""
        return "\n".join(self.lines)

    def session(self, name: str = "") -> list[int]:
        """The processes of its session that live, by a part of their title; itself left out."""
        return sorted(pid for pid, title in _session(self.pid) if name in title and pid != self.pid)


def _session(leader: int) -> list[tuple[int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                pid = int(entry.name)
                zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                if os.getsid(pid) == leader and not zombie:
                    found.append((pid, (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
    return found


def search(*arguments: object, cwd: Path) -> Process:
    """`prunefront search` with these arguments, typed in a shell that stands in `cwd`."""
    return Process(*PROGRAM, "search", *map(str, arguments), cwd=cwd)


def nap(source: random.Random, longest: float, shortest: float = 0.0) -> None:
    """Sleep for a random time: the instant of the next kill."""
    time.sleep(source.uniform(shortest, longest))
