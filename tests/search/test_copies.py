"""A run's copy at a URL: whatever was pushed when the driver's disk went is a run that goes on."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from search import copies
from search.atomic import StoreError
from search.copies import Copies, fetched, finished_at, reconcile
from search.errors import UserError
from search.lease import NAME, RUNS_OUT_S, Lease, Lost
from search.remote import Remote
from search.result import Baseline
from search.run_dir import next_run_dir
from search.sampler import StudySampler
from search.store import RunStore
from tests.search.fabricated import SPACE, publish, result_of

_BUCKETS = itertools.count()
BASELINE = Baseline(accuracy=0.98, accuracy_stderr=0.01, latency_ms=0.9, macs=9, params=8, weights=7, measurements={})


@pytest.fixture
def remote() -> Remote:
    return Remote(f"memory://copies-{next(_BUCKETS)}/runs/made-up")


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore.create(tmp_path / "made-up", "task: x:y\n", {"torch": "2", "made": str(tmp_path)})
    store.write_baseline(BASELINE)
    return store


def _sampler(store: RunStore) -> StudySampler:
    return StudySampler(f"sqlite:///{store.study_path.resolve()}", SPACE, sampler="random")


def _one_more(store: RunStore, sampler: StudySampler) -> int:
    proposal = sampler.ask()
    staged = store.attempt_dir(proposal.number, "worker")
    (staged / "weights.safetensors").write_bytes(b"w" * 100 * (1 + proposal.number))
    (staged / "plan.json").write_text(proposal.plan.to_json())
    store.commit(proposal.number, staged, result_of(proposal))
    sampler.tell(store.result(proposal.number))
    return proposal.number


def _until(holds: object, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_there(remote: Remote, number: int) -> bool:
    return number in finished_at(remote)


def test_trials_are_pushed_as_they_finish_and_the_lost_run_is_fetched_whole(
    store: RunStore, remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "EVERY_S", 0.01)
    said: list[str] = []
    sampler = _sampler(store)
    with Copies(store, remote, said.append):
        for _ in range(3):
            number = _one_more(store, sampler)
            _until(partial(_is_there, remote, number))
        left = sampler.ask()  # it runs when the disk is lost
    assert NAME not in remote.names()
    assert said == []
    before = {str(p.relative_to(store.root)): p.read_bytes() for p in store.root.rglob("*.*") if p.is_file()}
    shutil.rmtree(store.root)
    monkeypatch.chdir(tmp_path)
    root = fetched(remote.url, said.append)
    assert root == Path("runs/made-up")
    again = RunStore.open(root)
    assert reconcile(again, remote) == {0, 1, 2}
    after = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.*") if p.is_file()}
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} <= {"study.db"}
    assert again.problems() == []
    assert again.read_baseline() == BASELINE
    assert _sampler(again).unfinished() == [left]
    assert said == [f"fetching {remote.url} to runs/made-up"]


def test_a_trial_is_finished_there_only_with_its_whole_record(store: RunStore, remote: Remote) -> None:
    sampler = _sampler(store)
    numbers = [_one_more(store, sampler) for _ in range(2)]
    order: list[str] = []
    put = remote.put

    def noted(name: str, content: bytes | Path) -> None:
        order.append(name)
        put(name, content)

    remote.put = noted  # type: ignore[method-assign]
    Copies(store, remote, print).push()
    of_trials = [name for name in order if name.startswith("trials/")]
    assert [name.rpartition("/")[2] for name in of_trials] == ["plan.json", "weights.safetensors", "result.json"] * 2
    assert order.index("job.yaml") < order.index(of_trials[0])
    assert order[-1] == "study.db"
    record = remote.read("trials/1/result.json") or b""
    for torn in (b"", record[:-20], (remote.read("trials/0/result.json") or b"")):
        put("trials/1/result.json", torn)
        assert finished_at(remote) == {0}
    put("trials/1/result.json", record)
    assert finished_at(remote) == set(numbers)


def test_nothing_is_pushed_twice_and_nothing_before_there_is_a_dense_network(tmp_path: Path, remote: Remote) -> None:
    store = RunStore.create(tmp_path / "made-up", "task: x:y\n", {})
    copied = Copies(store, remote, print)
    copied.push()
    assert remote.files() == {}
    store.write_baseline(BASELINE)
    copied.push()
    assert set(remote.files()) == {"job.yaml", "environment.json", "baseline/baseline.json"}
    remote.remove("job.yaml")
    copied.push()
    assert remote.read("job.yaml") is None
    os.utime(store.job_path, ns=(1, 1))
    copied.push()
    assert remote.read("job.yaml") == b"task: x:y\n"


def test_a_copy_that_fails_is_said_once_and_made_later(
    store: RunStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "EVERY_S", 0.01)
    monkeypatch.setattr(copies, "AGAIN_S", 0.01)
    said: list[str] = []
    sampler = _sampler(store)
    put, tries = remote.put, itertools.count(1)
    with Copies(store, remote, said.append):

        def refused(name: str, content: bytes | Path) -> None:
            next(tries)
            raise StoreError(f"cannot write {name}: no route to host")

        remote.put = refused  # type: ignore[method-assign]
        number = _one_more(store, sampler)
        _until(lambda: next(tries) > 5)
        remote.put = put  # type: ignore[method-assign]
        _until(lambda: number in finished_at(remote))
        _until(lambda: len(said) == 2)
    assert "no route to host: the search goes on, and they are tried again" in said[0]
    assert said[1] == f"copies to {remote.url} go on"


def test_what_is_left_when_a_search_ends_is_told_and_copied_by_the_next(store: RunStore, remote: Remote) -> None:
    said: list[str] = []
    sampler = _sampler(store)
    put = remote.put
    with Copies(store, remote, said.append):
        number = _one_more(store, sampler)

        def refused(name: str, content: bytes | Path) -> None:
            raise StoreError(f"cannot write {name}: quota")

        remote.put = refused  # type: ignore[method-assign]
    assert said[-1].startswith("not all is copied (cannot write ")
    assert said[-1].endswith(f": prunefront search {store.root} copies the rest")
    remote.put = put  # type: ignore[method-assign]
    with Copies(store, remote, said.append):
        assert number in finished_at(remote)


def test_trials_that_finished_elsewhere_are_fetched(store: RunStore, remote: Remote, tmp_path: Path) -> None:
    sampler = _sampler(store)
    _one_more(store, sampler)
    with Copies(store, remote, print):
        pass
    other = RunStore(Path(shutil.copytree(store.root, tmp_path / "elsewhere" / "made-up")))
    there = _one_more(other, _sampler(other))
    with Copies(other, remote, print):
        pass
    (store.attempt_dir(there, "mine") / "plan.json").write_text("{}")  # begun here too
    assert reconcile(store, remote) == {0, there}
    assert store.result(there) == other.result(there)
    assert list(store.partial_dir.iterdir()) == []


def test_two_runs_and_two_histories_are_refused_by_name(store: RunStore, remote: Remote, tmp_path: Path) -> None:
    proposal = _sampler(store).ask()
    with Copies(store, remote, print):
        publish(store, result_of(proposal))
    other = RunStore(Path(shutil.copytree(store.root, tmp_path / "other" / "made-up")))
    (other.trial_dir(0) / "result.json").unlink()
    other.trial_dir(0).rmdir()
    publish(other, result_of(proposal, accuracy=0.123))
    with pytest.raises(StoreError, match=rf"trial 0 at {remote.url} is another than in {other.root}: a driver went on"):
        Copies(other, remote, print).__enter__()
    assert NAME not in remote.names()
    third = RunStore.create(tmp_path / "third" / "made-up", "task: x:y\n", {"torch": "1"})
    with pytest.raises(StoreError, match=r"are different runs: choose another --name"):
        reconcile(third, remote)


def test_what_is_no_run_is_refused(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"runs/made-up is no run: there is no job\.yaml"):
        fetched(remote.url, print)
    assert not (tmp_path / "runs").exists()


def test_names_of_copies_are_taken(tmp_path: Path) -> None:
    assert next_run_dir(tmp_path, None, "digits", ["digits-007", "other"]).name == "digits-008"
    with pytest.raises(StoreError, match=r"run mine exists already where copies go"):
        next_run_dir(tmp_path, "mine", "digits", ["mine"])


def test_a_driver_that_was_taken_for_dead_copies_nothing_more(
    store: RunStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "EVERY_S", 0.01)
    monkeypatch.setattr(copies, "RENEWED_S", 0.01)
    said: list[str] = []
    sampler = _sampler(store)
    with Copies(store, remote, said.append):
        other = Lease(remote)
        other._write()
        _until(lambda: any("this one copies nothing more" in line for line in said))
        number = _one_more(store, sampler)
    assert number not in finished_at(remote)
    assert remote.read(NAME) is not None
    assert said[-1].endswith("nothing more was copied there")
    other.renew()


class TestLease:
    def _note(self, remote: Remote, **changes: object) -> None:
        note = {"token": "other", "pid": 1, "host": "elsewhere", "heard": time.time(), **changes}
        remote.put(NAME, json.dumps(note).encode())

    def test_a_second_driver_is_refused_by_name_of_the_first(self, remote: Remote) -> None:
        self._note(remote, pid=4711)
        with pytest.raises(StoreError, match=r"is being driven by pid 4711 on host elsewhere, heard of \d+ s ago"):
            Lease(remote).take()

    def test_one_that_was_not_heard_of_is_given_up(self, remote: Remote) -> None:
        self._note(remote, heard=time.time() - RUNS_OUT_S - 1)
        lease = Lease(remote)
        lease.take()
        assert b"elsewhere" not in (remote.read(NAME) or b"")
        lease.give_back()
        assert remote.read(NAME) is None

    def test_one_that_died_on_this_machine_is_given_up_at_once(self, remote: Remote) -> None:
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            pass
        self._note(remote, pid=process.pid, host=socket.gethostname())
        Lease(remote).take()
        self._note(remote, pid=os.getppid(), host=socket.gethostname())
        with pytest.raises(StoreError, match="is being driven by"):
            Lease(remote).take()

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 3000, b'{"token": 1}', b"\xff\xfe"])
    def test_a_note_that_nobody_wrote_holds_nothing(self, remote: Remote, content: bytes) -> None:
        remote.put(NAME, content)
        Lease(remote).take()

    def test_a_driver_that_was_taken_for_dead_learns_of_its_successor(self, remote: Remote) -> None:
        lease = Lease(remote)
        lease.take()
        self._note(remote)
        with pytest.raises(Lost, match="was taken over by a driver on host elsewhere"):
            lease.renew()
        lease.give_back()
        assert b"elsewhere" in (remote.read(NAME) or b"")
