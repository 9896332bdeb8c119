"""The rig as a named Ray actor: one measurement at a time on its device, whoever asks."""

from __future__ import annotations

import contextlib
from typing import Any

import ray

from evaluators import Measurement
from evaluators.errors import EvaluationError, RigError, one_line
from search.alignment import open_rig
from search.errors import AttemptLost
from search.job import Job, RigSpec
from search.trial import MeasureOn

#: The custom resource that a machine offers which may measure.
RESOURCE = "latency_rig"
NAMESPACE = "prunefront"
#: A measurement takes seconds; a rig that is silent this long is lost, and the trial fails with that reason.
TIMEOUT_S = 300.0


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=2)
class RigActor:
    """Measures pairs of ONNX models, in the order they come in; holds no state that a restart could lose."""

    def __init__(self, rigs: list[dict[str, Any]]) -> None:
        self._rigs = {r["name"]: (open_rig(RigSpec(**r)), r["batch"]) for r in rigs}

    def measure(self, name: str, candidate: bytes, reference: bytes) -> dict[str, Any]:
        """One measurement on the named rig, as `Measurement.to_dict()`."""
        rig, batch = self._rigs[name]
        return rig.measure(candidate, reference, batch=batch).to_dict()


def start_rig(run_name: str, job: Job) -> Any:
    """The run's rig actor, on a node that offers `latency_rig`; an earlier driver's is replaced."""
    stop_rig(run_name)
    actor: Any = RigActor  # the decorator made it an actor class, which its annotations do not say
    return actor.options(
        name=actor_name(run_name), namespace=NAMESPACE, lifetime="detached", resources={RESOURCE: 1.0}
    ).remote([rig.model_dump() for rig in job.rigs])


def stop_rig(run_name: str) -> None:
    """Stop the run's rig actor, if there is one."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(actor_name(run_name), namespace=NAMESPACE), no_restart=True)


def actor_name(run_name: str) -> str:
    """The actor's name in namespace `prunefront`."""
    return f"rig-{run_name}"


def remote_measure(run_name: str, dense: bytes) -> MeasureOn:
    """Measure by asking the run's rig actor, for use in a worker. Raises `RigError`, or `AttemptLost` without a rig."""

    def measure(rig: str, candidate: bytes, reference: bytes | None = None) -> Measurement:
        try:
            actor = ray.get_actor(actor_name(run_name), namespace=NAMESPACE)
            measured: Any = ray.get(actor.measure.remote(rig, candidate, reference or dense), timeout=TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            raise RigError(f"the rig {rig} did not answer within {TIMEOUT_S:g} s") from None
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, EvaluationError) else RigError(f"{rig}: {cause!r}") from None
        except (ray.exceptions.RayError, ValueError) as error:
            # the driver has stopped it, or it died more often than Ray starts it again for one measurement
            raise AttemptLost(f"the rig of run {run_name} is gone: {one_line(error)}") from None
        return Measurement.from_dict(measured)

    return measure
