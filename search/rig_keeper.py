"""The driver's watch over its rigs: one that hangs is ended, so that Ray starts it again and asks it again.

Ray sees a process that died, not one that is stuck in a driver of its device, or stopped.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from search.rig_actor import LOOK_S, NAMESPACE

#: A rig that does not even say what it is at for this long is stuck; longer than its start takes on a slow machine.
SILENCE_S = 60.0


class RigKeeper:
    """Looks at the run's rigs every `LOOK_S` seconds, each in a thread, while the context is open.

    `rigs` maps the names of actors to the resource that their node offers, None for the driver's own machine. Nobody
    else ends a rig: of all who wait for an answer, each would.
    """

    def __init__(self, rigs: Mapping[str, str | None], say: Callable[[str], None]) -> None:
        self._closed = threading.Event()
        self._rigs = [_Kept(name, resource, self._closed, say) for name, resource in rigs.items()]

    def __enter__(self) -> RigKeeper:
        for rig in self._rigs:
            threading.Thread(target=rig.watch, daemon=True, name="rig keeper").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()


class _Kept:
    def __init__(self, name: str, resource: str | None, closed: threading.Event, say: Callable[[str], None]) -> None:
        self._name, self._resource = name, resource
        self._closed, self._say = closed, say
        self._patience = SILENCE_S
        self._heard = time.monotonic()
        self._missed = False

    def watch(self) -> None:
        """Until the keeper is closed."""
        while not self._closed.wait(LOOK_S):
            with contextlib.suppress(Exception):  # a cluster that is gone is the search's to tell
                self._look()

    def _look(self) -> None:
        try:
            actor = ray.get_actor(self._name, namespace=NAMESPACE)
            at: Any = ray.get(actor.running.remote(), timeout=LOOK_S)
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
            self._silent(actor)
            return
        self._heard, self._patience, self._missed = time.monotonic(), SILENCE_S, False
        if at is not None and at[1] > at[2]:
            self._restart(actor, f"a measurement took longer than {at[2]:g} s")

    def _silent(self, actor: Any) -> None:
        if self._resource is not None and ray.cluster_resources().get(self._resource, 0.0) < 1.0:
            if not self._missed:
                self._tell(f"no node offers {self._resource!r} any more: measurements wait for one")
            self._missed, self._heard = True, time.monotonic()
        elif time.monotonic() - self._heard > self._patience:
            self._restart(actor, f"the rig was silent for {self._patience:g} s")
            self._patience *= 2.0  # it may be slow to start, and would never be there

    def _restart(self, actor: Any, why: str) -> None:
        self._tell(f"{why}: it is started again, and the trials wait")
        ray.kill(actor, no_restart=False)
        self._heard = time.monotonic()

    def _tell(self, line: str) -> None:
        if not self._closed.is_set():
            self._say(line)
