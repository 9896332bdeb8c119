"""One driver for one run at a URL, where no kernel holds a lock: a note that its driver renews, and that runs out."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.atomic import StoreError
from search.remote import Remote, without_secrets

NAME = "driver.json"
#: A driver that was not heard of for so long is gone; clocks of two machines may differ by a part of it.
RUNS_OUT_S = 180.0
RENEWED_S = 45.0


@dataclass
class Lease:
    """This process's hold on the run at `remote`. It keeps out a second driver, not two that start in one instant and
    cannot see each other's note yet."""

    remote: Remote

    def __post_init__(self) -> None:
        self._token = uuid.uuid4().hex

    def take(self) -> None:
        """Raises `StoreError` naming the driver that holds the run."""
        held = self._held()
        if held is not None and not _is_over(held):
            ago = max(0.0, time.time() - float(held["heard"]))
            raise StoreError(
                f"run {without_secrets(self.remote.url)} is being driven by pid {held['pid']} on host {held['host']}, "
                f"heard of {ago:.0f} s ago: wait for it or stop it; one that was killed is given up after "
                f"{RUNS_OUT_S:.0f} s"
            )
        self._write()

    def renew(self) -> None:
        """Say that this driver lives. Raises `Lost` when another has taken the run over."""
        held = self._held()
        if held is not None and held["token"] != self._token:
            raise Lost(f"run {without_secrets(self.remote.url)} was taken over by a driver on host {held['host']}")
        self._write()

    def give_back(self) -> None:
        """Let the next driver in at once."""
        held = self._held()
        if held is not None and held["token"] == self._token:
            self.remote.remove(NAME)

    def _write(self) -> None:
        note = {"token": self._token, "pid": os.getpid(), "host": socket.gethostname(), "heard": time.time()}
        self.remote.put(NAME, json.dumps(note).encode() + b"\n")

    def _held(self) -> dict[str, Any] | None:
        """The note that is there, None for none or one that cannot be believed."""
        try:
            note = json.loads(self.remote.read(NAME, most=4096) or b"")
            host = "".join(c for c in str(note["host"]) if c.isprintable())[:100]
            return {
                "token": str(note["token"]),
                "pid": int(note["pid"]),
                "host": host,
                "heard": float(note["heard"]),
            }
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


class Lost(StoreError):
    """Another driver goes on with the run."""


def _is_over(held: dict[str, Any]) -> bool:
    if time.time() - held["heard"] > RUNS_OUT_S:
        return True
    here = held["host"] == socket.gethostname() and Path("/proc/self").exists()
    return here and (held["pid"] == os.getpid() or not Path("/proc", str(held["pid"])).exists())
