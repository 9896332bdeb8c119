"""How many trials at a time: what is there, what an autoscaler may add, and what the job allows."""

from __future__ import annotations

import pytest

from search.capacity import trials_at_once
from search.errors import UserError
from search.job import Job, Resources


def job(cpus: float = 1.0, gpus: float = 0.0, most: int | None = None) -> Job:
    return Job(task="a:b", resources=Resources(cpus_per_trial=cpus, gpus_per_trial=gpus, max_concurrent=most))


@pytest.mark.parametrize(
    ("asked", "have", "reach", "fits"),
    [
        (job(), {"CPU": 4}, {}, 4),
        (job(cpus=2), {"CPU": 5}, {}, 2),
        (job(most=3), {"CPU": 8}, {}, 3),
        (job(cpus=2, gpus=0.25), {"CPU": 8, "GPU": 1}, {}, 4),
        (job(gpus=0.1), {"CPU": 100, "GPU": 3}, {}, 30),  # 3 / 0.1 is a little less than 30
        (job(cpus=2, gpus=0.25, most=32), {"CPU": 8, "GPU": 1}, {"CPU": 64, "GPU": 8}, 32),
        (job(gpus=1), {"CPU": 2}, {"CPU": 64, "GPU": 8}, 8),  # no card yet: the first trial makes one start
        (job(cpus=2), {"CPU": 8}, {"CPU": 0}, 4),  # an autoscaler that knows of fewer than are there
    ],
)
def test_it_fits(asked: Job, have: dict[str, float], reach: dict[str, float], fits: int) -> None:
    assert trials_at_once(asked, have, reach) == fits


def test_one_that_never_fits() -> None:
    with pytest.raises(UserError, match=r"a trial needs 2 GPU, Ray has 1: lower resources.gpus_per_trial or add"):
        trials_at_once(job(gpus=2), {"CPU": 8, "GPU": 1}, {"GPU": 1})
