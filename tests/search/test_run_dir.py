from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.atomic import StoreError
from search.run_dir import check_name, next_run_dir
from search.store import RunStore


def test_runs_without_a_name_are_numbered_on(tmp_path: Path) -> None:
    storage = tmp_path / "deep" / "runs"
    assert next_run_dir(storage, None, "digits") == storage / "digits-001"
    assert next_run_dir(storage, None, "digits") == storage / "digits-002"
    (storage / "digits-009").mkdir()
    (storage / "digits-old").mkdir()
    (storage / "digits-wide-050").mkdir()
    assert next_run_dir(storage, None, "digits") == storage / "digits-010"
    assert next_run_dir(storage, None, "other") == storage / "other-001"


def test_commands_started_together_never_share_a_folder(tmp_path: Path) -> None:
    gate, folders = threading.Barrier(8), []

    def start() -> None:
        gate.wait()
        folders.append(next_run_dir(tmp_path, None, "job").name)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folders) == [f"job-{n:03d}" for n in range(1, 9)]


def test_a_name_must_be_new(tmp_path: Path) -> None:
    folder = next_run_dir(tmp_path, "mine", "digits")
    assert folder == tmp_path / "mine"
    assert next_run_dir(tmp_path, "mine", "digits") == folder
    RunStore.create(folder, "task: t\n", {})
    with pytest.raises(StoreError, match=f"run mine exists already: `prunefront search {folder}` goes on with it"):
        next_run_dir(tmp_path, "mine", "digits")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    (tmp_path / "file").touch()
    for name in ("photos", "file"):
        with pytest.raises(StoreError, match="exists and is no run folder"):
            next_run_dir(tmp_path, name, "digits")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "/etc", "-x", ".git", "a\0", "a\n", "a b", "n" * 101])
def test_a_name_that_is_not_one_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="a run's name is at most 100 letters"):
        next_run_dir(tmp_path / "runs", name, "digits")
    assert not (tmp_path / "runs").exists()


@given(st.text())
def test_a_checked_name_is_one_folder(name: str) -> None:
    with contextlib.suppress(StoreError):
        assert Path("/s", check_name(name, "a name")).parent == Path("/s")


@pytest.mark.parametrize(
    ("stem", "folder"), [("my job (2)", "my-job-2-001"), ("..", "run-001"), ("a/../b", "a-..-b-001"), ("ü", "ü-001")]
)
def test_any_job_file_gives_a_usable_name(tmp_path: Path, stem: str, folder: str) -> None:
    assert next_run_dir(tmp_path, None, stem) == tmp_path / folder


def test_a_storage_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(StoreError, match=r"cannot make a run folder in .*runs: "):
        next_run_dir(tmp_path / "runs", None, "digits")
    with pytest.raises(StoreError, match=r"cannot make the run folder .*mine: "):
        next_run_dir(tmp_path / "runs", "mine", "digits")
