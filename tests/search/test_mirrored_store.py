"""A run folder that a worker does not see: what comes from it, what goes back, and what is refused on the way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from admm.bounded import HEADER_BYTES
from admm.compact import PLAN_FILE, WEIGHTS_FILE
from search import mirrored_store
from search.atomic import StoreError
from search.errors import AttemptLost
from search.job_file import load_job
from search.mirrored_store import MirroredStore
from search.result import TrialResult
from search.served_folder import ServedFolder
from search.store import MODEL_NAME, TRACE_NAME, RunStore
from search.trial import Bench, Progress, Start, TrialSpec
from search.worker import TrialRun
from tests.search.test_worker import PLAN, make_bench

FILES = (MODEL_NAME, PLAN_FILE, WEIGHTS_FILE, TRACE_NAME)
#: Begins with the weights of `PLAN`, of which it removes more.
FURTHER = type(PLAN)({"0": {"filter": 0.5}, "3": {"filter": 0.5, "channel": 0.75, "unstructured": 0.5}})


class Far(ServedFolder):
    """The driver's side in this process; `before` is done before a call."""

    def __init__(self, store: RunStore) -> None:
        super().__init__(store)
        self.before: dict[str, Callable[[], None]] = {}
        self.sent: list[int] = []

    def keep_checkpoint(self, number: int, content: bytes) -> bool:
        self.sent.append(len(content))
        self.before.get("keep_checkpoint", lambda: None)()
        return super().keep_checkpoint(number, content)

    def commit(self, number: int, attempt: str, files: Mapping[str, bytes], result: str) -> bool:
        self.before.get("commit", lambda: None)()
        return super().commit(number, attempt, files, result)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return make_bench()


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory, bench: Bench) -> RunStore:
    """A run folder with trial 0, which a worker has made that sees it."""
    store = RunStore.create(tmp_path_factory.mktemp("direct") / "run", "task: made:up\n", {})
    assert finish(TrialRun(bench, spec(), store=store)).status == "complete"
    return store


@pytest.fixture
def there(tmp_path: Path, bench: Bench) -> RunStore:
    """The driver's run folder."""
    store = RunStore.create(tmp_path / "there" / "run", bench.job.to_yaml(), {"torch": "2.13"})
    save_file({n: t.contiguous() for n, t in bench.dense.state_dict().items()}, store.baseline_dir / WEIGHTS_FILE)
    store.write_baseline(bench.baseline)
    store.write_profile(bench.profile.to_dict())
    return store


@pytest.fixture
def far(there: RunStore) -> Far:
    return Far(there)


@pytest.fixture
def here(far: Far, tmp_path: Path) -> MirroredStore:
    """What a worker has of it."""
    return MirroredStore(tmp_path / "here", "run", far)


def other(far: Far, tmp_path: Path, name: str = "other") -> MirroredStore:
    """Another worker."""
    return MirroredStore(tmp_path / name, "run", far)


def spec(number: int = 0, **more: object) -> TrialSpec:
    return replace(TrialSpec(number=number, plan=PLAN, params={"0/filter": 4}, seed=0), twins=(), **more)  # type: ignore[arg-type]


def finish(run: TrialRun) -> TrialResult:
    while run.result is None:
        run.step()
    return run.result


def published(store: RunStore, direct: RunStore) -> None:
    """Trial 0 as another worker ends it."""
    staged = store.attempt_dir(0, "other")
    for name in FILES:
        shutil.copy(direct.trial_dir(0) / name, staged)
    assert store.commit(0, staged, direct.result(0))


def until(run: TrialRun, phase: str, count: int = 1) -> Progress:
    while True:
        progress = run.step()
        assert progress.result is None
        count -= progress.phase == phase
        if not count:
            return progress


def require_same_trial(one: Path, two: Path) -> None:
    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


