"""The driver's watch over its rig: one that hangs is ended, so that Ray starts it again and what it had is asked again.

Ray sees a process that died, not one that is stuck in a driver of its device, or stopped.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

from search.rig_actor import LOOK_S, NAMESPACE, RESOURCE, actor_name

#: A rig that does not even say what it is at for this long is stuck; longer than its start takes on a slow machine.
SILENCE_S = 60.0


class RigKeeper:
    """Looks at the run's rig every `LOOK_S` seconds, in a thread, while the context is open.

    It is the only one who ends a rig: of all who wait for an answer, each would.
    """

    def __init__(self, run_name: str, say: Callable[[str], None]) -> None:
        self._name = actor_name(run_name)
        self._say = say
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="rig keeper")
        self._patience = SILENCE_S
        self._heard = time.monotonic()
        self._missed = False

    def __enter__(self) -> RigKeeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _watch(self) -> None:
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
        if ray.cluster_resources().get(RESOURCE, 0.0) < 1.0:
            if not self._missed:
                self._tell(f"no node offers {RESOURCE!r} any more: measurements wait for one")
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
