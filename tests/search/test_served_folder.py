"""What a run folder's keeper refuses of a worker: files of other names, other places, and other sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from admm.bounded import HEADER_BYTES
from admm.compact import PLAN_FILE, WEIGHTS_FILE
from search import served_folder
from search.atomic import StoreError
from search.record import result_text
from search.result import TrialResult
from search.served_folder import ServedFolder
from search.store import CHECKPOINT_NAME, RunStore

RESULT = result_text(TrialResult(number=0, status="failed", plan_digest="d", seed=0, reason="NaN"))


@pytest.fixture
def there(tmp_path: Path) -> RunStore:
    store = RunStore.create(tmp_path / "there" / "run", "task: made:up\n", {})
    (store.baseline_dir / WEIGHTS_FILE).write_bytes(bytes(5000))
    return store


@pytest.fixture
def far(there: RunStore, monkeypatch: pytest.MonkeyPatch) -> ServedFolder:
    monkeypatch.setattr(served_folder, "PLAN_BYTES", 1000)
    return ServedFolder(there)


@pytest.mark.parametrize(
    "name", ["../../../escaped", "/tmp/escaped", "result.json", CHECKPOINT_NAME, "", ".", "sub/plan.json", "x.py"]
)
def test_a_file_of_another_name(far: ServedFolder, there: RunStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"a worker sends model\.onnx, plan\.json"):
        far.commit(0, "a1", {PLAN_FILE: b"{}", name: b"x"}, RESULT)
    assert there.finished() == set()
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("attempt", ["../0", "..", "a/b", ""])
def test_an_attempt_of_another_place(far: ServedFolder, there: RunStore, attempt: str) -> None:
    for use in (lambda: far.begin(0, attempt), lambda: far.commit(0, attempt, {}, RESULT)):
        with pytest.raises(StoreError, match="an attempt's id"):
            use()
    assert there.finished() == set()


@pytest.mark.parametrize("number", [-1, 10**9, True, "1", "../1"])
def test_a_trial_of_another_place(far: ServedFolder, number: int) -> None:
    for use in (far.trial, far.checkpoint, far.discard_partial, lambda n: far.begin(n, "a1")):
        with pytest.raises(StoreError, match="a trial's number"):
            use(number)


def test_a_file_that_is_too_large(far: ServedFolder, there: RunStore) -> None:
    dense = (there.baseline_dir / WEIGHTS_FILE).stat().st_size
    with pytest.raises(ValueError, match=r"plan\.json of a trial holds at most 1000 bytes, got 1001"):
        far.commit(0, "a1", {PLAN_FILE: bytes(1001)}, RESULT)
    with pytest.raises(ValueError, match=rf"weights\.safetensors of a trial holds at most {dense + HEADER_BYTES}"):
        far.commit(0, "a1", {WEIGHTS_FILE: bytes(dense + HEADER_BYTES + 1)}, RESULT)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors of a trial holds at most"):
        far.keep_checkpoint(0, bytes(16 * dense + HEADER_BYTES + 1))
    assert there.finished() == set()


@pytest.mark.parametrize("text", ["{}", "[]", "\x80\x04N.", '{"schema": 99}'])
def test_what_is_no_result(far: ServedFolder, there: RunStore, text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  each says what it is of this text
        far.commit(0, "a1", {}, text)
    assert there.finished() == set()


def test_the_result_of_another_trial(far: ServedFolder, there: RunStore) -> None:
    with pytest.raises(ValueError, match="result of trial 0 committed as trial 1"):
        far.commit(1, "a1", {}, RESULT)
    assert there.finished() == set()


def test_nothing_is_taken_from_an_attempt_that_is_begun(far: ServedFolder, there: RunStore) -> None:
    far.begin(0, "a1")
    far.discard_partial(0)
    assert (there.partial_dir / "0" / "a1").is_dir()
