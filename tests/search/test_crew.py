"""A search whose trials train in two processes each, on a real cluster of one machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from search.job_sections import Resources
from search.result import TrialResult
from search.store import RunStore
from tests.search.tiny.processes import search
from tests.search.tiny.storm import job_file
from tests.search.tiny.tiny_task import HOLD

#: Of accuracies on 512 or fewer samples: sums in another order may turn a few answers.
CLOSE = 0.03


@pytest.mark.parametrize(
    ("asked", "processes", "of_each"),
    [
        ({}, 1, {"CPU": 1.0, "GPU": 0.0}),
        ({"gpus_per_trial": 0.25}, 1, {"CPU": 1.0, "GPU": 0.25}),
        ({"gpus_per_trial": 1.0}, 1, {"CPU": 1.0, "GPU": 1.0}),
        ({"gpus_per_trial": 4.0, "cpus_per_trial": 8.0}, 4, {"CPU": 2.0, "GPU": 1.0}),
        ({"gpus_per_trial": 2.0}, 2, {"CPU": 0.5, "GPU": 1.0}),
        ({"processes_per_trial": 2, "cpus_per_trial": 2.0}, 2, {"CPU": 1.0, "GPU": 0.0}),
    ],
)
def test_a_process_for_each_gpu_or_as_many_as_are_asked_for(
    asked: dict[str, Any], processes: int, of_each: dict[str, float]
) -> None:
    resources = Resources(**asked)
    assert resources.processes == processes
    assert resources.of_a_process() == of_each


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"gpus_per_trial": 1.5}, "gpus_per_trial must be a whole number above 1, got 1.5: try 1"),
        ({"gpus_per_trial": 0.5, "processes_per_trial": 2}, "each process has a GPU of its own, or none"),
        ({"gpus_per_trial": 4.0, "processes_per_trial": 2}, "processes_per_trial 2 with gpus_per_trial 4"),
        ({"cpus_per_trial": 3.0, "processes_per_trial": 2}, "a multiple of its 2 processes, got 3: try 2"),
    ],
)
def test_what_cannot_be_divided_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        Resources(**asked)
    (only,) = error.value.errors()
    assert said in only["msg"]


def _searched(folder: Path, name: str, processes: int) -> dict[int, TrialResult]:
    resources = {"max_concurrent": 1, "processes_per_trial": processes}
    job = job_file(folder, sections={"search": {"trials": 2}, "resources": resources})
    with search(job, "--storage", folder, "--name", name, cwd=folder) as driver:
        assert driver.wait() == 0, driver.text
        assert driver.session() == []
    return RunStore.open(folder / name).results()


@pytest.mark.ray
@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    alone, together = _searched(tmp_path, "one", 1), _searched(tmp_path, "two", 2)
    assert len(alone) == len(together) == 2
    for number, result in alone.items():
        other = together[number]
        assert (result.status, other.status) == ("complete", "complete"), other.reason
        assert other.requested == result.requested
        assert other.epochs == result.epochs
        assert other.macs == result.macs
        assert result.accuracy is not None
        assert other.accuracy == pytest.approx(result.accuracy, abs=CLOSE)
        for (rung, accuracy), (other_rung, other_accuracy) in zip(result.rungs, other.rungs, strict=True):
            assert rung == other_rung
            assert other_accuracy == pytest.approx(accuracy, abs=CLOSE)


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_goes_on_when_one_of_its_processes_is_killed(tmp_path: Path) -> None:
    resources = {"max_concurrent": 1, "processes_per_trial": 2}
    job = job_file(tmp_path, sections={"search": {"trials": 2}, "resources": resources})
    with search(job, "--storage", tmp_path, "--name", "run", cwd=tmp_path) as driver:
        # the dense network is trained, Ray is about to start
        driver.wait_until((tmp_path / "run" / "baseline" / "baseline.json").exists)
        (tmp_path / HOLD).touch()
        log = tmp_path / "epochs.log"
        dense = log.read_text()
        # both wait within the third step, with a checkpoint of the one before
        driver.wait_until(lambda: '"epoch": 1' in log.read_text().replace(dense, ""))
        (helper,) = driver.session("Helper")
        os.kill(helper, signal.SIGKILL)
        (tmp_path / HOLD).unlink()
        assert driver.wait() == 0, driver.text
    results = RunStore.open(tmp_path / "run").results()
    assert [r.status for r in results.values()] == ["complete"] * 2, [r.reason for r in results.values()]
