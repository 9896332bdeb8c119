from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admm.bounded import read_bounded
from search.atomic import StoreError
from search.errors import UserError
from search.record import parse_result, result_text
from search.result import Baseline, TrialResult
from search.store import RunStore, write_atomic

ROOT = Path(__file__).parents[2]

BASELINE = Baseline(
    accuracy=0.98,
    accuracy_stderr=0.01,
    latency_ms=0.9,
    macs=15_000_000,
    params=180_000,
    weights=179_000,
    measurements={"onnxruntime-cpu": {"latency_ms": 0.9}},
)


def complete(number: int, **changes: Any) -> TrialResult:
    values: dict[str, Any] = {
        "status": "complete",
        "plan_digest": "0123456789abcdef",
        "seed": 3,
        "accuracy": 0.97,
        "accuracy_drop": 1.0,
        "latency_ms": 0.4,
        "speedup": 2.2,
        "compression_x": 3.0,
        "macs": 5_000_000,
        "params": 60_000,
        "rungs": ((1, 0.9), (2, 0.95)),
        "notes": ("clamped",),
        "requested": {"conv1": {"filter": 0.5}},
        "measurements": {"onnxruntime-cpu": {"latency_ms": 0.4, "stamp": {"threads": 1}}},
    }
    return TrialResult(number=number, **(values | changes))


def failed(number: int, reason: str = "loss is NaN in epoch 2") -> TrialResult:
    return TrialResult(number=number, status="failed", plan_digest="d", seed=0, reason=reason)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "digits-001", "task: digits\n", {"torch": "2.13"})


def stage(store: RunStore, number: int, attempt: str = "a1", content: bytes = b"onnx") -> Path:
    folder = store.attempt_dir(number, attempt)
    (folder / "model.onnx").write_bytes(content)
    return folder


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


