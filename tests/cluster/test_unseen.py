"""A search whose run folder no worker sees: all that they need comes from the driver, and what they make goes back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from search.store import RunStore
from tests.cluster import failures
from tests.cluster.failures import Recovery, Skipped
from tests.cluster.ground import TRIALS, Ground, Run, kill
from tests.cluster.machines import hidden
from tests.cluster.nodes import Cluster

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
        yield Ground(cluster, tmp_path_factory.mktemp("ground"), storage)


def require_unseen(run: Run, pids: Iterable[int]) -> None:
    """As the kernel shows the disk to these processes."""
    for pid in pids:
        seen = Path(f"/proc/{pid}/root{run.root.parent}")
        assert seen.is_dir()
        assert not list(seen.iterdir())


def test_trials_of_machines_that_do_not_see_the_run_folder_end_as_elsewhere(ground: Ground) -> None:
    run = ground.begin()
    with run.search() as driver:
        require_unseen(run, run.held(driver).values())
        run.open_gate()
        assert driver.wait() == 0, driver.text
    assert "2 of 2 nodes that train do not see the run folder" in driver.text
    run.require_undisturbed()


@pytest.mark.parametrize(
    "failure",
    [failures.node_killed, failures.node_frozen, failures.network_cut, failures.driver_killed],
    ids=lambda failure: failure.__name__,
)
def test_what_fails_mends_as_where_all_see_the_run_folder(
    failure: Callable[[Ground], Recovery], ground: Ground
) -> None:
    try:
        recovery = failure(ground)  # leaves its run checked: no finished trial lost, no epoch trained twice
    except Skipped as why:
        pytest.skip(str(why))
    print(json.dumps({"failure": failure.__name__, **asdict(recovery)}))
    assert recovery.seconds >= 0.0


def test_a_trial_in_two_processes_that_do_not_see_the_run_folder_ends(ground: Ground) -> None:
    """The second process fetches for itself: the weights that a plan begins with, and the checkpoint of a lost one."""
    run = ground.begin()
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
