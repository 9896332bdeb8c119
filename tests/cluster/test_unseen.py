"""A search whose run folder no worker sees: all that they need comes from the driver, and what they make goes back."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

from search.store import RunStore
from tests.cluster.ground import TRIALS, Ground, Run, kill
from tests.cluster.machines import hidden
from tests.cluster.nodes import Cluster, wait_until_gone

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is empty for the workers."""
    return tmp_path_factory.mktemp("unseen")


@pytest.fixture(scope="module")
def ground(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    hides = hidden(storage)
    if not hides:
        pytest.skip("hiding folders from a process needs root")
    with Cluster(hides=hides) as cluster:
        yield Ground(cluster, tmp_path_factory.mktemp("ground"))


def require_unseen(run: Run, pids: Iterable[int]) -> None:
    """As the kernel shows the disk to these processes."""
    for pid in pids:
        seen = Path(f"/proc/{pid}/root{run.root.parent}")
        assert seen.is_dir()
        assert not list(seen.iterdir())


def test_trials_of_machines_that_do_not_see_the_run_folder_end_as_elsewhere(ground: Ground, storage: Path) -> None:
    run = ground.begin(storage / "run")
    with run.search() as driver:
        require_unseen(run, run.held(driver).values())
        run.open_gate()
        assert driver.wait() == 0, driver.text
    assert "2 of 2 nodes that train do not see the run folder" in driver.text
    run.require_undisturbed()


def test_a_trial_of_such_a_machine_goes_on_elsewhere_from_its_checkpoint(ground: Ground, storage: Path) -> None:
    run = ground.begin(storage / "run-2")
    with run.search() as driver:
        held = run.held(driver)
        node, lost = run.node_and_trials(held)
        failed = time.time()
        node.signal(signal.SIGKILL)
        wait_until_gone(list(lost.values()))
        run.open_gate()
        again = run.until_trained_on(driver, lost)
        assert driver.wait() == 0, driver.text
    assert again > failed
    run.require_undisturbed()  # no epoch that was trained to its end is trained again


def test_a_driver_that_was_killed_goes_on(ground: Ground, storage: Path) -> None:
    run = ground.begin(storage / "run-3")
    with run.search() as driver:
        held = run.held(driver)
        driver.end(signal.SIGKILL)
        driver.wait()
    with run.search() as driver:
        run.open_gate()
        run.until_trained_on(driver, held)
        assert driver.wait() == 0, driver.text
    run.require_undisturbed()


def test_a_trial_in_two_processes_that_do_not_see_the_run_folder_ends(ground: Ground, storage: Path) -> None:
    """The second process fetches for itself: the weights that a plan begins with, and the checkpoint of a lost one."""
    run = ground.begin(storage / "run-4")
    job = yaml.safe_load((run.root / "job.yaml").read_text())
    job["search"]["inherit"] = True
    job["resources"] |= {"max_concurrent": 1, "processes_per_trial": 2, "cpus_per_trial": 2.0}
    (run.root / "job.yaml").write_text(yaml.safe_dump(job))
    with run.search() as driver:
        run.held(driver, 1)
        (helper,) = (pid for node in ground.cluster.workers for pid in node.pids_of("Helper"))
        require_unseen(run, [helper])
        kill([helper])
        run.open_gate()
        assert driver.wait() == 0, driver.text
    results = RunStore.open(run.root).results()
    assert [result.status for result in results.values()] == ["complete"] * TRIALS
    assert [result.started_from for result in results.values()] == [None, 0, None]
    run.require_whole()
