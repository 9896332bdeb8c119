"""The rig as a named Ray actor: one measurement at a time on its device, whoever asks."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
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
#: A measurement takes seconds; one that takes this long hangs, and its rig is started again.
TIMEOUT_S = 300.0
#: A module is also lowered and scored there.
MODULES_TIMEOUT_S = 1800.0
#: How often Ray asks again what a rig was at that had to be started again.
RETRIES = 2
#: How long the end of a search waits for a rig's last call.
LAST_CALL_S = 5.0
#: How often one who waits looks at what is measured.
LOOK_S = 10.0


# Ray's annotations leave concurrency groups out.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=RETRIES, concurrency_groups={"watch": 1})  # type: ignore[call-overload]
class RigActor:
    """Measures pairs of networks, in the order they come in; holds no state that a restart could lose.

    Beside the one thread that measures another tells what it is at (`running`), and sleeps otherwise.
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
        self._at: tuple[str, float, float] | None = None

    @ray.method(concurrency_group="watch")
    def running(self) -> tuple[str, float, float] | None:
        """Whose call is at work, for how many seconds, and how many it may take; None where nothing is asked."""
        now = self._at
        return None if now is None else (now[0], time.monotonic() - now[1], now[2])

    def call(self, caller: str, method: str, name: str, *arguments: Any) -> Any:
        """What one of the methods below answers for the named rig; `caller` is what `running` tells of it."""
        self._at = (caller, time.monotonic(), limit_of(name))
        try:
            return getattr(self, method)(name, *arguments)
        finally:
            self._at = None

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
    """Stop the actors that `start_rigs` has told, each when it has ended what it is at, or after `LAST_CALL_S`.

    Of one that is killed in a call Ray says in red that it failed, though nobody waits for the answer any more.
    """
    for name in set(names.values()):
        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            actor, until = ray.get_actor(name, namespace=NAMESPACE), time.monotonic() + LAST_CALL_S
            while time.monotonic() < until and ray.get(actor.running.remote(), timeout=1.0) is not None:
                time.sleep(0.1)
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
    """What the rig's actor answers, however many are before us in its line, and while it is started again.

    The driver's `RigKeeper` ends one that hangs. Raises the rig's `EvaluationError`, a `RigError` for what it hung in
    each time, and `AttemptLost` where there is no actor.
    """
    caller, ours = uuid.uuid4().hex, 0.0
    try:
        with _reasons(rig):
            actor = ray.get_actor(actors[rig], namespace=NAMESPACE)
            asked: Any = actor.call.remote(caller, method, rig, *arguments)
            while True:
                with contextlib.suppress(ray.exceptions.GetTimeoutError):
                    return ray.get(asked, timeout=LOOK_S)
                with contextlib.suppress(ray.exceptions.GetTimeoutError):
                    at: Any = ray.get(actor.running.remote(), timeout=LOOK_S)
                    ours = max(ours, at[1]) if at is not None and at[0] == caller else ours
    except (ray.exceptions.RayError, KeyError, ValueError) as error:
        if ours > 0.9 * limit_of(rig):
            raise RigError(f"the rig {rig} did not answer within {limit_of(rig):g} s, {RETRIES + 1} times") from None
        # the driver has stopped it, or it died more often than Ray starts it again for one measurement
        raise AttemptLost(f"the rig {rig} of this run is gone: {one_line(error)}") from None


def answer(actor: Any, method: str, rig: str, *arguments: Any) -> Any:
    """What an actor answers that nobody else asks. Raises the rig's `EvaluationError`, and Ray's where it is gone."""
    try:
        with _reasons(rig):
            return ray.get(actor.call.remote("", method, rig, *arguments), timeout=limit_of(rig))
    except ray.exceptions.GetTimeoutError:
        raise RigError(f"the rig {rig} did not answer within {limit_of(rig):g} s") from None


def limit_of(rig: str) -> float:
    """How many seconds one call of this rig may take."""
    return MODULES_TIMEOUT_S if measures_modules(rig) else TIMEOUT_S


@contextlib.contextmanager
def _reasons(rig: str) -> Iterator[None]:
    """What was raised in the actor, as it was raised there."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, EvaluationError | UserError) else RigError(f"{rig}: {cause!r}") from None