class TestOpening:
    def test_brings_what_a_bench_is_opened_with(self, here: MirroredStore, there: RunStore, bench: Bench) -> None:
        assert load_job(here.job_path).to_yaml() == bench.job.to_yaml()
        assert here.environment() == {"torch": "2.13"}
        assert here.read_baseline() == bench.baseline
        assert here.read_profile() == there.read_profile()
        weights = (there.baseline_dir / WEIGHTS_FILE).read_bytes()
        assert (here.baseline_dir / WEIGHTS_FILE).read_bytes() == weights

    def test_a_job_names_its_folder_from_everywhere(self, there: RunStore, tmp_path: Path) -> None:
        there.job_path.write_text("task: made:up\nbase_dir: ../code\n")
        mirror = MirroredStore(tmp_path / "far" / "away", "run", Far(there))
        assert load_job(mirror.job_path).folder == (tmp_path / "there" / "code").resolve()

    @pytest.mark.parametrize("place", ["../escaped", "trials/0/result.json", "baseline/../../escaped", "/tmp/escaped"])
    def test_refuses_a_file_for_any_other_place(self, far: Far, tmp_path: Path, place: str) -> None:
        far.opening = lambda: {place: b"x"}  # type: ignore[method-assign]
        with pytest.raises(StoreError):
            MirroredStore(tmp_path / "deep" / "here", "run", far)
        assert not list(tmp_path.rglob("escaped"))
        assert not Path("/tmp/escaped").exists()


class TestTrial:
    def test_is_the_same_as_one_in_the_folder_itself(
        self, here: MirroredStore, there: RunStore, bench: Bench, direct: RunStore
    ) -> None:
        assert finish(TrialRun(bench, spec(), store=here)) == there.result(0)
        assert replace(there.result(0), seconds=0.0) == replace(direct.result(0), seconds=0.0)
        require_same_trial(there.trial_dir(0), direct.trial_dir(0))
        assert not list(there.partial_dir.iterdir())
        assert not list(here.partial_dir.iterdir())

    def test_goes_on_with_another_worker_from_its_checkpoint(
        self, here: MirroredStore, far: Far, there: RunStore, bench: Bench, direct: RunStore, tmp_path: Path
    ) -> None:
        first = TrialRun(bench, spec(), store=here)
        until(first, "admm", 2)
        assert there.last_step(0) is not None
        second = TrialRun(bench, spec(), store=other(far, tmp_path))
        assert second.step().phase == "resumed"
        assert finish(second).status == "complete"
        require_same_trial(there.trial_dir(0), direct.trial_dir(0))

    def test_of_two_attempts_the_first_to_end_stands(
        self, here: MirroredStore, far: Far, there: RunStore, bench: Bench, direct: RunStore, tmp_path: Path
    ) -> None:
        zombie = TrialRun(bench, spec(), store=here)
        until(zombie, "admm")
        published(other(far, tmp_path), direct)
        record = (there.trial_dir(0) / "result.json").read_bytes()
        late = zombie.step()  # its state is refused, and the record is what it ends with
        assert late.result == there.result(0)
        assert (there.trial_dir(0) / "result.json").read_bytes() == record
        assert not list(there.partial_dir.iterdir())

    def test_a_late_commit_is_thrown_away(
        self, here: MirroredStore, far: Far, there: RunStore, bench: Bench, direct: RunStore
    ) -> None:
        far.before["commit"] = lambda: published(there, direct)
        assert finish(TrialRun(bench, spec(), store=here)) == direct.result(0)
        assert there.finished() == {0}
        assert not list(there.partial_dir.iterdir())

    def test_one_that_was_published_and_not_told_of_is_not_trained_again(
        self, here: MirroredStore, far: Far, bench: Bench, direct: RunStore
    ) -> None:
        published(here, direct)
        assert TrialRun(bench, spec(), store=here).step().result == direct.result(0)
        assert not far.sent

    def test_begins_with_the_weights_of_another(
        self, here: MirroredStore, far: Far, there: RunStore, bench: Bench, direct: RunStore, tmp_path: Path
    ) -> None:
        published(here, direct)
        worker = other(far, tmp_path)
        folder = worker.trial_dir(0)
        assert folder.is_relative_to(worker.root)
        assert not (folder / MODEL_NAME).exists()  # nobody begins with it
        start = Start(number=0, folder=folder, stretch=0.0)
        finish(TrialRun(bench, spec(1, plan=FURTHER, start=start), store=worker))
        assert there.result(1).started_from == 0
        start = replace(start, folder=direct.trial_dir(0))
        finish(TrialRun(bench, spec(1, plan=FURTHER, start=start), store=direct))
        require_same_trial(there.trial_dir(1), direct.trial_dir(1))

    def test_what_was_fetched_is_here_until_the_next(self, here: MirroredStore, direct: RunStore) -> None:
        published(here, direct)
        assert not (here.trials_dir / "0").exists()
        assert here.trial_dir(0).exists()
        assert here.result(0).number == 0
        here.forget()
        assert list(here.trials_dir.iterdir()) == [here.partial_dir]
        assert here.trial_dir(0).exists()
        assert not here.trial_dir(5).exists()
        with pytest.raises(StoreError, match="no finished trial 5"):
            here.result(5)

    def test_what_cannot_be_read_of_another_is_as_if_it_were_gone(
        self, here: MirroredStore, there: RunStore, direct: RunStore
    ) -> None:
        published(here, direct)
        weights, plan = (there.trial_dir(0) / name for name in (WEIGHTS_FILE, PLAN_FILE))
        os.truncate(weights, there.baseline_dir.joinpath(WEIGHTS_FILE).stat().st_size + HEADER_BYTES + 1)
        plan.unlink()
        os.mkfifo(plan)  # reading it would wait for ever
        assert {path.name for path in here.trial_dir(0).iterdir()} == {TRACE_NAME, "result.json"}


