"""The task's data once on each node: put into Ray's object store by the driver, read there by every worker, not copied.

Only data that are resident `Arrays` travel so; what a task reads while it trains (a Dataset, a function) each worker
process opens for itself, once and not for each trial. The task's functions travel with the arrays, as Ray sends any
function: in memory between the processes of one cluster, never written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import cloudpickle

from search.job import Job
from search.tasks.base import PreparedTask
from search.tasks.data import ArraysEval, ArraysTrain
from search.tasks.loading import import_task_module

#: What of a task besides its arrays travels to each worker; more is data that a function of the task holds on to.
MOST_BESIDE = 64 * 2**20
#: Share of a node's object store that the data may fill: the rest is for what trials and the rig send each other.
SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Packed:
    """A task in two parts: what each worker unpacks, and the memory that all of them read."""

    task: bytes
    arrays: list[NDArray[np.uint8]]

    @property
    def nbytes(self) -> int:
        """Of both parts."""
        return len(self.task) + sum(array.nbytes for array in self.arrays)


def pack(task: PreparedTask) -> Packed | str:
    """The task, its arrays left where they are; or in a few words why each worker must load it for itself."""
    train, val, test = task.train_source, task.val_source, task.test_source
    if not (isinstance(train, ArraysTrain) and isinstance(val, ArraysEval) and isinstance(test, ArraysEval | None)):
        return "its data are not all Arrays"
    # not the training data from before a validation part was held out: all of it once more
    own = replace(task.task, train=train.arrays, val=val.arrays, test=None if test is None else test.arrays)
    whole = replace(task, task=own)
    buffers: list[Any] = []
    try:
        content = cloudpickle.dumps(whole, protocol=5, buffer_callback=buffers.append)
    except Exception as error:  # a function of the user's may hold on to anything
        return f"it cannot be sent ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    if len(content) > MOST_BESIDE:
        return f"its functions hold on to {len(content) / 2**20:.0f} MiB of data: give those as Arrays"
    return Packed(content, [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers])


def unpack(packed: Packed, job: Job) -> PreparedTask:
    """The task on the memory of `packed`; the user's module is imported first, where it lies beside the job."""
    import_task_module(job.task, job.folder)
    task = cloudpickle.loads(packed.task, buffers=packed.arrays)
    assert isinstance(task, PreparedTask)
    return task


def put_task(task: PreparedTask) -> tuple[Any, str | None]:
    """(reference to the packed task, None), or (None, why each worker loads its data for itself)."""
    packed = pack(task)
    if isinstance(packed, str):
        return None, packed
    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    if packed.nbytes > SHARE * min(stores, default=0.0):
        return None, (
            f"its {packed.nbytes / 2**30:.1f} GiB are more than Ray's object store holds beside the rest "
            f"({min(stores, default=0.0) / 2**30:.1f} GiB a node): start Ray with a larger --object-store-memory"
        )
    return ray.put(packed), None


def get_task(reference: Any, job: Job) -> PreparedTask:
    """The task that the driver put, its arrays read where they lie on this node. Raises `RayError` when it is gone."""
    return unpack(ray.get(reference), job)
