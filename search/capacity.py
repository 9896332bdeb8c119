"""How many trials a cluster can run at a time, those of its nodes included that an autoscaler would still start."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import ray

from search.errors import UserError
from search.job import Job


def concurrency(job: Job) -> int:
    """How many trials to keep going on the Ray that this process is in. Raises `UserError` when it cannot hold one."""
    return trials_at_once(job, ray.cluster_resources(), _in_reach())


def trials_at_once(job: Job, have: Mapping[str, float], reach: Mapping[str, float]) -> int:
    """The same of a cluster that has `have` now and may grow to `reach`, both {"CPU": ..., "GPU": ...}.

    Trials beyond what is there wait in Ray's line, and that is what makes an autoscaler start nodes.
    """
    fits = job.resources.max_concurrent or 10_000
    needs = {"CPU": ("cpus", job.resources.cpus_per_trial), "GPU": ("gpus", job.resources.gpus_per_trial)}
    for kind, (key, amount) in needs.items():
        most = max(have.get(kind, 0.0), reach.get(kind, 0.0))
        if amount > 0:
            if most < amount:
                raise UserError(
                    f"resources: a trial needs {amount:g} {kind}, Ray has {most:g}: "
                    f"lower resources.{key}_per_trial or add a node"
                )
            fits = min(fits, int(most / amount + 1e-9))
    return max(1, fits)


def _in_reach() -> dict[str, float]:
    """What the cluster has when its autoscaler has started all that it may; {} without one."""
    with contextlib.suppress(Exception):  # Ray's own bookkeeping, which a version may keep elsewhere
        from ray._private.state import state

        return {kind: float(most) for kind, most in (state.get_max_resources_from_cluster_config() or {}).items()}
    return {}
