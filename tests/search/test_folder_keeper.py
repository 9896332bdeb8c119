"""The run folder's keeper as an actor of a real cluster, asked by a worker that is taken not to see the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from search.driver import SCRATCH
from search.errors import AttemptLost
from search.folder_keeper import RemoteKeeper, Where, found
from search.job import Job
from search.mirrored_store import MirroredStore
from search.nodes import blind
from search.ray_session import own_ray
from search.record import result_text
from search.result import TrialResult
from search.store import RunStore, StoreError

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_ray(tmp_path_factory.mktemp("ray"), Job(task="search.tasks.digits:task")):
        yield


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    made = RunStore.create(tmp_path / "run", "task: search.tasks.digits:task\n", {"torch": "2.13"})
    (made.baseline_dir / "weights.safetensors").write_bytes(bytes(1000))
    (made.root / SCRATCH).mkdir()
    return made


def unseen(where: Where) -> Where:
    """As a machine finds it that has another folder at this path."""
    return replace(where, mark="0123456789abcdef")


def failed(number: int) -> TrialResult:
    return TrialResult(number=number, status="failed", plan_digest="d", seed=0, reason="NaN")


def test_a_worker_that_does_not_see_the_folder_works_with_it_through_the_keeper(store: RunStore) -> None:
    said: list[str] = []
    with found(store.root, joined=True, say=said.append) as where:
        assert said == []
        assert type(where.open()) is RunStore
        here = unseen(where).open()
        assert isinstance(here, MirroredStore)
        assert here is unseen(where).open()  # filled once a process
        assert here.environment() == {"torch": "2.13"}
        staged = here.attempt_dir(0, "a1")
        here.checkpoint_path(0).write_bytes(bytes(2**20))
        here.keep_checkpoint(0)
        assert store.checkpoint_path(0).stat().st_size == 2**20
        with pytest.raises(StoreError, match="an attempt's id"):
            RemoteKeeper(str(where.keeper)).begin(0, "../a")
        with pytest.raises(ValueError, match="a worker sends"):
            RemoteKeeper(str(where.keeper)).commit(0, "a1", {"x.py": b""}, result_text(failed(0)))
        with pytest.raises(ValueError, match="a worker asks for begin"):
            RemoteKeeper(str(where.keeper))._ask("_most")

        ray.kill(ray.get_actor(str(where.keeper)), no_restart=False)  # it has no state that could be lost
        (staged / "model.onnx").write_bytes(b"onnx")
        assert here.commit(0, staged, failed(0))
        assert not here.commit(0, here.attempt_dir(0, "a2"), failed(0))
        assert (store.trial_dir(0) / "model.onnx").read_bytes() == b"onnx"
        assert here.result(0) == store.result(0) == failed(0)
    with pytest.raises(AttemptLost, match="the driver of this run is gone"):
        here.attempt_dir(1, "a1")
    with pytest.raises(AttemptLost, match="the driver of this run is gone"):
        replace(unseen(where), keeper="folder-of-nobody").open()
    here.note_loss(1, "nobody hears it")


def test_a_machine_without_room_for_its_copies_is_told_by_its_name(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> Path:
        (tmp_path / "a file").touch()
        return tmp_path / "a file"

    monkeypatch.setattr("search.folder_keeper.own_folder", full)
    with found(store.root, joined=True, say=lambda line: None) as where:
        with pytest.raises(StoreError):
            unseen(where).open(3)
        assert (store.last_loss(3) or "").startswith(f"StoreError: cannot make {tmp_path}")
        assert (store.last_loss(3) or "").endswith(f"(on {os.uname().nodename})")


def test_nodes_that_do_not_see_the_folder_are_told_once(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.folder_keeper.blind", lambda root, mark, say: blind(root, "of-another-disk", say))
    said: list[str] = []
    with found(store.root, joined=True, say=said.append):
        (line,) = said
    assert line.startswith("1 of 1 nodes that train do not see the run folder (")
    assert line.endswith("): what they need and make of it goes through the network")


def test_on_the_drivers_machine_alone_there_is_no_keeper(store: RunStore) -> None:
    said: list[str] = []
    with found(store.root, joined=False, say=said.append) as where:
        assert type(unseen(where).open()) is RunStore
    assert said == []
