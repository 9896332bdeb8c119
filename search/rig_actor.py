"""The rig as a named Ray actor: one measurement at a time on its device, whoever asks."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import ray

from evaluators import Measurement, ParityReport, Score
from evaluators.errors import EvaluationError, RigError, one_line
from evaluators.lowering import Lowered
from evaluators.rig import measures_modules
from search.alignment import open_rig
from search.bench import local_modules
from search.errors import AttemptLost, UserError
from search.job import Job
from search.module_artefact import DenseForms
from search.module_rigs import Judged, Modules, of_files
from search.trial import MeasureOn

#: The custom resource that a machine offers which may measure.
RESOURCE = "latency_rig"
NAMESPACE = "prunefront"
#: A measurement takes seconds; one that takes this long hangs, and its rig is started again.
TIMEOUT_S = 300.0
#: A module is also lowered and scored there.
MODULES_TIMEOUT_S = 1800.0
#: How often Ray gives a call to a rig that was started again meanwhile.
RETRIES = 2
#: How often one who waits looks at what is measured.
LOOK_S = 10.0


# Ray's annotations leave concurrency groups out.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=RETRIES, concurrency_groups={"watch": 1})  # type: ignore[call-overload]
class RigActor:
    """Measures pairs of networks, in the order they come in; holds no state that a restart could lose.

    Beside the one thread that measures another tells what it is at (`running`), and waits otherwise.

    For a rig of modules it also loads the job's task, whose code builds the network and whose validation data the
    module is scored on: on the device that measures, in the form that is measured.
    """

    def __init__(self, job: dict[str, Any], cwd: str) -> None:
        with contextlib.suppress(OSError):  # on another machine there may be no such folder
            os.chdir(cwd)  # the user's code may name files relative to where the search was started
        asked = Job.model_validate(job)
        self._rigs = {spec.name: (open_rig(spec), spec.batch) for spec in of_files(asked)}
        self._modules = local_modules(asked)
        self._at: tuple[str, float, float] | None = None

    @ray.method(concurrency_group="watch")
    def running(self) -> tuple[str, float, float] | None:
        """Whose call is at work, for how many seconds, and how many it may take; None where nothing is asked."""
        now = self._at
        return None if now is None else (now[0], time.monotonic() - now[1], now[2])

    @contextlib.contextmanager
    def _at_work(self, caller: str, name: str) -> Iterator[None]:
        self._at = (caller, time.monotonic(), limit_of(name))
        try:
            yield
        finally:
            self._at = None

    def measure(self, caller: str, name: str, candidate: bytes, reference: bytes) -> dict[str, Any]:
        """One measurement on the named rig, as `Measurement.to_dict()`."""
        with self._at_work(caller, name):
            if name not in self._rigs:
                return self._answering().measure(name, candidate, reference).to_dict()
            rig, batch = self._rigs[name]
            return rig.measure(candidate, reference, batch=batch).to_dict()

    def lower(self, caller: str, name: str, content: bytes) -> tuple[dict[str, Any], bytes]:
        """A module lowered for the named rig: `Lowered.to_dict()` and its payload."""
        with self._at_work(caller, name):
            done = self._answering().lower(name, content)
            return done.to_dict(), done.content

    def judge(self, caller: str, name: str, content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parity and score of a module on the named rig, as dictionaries."""
        with self._at_work(caller, name):
            judged = self._answering().judge(name, content)
            return asdict(judged.parity), asdict(judged.score)

    def _answering(self) -> Modules:
        if self._modules is None:
            raise RigError("this run has no rig of modules")
        return self._modules


def start_rig(run_name: str, job: Job) -> Any:
    """The run's rig actor, on a node that offers `latency_rig`; an earlier driver's is replaced."""
    stop_rig(run_name)
    actor: Any = RigActor  # the decorator made it an actor class, which its annotations do not say
    return actor.options(
        name=actor_name(run_name), namespace=NAMESPACE, lifetime="detached", resources={RESOURCE: 1.0}
    ).remote({**job.model_dump(), "base_dir": str(job.folder)}, os.getcwd())


def stop_rig(run_name: str) -> None:
    """Stop the run's rig actor, if there is one."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(actor_name(run_name), namespace=NAMESPACE), no_restart=True)


def actor_name(run_name: str) -> str:
    """The actor's name in namespace `prunefront`."""
    return f"rig-{run_name}"


def remote_measure(run_name: str, dense: DenseForms) -> MeasureOn:
    """Measure by asking the run's rig actor, for use in a worker. Raises `RigError`, or `AttemptLost` without a rig."""

    def measure(rig: str, candidate: bytes, reference: bytes | None = None) -> Measurement:
        return Measurement.from_dict(_ask(run_name, "measure", rig, candidate, reference or dense.of(rig)))

    return measure


class RemoteModules:
    """Asks the run's rig actor; implements `search.module_rigs.Modules`, for use in a worker."""

    def __init__(self, run_name: str) -> None:
        self._run = run_name

    def measure(self, rig: str, candidate: bytes, reference: bytes) -> Measurement:
        return Measurement.from_dict(_ask(self._run, "measure", rig, candidate, reference))

    def lower(self, rig: str, content: bytes) -> Lowered:
        said, lowered = _ask(self._run, "lower", rig, content)
        return Lowered.from_dict(said, lowered)

    def judge(self, rig: str, content: bytes) -> Judged:
        parity, score = _ask(self._run, "judge", rig, content)
        return Judged(parity=ParityReport(**parity), score=Score(**score))


def _ask(run_name: str, method: str, rig: str, *arguments: Any) -> Any:
    """What the actor answers, however long others are before us and a rig that hung takes to be there again.

    Raises the rig's `EvaluationError`, a `RigError` for what it hung in each time, `AttemptLost` without an actor.
    """
    caller = uuid.uuid4().hex
    ours = 0.0
    try:
        actor = ray.get_actor(actor_name(run_name), namespace=NAMESPACE)
        answer = getattr(actor, method).remote(caller, rig, *arguments)
        while True:
            with contextlib.suppress(ray.exceptions.GetTimeoutError):
                return ray.get(answer, timeout=LOOK_S)
            with contextlib.suppress(ray.exceptions.GetTimeoutError):
                at: Any = ray.get(actor.running.remote(), timeout=LOOK_S)
                ours = max(ours, at[1]) if at is not None and at[0] == caller else ours
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, EvaluationError | UserError) else RigError(f"{rig}: {cause!r}") from None
    except (ray.exceptions.RayError, ValueError) as error:
        if ours > 0.9 * limit_of(rig):
            raise RigError(f"the rig {rig} did not answer within {limit_of(rig):g} s, {RETRIES + 1} times") from None
        # the driver has stopped it, or it died more often than Ray starts it again for one measurement
        raise AttemptLost(f"the rig of run {run_name} is gone: {one_line(error)}") from None


def limit_of(rig: str) -> float:
    """How many seconds one call of this rig may take."""
    return MODULES_TIMEOUT_S if measures_modules(rig) else TIMEOUT_S