class TestRunFolder:
    def test_has_the_layout_of_the_design_and_opens_again(self, store: RunStore) -> None:
        assert tree(store.root) == {"job.yaml", "environment.json", "baseline", "trials", "trials/.partial"}
        again = RunStore.open(store.root)
        assert again.name == "digits-001"
        assert again.job_path.read_text() == "task: digits\n"
        assert again.environment() == {"torch": "2.13"}
        assert again.results() == {}

    def test_create_refuses_a_run_and_a_folder_of_something_else(self, store: RunStore, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r"is a run already: `prunefront search .*` goes on with it"):
            RunStore.create(store.root, "", {})
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.png").touch()
        with pytest.raises(StoreError, match=r"holds 'cat\.png' and is no run folder"):
            RunStore.create(tmp_path / "photos", "", {})
        assert tree(tmp_path / "photos") == {"cat.png"}

    def test_of_many_that_create_one_folder_exactly_one_wins(self, tmp_path: Path) -> None:
        gate, outcomes = threading.Barrier(8), []

        def create() -> None:
            gate.wait()
            try:
                RunStore.create(tmp_path / "run", "task: t\n", {})
                outcomes.append("won")
            except StoreError:
                outcomes.append("refused")

        threads = [threading.Thread(target=create) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["refused"] * 7 + ["won"]

    def test_open_names_what_is_missing(self, store: RunStore, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="nowhere is not a run folder: it does not exist"):
            RunStore.open(tmp_path / "nowhere")
        with pytest.raises(StoreError, match=r"job\.yaml is not a run folder: it is a file"):
            RunStore.open(store.job_path)
        store.job_path.unlink()
        (store.root / "environment.json").unlink()
        with pytest.raises(StoreError, match=r"not a run folder: job\.yaml, environment\.json missing"):
            RunStore.open(store.root)

    def test_store_errors_are_one_line_user_errors(self) -> None:
        error = StoreError("a\nb")
        assert isinstance(error, UserError)
        assert str(error) == "a b"


class TestCommit:
    def test_publishes_the_staged_files_and_the_result(self, store: RunStore) -> None:
        staged = stage(store, 4)
        store.checkpoint_path(4).write_bytes(b"state")
        assert store.commit(4, staged, complete(4))
        assert tree(store.trial_dir(4)) == {"model.onnx", "result.json"}
        assert store.model_path(4).read_bytes() == b"onnx"
        assert RunStore.open(store.root).results() == {4: complete(4)}
        assert tree(store.partial_dir) == set()

    def test_a_checkpoint_left_among_the_staged_files_is_not_published(self, store: RunStore) -> None:
        staged = stage(store, 0)
        (staged / "checkpoint.safetensors").write_bytes(b"state")
        assert store.commit(0, staged, complete(0))
        assert tree(store.trial_dir(0)) == {"model.onnx", "result.json"}

    def test_a_late_result_is_thrown_away(self, store: RunStore) -> None:
        first, zombie = stage(store, 7, "a1", b"first"), stage(store, 7, "a2", b"late")
        assert store.commit(7, first, complete(7, accuracy=0.9))
        assert not store.commit(7, zombie, complete(7, accuracy=0.1))
        assert not store.commit(7, stage(store, 7, "a3", b"later"), failed(7))
        assert store.result(7).accuracy == 0.9
        assert store.model_path(7).read_bytes() == b"first"
        assert store.sweep_partials() == []
        assert tree(store.partial_dir) == set()

    def test_of_attempts_that_finish_together_one_wins_whole(self, store: RunStore) -> None:
        for number in range(10):
            gate = threading.Barrier(4)
            won: list[int] = []

            def finish(attempt: int, number: int = number, gate: Any = gate, won: Any = won) -> None:
                staged = stage(store, number, f"a{attempt}", b"%d" % attempt)
                gate.wait()
                if store.commit(number, staged, complete(number, seed=attempt)):
                    won.append(attempt)

            threads = [threading.Thread(target=finish, args=(attempt,)) for attempt in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert won == [store.result(number).seed]
            assert store.model_path(number).read_bytes() == b"%d" % won[0]

    def test_an_attempt_whose_work_was_discarded_publishes_nothing(self, store: RunStore) -> None:
        staged = stage(store, 1)
        store.discard_partial(1)
        store.discard_partial(1)
        with pytest.raises(StoreError, match="cannot write"):
            store.commit(1, staged, complete(1))
        assert not store.trial_dir(1).exists()

    def test_refuses_another_trials_result_and_one_that_could_not_be_read_back(self, store: RunStore) -> None:
        staged = stage(store, 2)
        with pytest.raises(ValueError, match="result of trial 3 committed as trial 2"):
            store.commit(2, staged, complete(3))
        with pytest.raises(ValueError, match="not JSON serializable"):
            store.commit(2, staged, complete(2, measurements={"rig": {"latency_ms": object()}}))
        with pytest.raises(ValueError, match="epochs: Input should be a valid number, got 'many'"):
            store.commit(2, staged, complete(2, epochs="many"))
        assert tree(staged) == {"model.onnx"}

    @pytest.mark.parametrize("number", [-1, True, 1.0, "1", "../1", 10**9])
    def test_only_whole_numbers_are_trials(self, store: RunStore, number: Any) -> None:
        for use in (store.trial_dir, store.checkpoint_path, store.discard_partial, store.result):
            with pytest.raises(StoreError, match="a trial's number is a whole number"):
                use(number)

    @pytest.mark.parametrize("attempt", ["", ".", "..", "../x", "a/b", ".hidden", "a\n", "é" * 101])
    def test_an_attempts_id_is_one_folder(self, store: RunStore, attempt: str) -> None:
        with pytest.raises(StoreError, match="an attempt's id is at most 100"):
            store.attempt_dir(1, attempt)
        assert tree(store.partial_dir) == set()

    def test_sweep_keeps_unfinished_work_and_drops_the_rest(self, store: RunStore) -> None:
        assert store.commit(1, stage(store, 1), complete(1))
        stage(store, 1, "zombie")
        stage(store, 3)
        store.checkpoint_path(3).write_bytes(b"state")
        (store.partial_dir / ".trash-9-abcd").mkdir()
        assert store.sweep_partials() == [3]
        assert store.checkpoint_path(3).read_bytes() == b"state"
        assert {path.name for path in store.partial_dir.iterdir()} == {"3"}


class TestReading:
    def test_what_cannot_be_believed_is_a_problem_and_not_an_error(self, store: RunStore) -> None:
        whole = result_text(complete(0))
        contents = {
            1: whole[: len(whole) // 2],
            2: "",
            3: "[1, 2]",
            4: "\ufeff\x00",
            5: result_text(complete(6)),
            6: whole.replace('"schema": 1', '"schema": 2'),
            7: whole.replace('"seed"', '"sead"'),
            8: whole.replace("0.97", '"0.97"'),
            9: whole.replace('"complete"', '"finished"'),
            10: "[" * 100_000,
            11: whole.replace("0.97", "NaN").replace('"number": 0', '"number": 11'),
            12: "{}",
        }
        for number, text in contents.items():
            store.trial_dir(number).mkdir()
            (store.trial_dir(number) / "result.json").write_text(text)
        store.trial_dir(13).mkdir()
        store.trial_dir(14).write_text("a file")
        store.trial_dir(15).mkdir()
        (store.trial_dir(15) / "result.json").write_bytes(b"\xff\xfe{}")
        (store.trials_dir / "007").mkdir()
        (store.trials_dir / "notes").mkdir()
        assert store.commit(0, stage(store, 0), complete(0))
        assert store.results() == {0: complete(0)}
        problems = store.problems()
        assert [line.split(":")[0] for line in problems] == [f"trial {n}" for n in range(1, 16)]
        assert not any("\n" in line for line in problems)
        assert "perhaps torn" in problems[0]
        assert "it is that of trial 6" in problems[4]
        assert "schema 2, this version reads 1" in problems[5]
        assert "got '0.97'" in problems[7]
        assert "result.json is missing" in problems[12]

    def test_reads_a_file_once_and_again_when_it_changed(
        self, store: RunStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(5):
            store.commit(number, stage(store, number), complete(number))
        reads: list[Path] = []

        def counted(path: Path, most: int) -> bytes:
            reads.append(path)
            return read_bounded(path, most)

        monkeypatch.setattr("search.record.read_bounded", counted)
        assert list(store.results()) == [0, 1, 2, 3, 4]
        assert len(reads) == 5
        store.results()
        store.problems()
        assert len(reads) == 5
        write_atomic(store.trial_dir(2) / "result.json", result_text(complete(2, accuracy=0.5)))
        assert store.results()[2].accuracy == 0.5
        assert len(reads) == 6

    def test_a_missing_trial_or_model_says_what_there_is(self, store: RunStore) -> None:
        with pytest.raises(StoreError, match="run digits-001 has no finished trial 4: it has none yet"):
            store.result(4)
        store.commit(1, store.attempt_dir(1, "a"), failed(1))
        store.commit(3, stage(store, 3), complete(3))
        with pytest.raises(StoreError, match="no finished trial 4: it has 2, from 1 to 3"):
            store.result(4)
        with pytest.raises(StoreError, match=r"trial 1 .* has no model\.onnx: it is failed: loss is NaN"):
            store.model_path(1)

    @given(
        accuracy=st.floats(0, 1),
        seconds=st.floats(),
        residual=st.none() | st.floats(),
        rungs=st.lists(st.tuples(st.integers(0, 99), st.floats())),
        reason=st.text(min_size=1),
    )
    def test_a_result_comes_back_from_standard_json(
        self, accuracy: float, seconds: float, residual: float | None, rungs: Any, reason: str
    ) -> None:
        result = complete(
            5, accuracy=accuracy, seconds=seconds, primal_residual=residual, rungs=tuple(rungs), reason=reason
        )
        text = result_text(result)
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        back = parse_result(text)
        assert (back.accuracy, back.reason) == (accuracy, reason)
        if math.isfinite(seconds):
            assert back.seconds == seconds
        else:
            assert math.isnan(back.seconds)
        assert back.primal_residual == (None if residual is None or not math.isfinite(residual) else residual)
        assert [step for step, _ in back.rungs] == [step for step, _ in rungs]
        assert all(
            b == a if math.isfinite(a) else math.isnan(b) for (_, a), (_, b) in zip(rungs, back.rungs, strict=True)
        )


class TestMeasuredOnce:
    def test_the_baseline_comes_back(self, store: RunStore) -> None:
        assert not store.has_baseline
        with pytest.raises(StoreError, match=r"has no baseline\.json: the dense model is not measured yet"):
            store.read_baseline()
        store.write_baseline(BASELINE)
        assert store.has_baseline
        assert RunStore.open(store.root).read_baseline() == BASELINE

    def test_a_broken_baseline_says_how_to_go_on(self, store: RunStore) -> None:
        path = store.baseline_dir / "baseline.json"
        for text in ("{", "{}", json.dumps(BASELINE.to_dict() | {"accuracy": "high"})):
            path.write_text(text)
            with pytest.raises(StoreError, match=r"baseline\.json: .*: remove it to measure again"):
                store.read_baseline()

    def test_the_profile_comes_back(self, store: RunStore) -> None:
        assert not store.has_profile
        with pytest.raises(StoreError, match="not profiled yet"):
            store.read_profile()
        store.write_profile({"groups": {"conv1": [1, 2]}, "error": math.inf})
        assert store.has_profile
        assert store.read_profile() == {"groups": {"conv1": [1, 2]}, "error": None}
        (store.root / "profile.json").write_text("[]")
        with pytest.raises(StoreError, match=r"profile\.json: holds a list, not an object"):
            store.read_profile()


class TestWriteAtomic:
    def test_replaces_and_leaves_nothing_beside(self, tmp_path: Path) -> None:
        write_atomic(tmp_path / "a.txt", "ü")
        write_atomic(tmp_path / "a.txt", b"\x00new")
        assert (tmp_path / "a.txt").read_bytes() == b"\x00new"
        assert tree(tmp_path) == {"a.txt"}

    @pytest.mark.parametrize(("code", "mend"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "choose a folder")])
    def test_a_disk_that_refuses_is_one_line_and_the_old_content_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, mend: str
    ) -> None:
        path = tmp_path / "a.txt"
        write_atomic(path, "old")

        def refuse(_: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(StoreError, match=f"cannot write .*a.txt: {os.strerror(code)}: {mend}"):
            write_atomic(path, "new")
        assert path.read_text() == "old"
        assert tree(tmp_path) == {"a.txt"}

    def test_a_full_disk_at_commit_keeps_the_trial_unfinished(
        self, store: RunStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        staged = stage(store, 5)
        store.checkpoint_path(5).write_bytes(b"state")

        def refuse(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as full:
            full.setattr(os, "fsync", refuse)
            with pytest.raises(StoreError, match="No space left on device: free some space"):
                store.commit(5, staged, complete(5))
        assert store.results() == {}
        assert store.sweep_partials() == [5]
        assert store.checkpoint_path(5).exists()
        assert store.commit(5, staged, complete(5))


WRITER = """
import sys
from pathlib import Path
from search.result import TrialResult
from search.store import RunStore, driver_lock

root, attempt = Path(sys.argv[1]), sys.argv[2]
with driver_lock(root):
    store = RunStore.open(root)
    store.sweep_partials()
    number = max(store.results(), default=-1) + 1
    print("start", flush=True)
    while True:
        staged = store.attempt_dir(number, attempt)
        (staged / "model.onnx").write_bytes(b"%d" % number * 5000)
        store.checkpoint_path(number).write_bytes(b"state")
        result = TrialResult(number=number, status="failed", plan_digest="d", seed=0, reason="r" * 500)
        assert store.commit(number, staged, result)
        print(number, flush=True)
        number += 1
"""


def test_kill_9_at_any_moment_loses_and_tears_no_finished_trial(store: RunStore) -> None:
    rng = random.Random(0)
    told: list[int] = []
    for attempt in range(6):
        command = [sys.executable, "-c", WRITER, str(store.root), f"a{attempt}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        assert process.stdout.readline() == "start\n"
        told += [int(process.stdout.readline()) for _ in range(rng.randrange(4))]
        time.sleep(rng.uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().splitlines()]
        process.wait()
        found = RunStore.open(store.root)
        assert found.problems() == []
        assert set(told) <= set(found.results())
        assert list(found.results()) == list(range(len(found.results())))
    assert len(told) >= 6
    assert told == sorted(set(told))
    for number in store.results():
        assert store.model_path(number).read_bytes() == b"%d" % number * 5000
    assert all(number not in store.results() for number in store.sweep_partials())
