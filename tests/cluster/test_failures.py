"""Each failure of docs/reliability.md, on a real cluster of three nodes; `make test-cluster`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict

import pytest

from tests.cluster import failures
from tests.cluster.failures import Recovery, Skipped
from tests.cluster.ground import Ground
from tests.cluster.nodes import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with Cluster() as cluster:
        yield Ground(cluster, tmp_path_factory.mktemp("ground"))


def _mends(failure: Callable[[Ground], Recovery], ground: Ground) -> None:
    try:
        recovery = failure(ground)
    except Skipped as why:
        pytest.skip(str(why))
    print(json.dumps({"failure": failure.__name__, **asdict(recovery)}))
    assert recovery.seconds >= 0.0


def test_a_killed_trial_worker_costs_the_epoch_it_was_in(ground: Ground) -> None:
    _mends(failures.worker_killed, ground)


def test_trials_of_a_node_that_is_told_to_end_go_on_elsewhere(ground: Ground) -> None:
    _mends(failures.node_terminated, ground)


def test_trials_of_a_node_that_is_switched_off_go_on_elsewhere(ground: Ground) -> None:
    _mends(failures.node_killed, ground)


def test_a_frozen_node_that_comes_back_overwrites_no_record(ground: Ground) -> None:
    _mends(failures.node_frozen, ground)


def test_a_node_that_is_cut_off_and_comes_back_overwrites_no_record(ground: Ground) -> None:
    _mends(failures.network_cut, ground)


def test_a_rig_killed_while_it_measures_is_started_again_and_the_trial_waits(ground: Ground) -> None:
    _mends(failures.rig_killed, ground)


def test_a_rig_that_hangs_is_started_again_and_the_trial_waits(ground: Ground) -> None:
    _mends(failures.rig_hangs, ground)


def test_a_search_whose_driver_was_killed_goes_on(ground: Ground) -> None:
    _mends(failures.driver_killed, ground)


def test_a_search_whose_head_was_killed_says_so_and_goes_on_when_there_is_one_again(ground: Ground) -> None:
    _mends(failures.head_killed, ground)


def test_a_full_disk_ends_the_search_in_one_line_and_it_goes_on_when_there_is_room(ground: Ground) -> None:
    _mends(failures.storage_full, ground)


def test_a_disk_that_becomes_read_only_ends_the_search_in_one_line_and_it_goes_on_later(ground: Ground) -> None:
    _mends(failures.storage_read_only, ground)


def test_a_search_whose_disk_is_lost_goes_on_elsewhere_from_its_copies(ground: Ground) -> None:
    _mends(failures.disk_lost, ground)
