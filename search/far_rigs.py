"""The other machine of some rigs, for a driver that has joined its cluster: actors there, started when first asked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import ray

from evaluators.errors import one_line
from search.errors import UserError
from search.job import Job
from search.places import Place, Placement
from search.rig_actor import answer, start_actor

#: How long an actor may take to begin: a machine's other measurements, of another search, come first.
WAIT_S, WAIT_SAID_S = 3600.0, 20.0


class FarRigs:
    """Implements `search.elsewhere.Machine`. An actor is a process of its own, and reserves its device until `rest`."""

    def __init__(self, job: Job, placement: Placement, say: Callable[[str], None]) -> None:
        self._job, self._say = job, say
        self._places = [place for place in placement.places if not place.here]
        self._actors: dict[Place, Any] = {}
        self.rigs = placement.elsewhere

    def ask(self, method: str, rig: str, *arguments: Any) -> Any:
        """What the rig's actor answers. Raises the rig's `EvaluationError`, `UserError` where its machine is gone."""
        place = next(place for place in self._places if rig in place.rigs)
        try:
            return answer(self._actor(place), method, rig, *arguments)
        except ray.exceptions.RayError as error:
            self._actors.pop(place, None)
            raise UserError(f"the rig {rig} on {place.address} is gone: {one_line(error)}") from None

    def _actor(self, place: Place) -> Any:
        if place not in self._actors:
            actor = start_actor(self._job, place)
            self._actors[place] = actor
            ready = actor.__ray_ready__.remote()
            if not ray.wait([ready], timeout=WAIT_SAID_S)[0]:
                self._say(f"waiting for {place.resource!r} on {place.address}: another search may be measuring there")
            try:
                ray.get(ready, timeout=WAIT_S)
            except ray.exceptions.GetTimeoutError:
                self.rest()
                raise UserError(f"{place.resource!r} on {place.address} was not to be had within an hour") from None
            except ray.exceptions.ActorDiedError as error:
                del self._actors[place]
                cause = getattr(error, "cause", None)
                raise UserError(f"rigs {', '.join(place.rigs)} cannot be opened on {place.address}: "
                                f"{one_line(cause or str(error).splitlines()[-1])}") from None  # fmt: skip
        return self._actors[place]

    def rest(self) -> None:
        """Give the devices back: the next question starts fresh processes."""
        for actor in self._actors.values():
            with contextlib.suppress(Exception):  # the cluster may be gone already
                ray.kill(actor, no_restart=True)
        self._actors.clear()