class TestCheckpoint:
    def test_is_sent_each_time_where_that_is_quick(self, here: MirroredStore, far: Far) -> None:
        here.attempt_dir(0, "a1")
        for content in (b"one", b"other"):
            here.checkpoint_path(0).write_bytes(content)
            here.keep_checkpoint(0)
            assert far.checkpoint(0) == content
            assert here.fetch_checkpoint(0).read_bytes() == content

    def test_is_left_out_now_and_then_where_sending_takes_long(
        self, here: MirroredStore, far: Far, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = [100.0]
        monkeypatch.setattr(mirrored_store.time, "monotonic", lambda: clock[0])

        def slow() -> None:
            clock[0] += 2.0

        far.before["keep_checkpoint"] = slow
        here.attempt_dir(0, "a1")
        here.checkpoint_path(0).write_bytes(b"state")
        for _ in range(30):
            clock[0] += 1.0
            here.keep_checkpoint(0)
        assert len(far.sent) == 2  # 2 s each, then 20 s of training

    def test_of_nobody_is_none(self, here: MirroredStore) -> None:
        here.attempt_dir(0, "a1")
        here.checkpoint_path(0).write_bytes(b"of an earlier attempt in this process")
        assert not here.fetch_checkpoint(0).exists()

    def test_that_cannot_be_one_is_none(self, here: MirroredStore, there: RunStore) -> None:
        here.attempt_dir(0, "a1")
        with there.checkpoint_path(0).open("wb") as file:
            file.truncate(2**30)
        assert not here.fetch_checkpoint(0).exists()

    def test_that_the_drivers_disk_does_not_take_says_so(
        self, here: MirroredStore, far: Far, there: RunStore, bench: Bench
    ) -> None:
        run = TrialRun(bench, spec(), store=here)
        until(run, "admm")

        def lose() -> None:
            there.discard_partial(0)

        far.before["keep_checkpoint"] = lose
        with pytest.raises(StoreError, match=f"cannot write {there.partial_dir}"):
            run.step()


class TestLoss:
    def test_is_told_to_the_driver(self, here: MirroredStore, far: Far, there: RunStore) -> None:
        here.attempt_dir(0, "a1")
        here.note_loss(0, "RuntimeError: out of memory")
        assert there.last_loss(0) == "RuntimeError: out of memory"

    def test_of_a_disk_names_its_machine(self, here: MirroredStore, there: RunStore) -> None:
        here.attempt_dir(0, "a1")
        here.note_loss(0, f"StoreError: cannot write {here.root}/trials: No space left on device")
        assert (there.last_loss(0) or "").endswith(f"(on {os.uname().nodename})")

    def test_of_the_driver_ends_the_attempt_and_not_the_trial(
        self, here: MirroredStore, far: Far, bench: Bench
    ) -> None:
        run = TrialRun(bench, spec(), store=here)
        until(run, "admm")

        def gone() -> None:
            raise AttemptLost("the driver of this run is gone")

        far.before["keep_checkpoint"] = gone
        with pytest.raises(AttemptLost):
            run.step()
        far.note_loss = lambda number, reason: gone()  # type: ignore[method-assign]
        here.note_loss(0, "AttemptLost: and nobody hears of it")
