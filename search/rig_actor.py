"""The rig as a named Ray actor: one measurement at a time on its device, whoever asks."""

from __future__ import annotations

import contextlib
import os
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

    def __init__(self, job: dict[str, Any], cwd: str) -> None:
        with contextlib.suppress(OSError):  # on another machine there may be no such folder
            os.chdir(cwd)  # the user's code may name files relative to where the search was started
        asked = Job.model_validate(job)
        self._rigs = {spec.name: (open_rig(spec), spec.batch) for spec in of_files(asked)}
        self._modules = local_modules(asked)

    def measure(self, name: str, candidate: bytes, reference: bytes) -> dict[str, Any]:
        """One measurement on the named rig, as `Measurement.to_dict()`."""
        if name not in self._rigs:
            return self._answering().measure(name, candidate, reference).to_dict()
        rig, batch = self._rigs[name]
        return rig.measure(candidate, reference, batch=batch).to_dict()

    def lower(self, name: str, content: bytes) -> tuple[dict[str, Any], bytes]:
        """A module lowered for the named rig: `Lowered.to_dict()` and its payload."""
        done = self._answering().lower(name, content)
        return done.to_dict(), done.content

    def judge(self, name: str, content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parity and score of a module on the named rig, as dictionaries."""
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
    """What the actor answers. Raises the rig's `EvaluationError`, or `AttemptLost` where there is no actor."""
    timeout = MODULES_TIMEOUT_S if measures_modules(rig) else TIMEOUT_S
    try:
        actor = ray.get_actor(actor_name(run_name), namespace=NAMESPACE)
        return ray.get(getattr(actor, method).remote(rig, *arguments), timeout=timeout)
    except ray.exceptions.GetTimeoutError:
        raise RigError(f"the rig {rig} did not answer within {timeout:g} s") from None
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, EvaluationError | UserError) else RigError(f"{rig}: {cause!r}") from None
    except (ray.exceptions.RayError, ValueError) as error:
        # the driver has stopped it, or it died more often than Ray starts it again for one measurement
        raise AttemptLost(f"the rig of run {run_name} is gone: {one_line(error)}") from None
