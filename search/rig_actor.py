"""The rig as a named Ray actor: one measurement at a time on its device, whoever asks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from evaluators import Measurement
from evaluators.errors import EvaluationError, RigError, one_line
from evaluators.rig import measures_modules
from search.alignment import device_block, open_rig
from search.bench import prepare_task
from search.errors import AttemptLost, UserError
from search.job import Job
from search.module_artefact import DenseForms
from search.module_rigs import AskedModules, LocalModules, Modules, of_files, of_modules
from search.places import Place
from search.trial import MeasureOn

#: The custom resource that a machine offers which may measure.
RESOURCE = "latency_rig"
NAMESPACE = "prunefront"
#: A measurement takes seconds; a rig that is silent this long is lost, and the trial fails with that reason.
TIMEOUT_S = 300.0
#: A module is also lowered and scored there, and others may wait before it.
MODULES_TIMEOUT_S = 1800.0


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=2)
class RigActor:
    """Measures pairs of networks, in the order they come in; holds no state that a restart could lose.

    For a rig of modules it also loads the job's task, whose code builds the network and whose validation data the
    module is scored on: on the device that measures, in the form that is measured.
    """

    def __init__(self, job: dict[str, Any], cwd: str, names: Sequence[str]) -> None:
        with contextlib.suppress(OSError):  # on another machine there may be no such folder
            os.chdir(cwd)  # the user's code may name files relative to where the search was started
        whole = Job.model_validate(job)
        asked = whole.model_copy(update={"rigs": tuple(spec for spec in whole.rigs if spec.name in names)})
        self._specs = {spec.name: spec for spec in asked.rigs}
        self._rigs = {spec.name: (open_rig(spec), spec.batch) for spec in of_files(asked)}
        own = of_modules(asked)
        self._modules = LocalModules(own, lambda: prepare_task(asked)[0]) if own else None

    def measure(self, name: str, candidate: bytes, reference: bytes) -> dict[str, Any]:
        """One measurement on the named rig, as `Measurement.to_dict()`."""
        if name not in self._rigs:
            return self._answering().measure(name, candidate, reference).to_dict()
        rig, batch = self._rigs[name]
        return rig.measure(candidate, reference, batch=batch).to_dict()

    def stamp(self, name: str, batch: int) -> dict[str, Any]:
        """Where and with what the named rig measures, as `DeviceStamp.to_dict()`."""
        return open_rig(self._specs[name]).stamp(batch).to_dict()

    def block(self, name: str) -> dict[str, Any]:
        """The channel block of its device, as `ChannelBlock.to_dict()`: known there, or measured in some seconds."""
        return device_block(self._specs[name]).to_dict()

    def lower(self, name: str, content: bytes) -> tuple[dict[str, Any], bytes]:
        """A module lowered for the named rig: `Lowered.to_dict()` and its payload."""
        done = self._answering().lower(name, content)
        return done.to_dict(), done.content

    def judge(self, name: str, content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parity and score of a module on the named rig, as dictionaries."""
        judged = self._answering().judge(name, content)
        return asdict(judged.parity), asdict(judged.score)

    def test(self, name: str, content: bytes) -> dict[str, Any]:
        """The score of a module on the test data, as a dictionary."""
        return asdict(self._answering().test(name, content))

    def _answering(self) -> LocalModules:
        if self._modules is None:
            raise RigError("this run has no rig of modules")
        return self._modules


def start_rigs(run_name: str, job: Job, places: Sequence[Place]) -> dict[str, str]:
    """One actor for each place, an earlier driver's being replaced. Returns rig -> the name of its actor."""
    names: dict[str, str] = {}
    for index, place in enumerate(places):
        name = actor_name(run_name, index)
        stop_rig(name)
        start_actor(job, place, name=name, lifetime="detached")
        names |= dict.fromkeys(place.rigs, name)
    return names


def until_ready(names: Mapping[str, str], say: Callable[[str], None], check: Callable[[], None]) -> None:
    """Wait until the actors run: on a cluster another search may hold their device. `check` may end it by raising.

    Raises `UserError` for rigs that cannot be opened where they are.
    """
    waiting: dict[Any, str] = {
        ray.get_actor(name, namespace=NAMESPACE).__ray_ready__.remote(): rig for rig, name in names.items()
    }
    said = time.monotonic() + 20.0
    while waiting:
        check()
        for ready in ray.wait(list(waiting), timeout=1.0)[0]:
            rig = waiting.pop(ready)
            try:
                ray.get(ready)
            except ray.exceptions.RayError as error:
                last = one_line(str(error).strip().splitlines()[-1])
                raise UserError(f"the rig {rig} cannot be opened: {last}") from None
        if waiting and time.monotonic() >= said:
            say(f"waiting for the rigs {', '.join(waiting.values())}: another search may be measuring there")
            said = float("inf")


def start_actor(job: Job, place: Place, **options: Any) -> Any:
    """An actor for the rigs of one place."""
    if place.resource is not None:
        options["resources"] = {place.resource: 1.0}
    if place.node is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(place.node, soft=False)
    actor: Any = RigActor  # the decorator made it an actor class, which its annotations do not say
    content = {**job.model_dump(), "base_dir": str(job.folder)}
    return actor.options(namespace=NAMESPACE, **options).remote(content, os.getcwd(), place.rigs)


def stop_rigs(names: Mapping[str, str]) -> None:
    """Stop the actors that `start_rigs` has told."""
    for name in set(names.values()):
        stop_rig(name)


def stop_rig(name: str) -> None:
    """Stop an actor by its name, if there is one."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)


def actor_name(run_name: str, index: int = 0) -> str:
    """The actor's name in namespace `prunefront`, by its place's number."""
    return f"rig-{run_name}" if index == 0 else f"rig-{run_name}-{index}"


def remote_measure(actors: Mapping[str, str], dense: DenseForms) -> MeasureOn:
    """Measure by asking the run's rig actors, for use in a worker; `actors` is rig -> actor, as `start_rigs` told.

    Raises `RigError`, or `AttemptLost` without a rig.
    """

    def measure(rig: str, candidate: bytes, reference: bytes | None = None) -> Measurement:
        return Measurement.from_dict(_ask(actors, "measure", rig, candidate, reference or dense.of(rig)))

    return measure


def remote_modules(actors: Mapping[str, str]) -> Modules:
    """Asks the run's rig actors, for use in a worker."""
    return AskedModules(partial(_ask, actors))


def _ask(actors: Mapping[str, str], method: str, rig: str, *arguments: Any) -> Any:
    """What the rig's actor answers. Raises the rig's `EvaluationError`, or `AttemptLost` where there is no actor."""
    try:
        actor = ray.get_actor(actors[rig], namespace=NAMESPACE)
        return answer(actor, method, rig, *arguments)
    except (ray.exceptions.RayError, KeyError, ValueError) as error:
        # the driver has stopped it, or it died more often than Ray starts it again for one measurement
        raise AttemptLost(f"the rig {rig} of this run is gone: {one_line(error)}") from None


def answer(actor: Any, method: str, rig: str, *arguments: Any) -> Any:
    """What an actor answers. Raises the rig's `EvaluationError`, and Ray's error where the actor is gone."""
    timeout = MODULES_TIMEOUT_S if measures_modules(rig) else TIMEOUT_S
    try:
        return ray.get(getattr(actor, method).remote(rig, *arguments), timeout=timeout)
    except ray.exceptions.GetTimeoutError:
        raise RigError(f"the rig {rig} did not answer within {timeout:g} s") from None
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, EvaluationError | UserError) else RigError(f"{rig}: {cause!r}") from None
