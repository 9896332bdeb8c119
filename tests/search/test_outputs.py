"""A job file writes below the current folder, a run below its own; anywhere else is for the command line to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.cli import run
from search.errors import UserError
from search.job_file import load_job
from search.outputs import require_inside
from search.store import RunStore, StoreError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    (tmp_path / "outside").mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "inner").mkdir()
    (folder / "near").symlink_to(folder / "inner")
    monkeypatch.chdir(folder)
    return folder


def ask(here: Path, given: str | None, /, **settings: str) -> None:
    lines = ["task: a:b", *(f"{key}: {value}" for key, value in settings.items())]
    (here / "job.yaml").write_text("\n".join(lines) + "\n")
    require_inside(load_job(here / "job.yaml"), storage=given)


@pytest.mark.parametrize("storage", ["/etc", "..", "../outside", "runs/../../outside", "link", "link/deeper", "/",
                                     "file:///etc", "FILE:///etc", "local:///etc", "file://host/etc"])  # fmt: skip
def test_a_storage_outside(here: Path, storage: str) -> None:
    with pytest.raises(UserError, match=r"job.yaml:2: storage: .* leads out of the current folder: if you mean it, sa"):
        ask(here, None, storage=storage)
    ask(here, storage, storage=storage)


@pytest.mark.parametrize("storage", ["runs", "./a/b", "near", "inner/../inner", "s3://bucket/runs"])
def test_a_storage_inside(here: Path, storage: str) -> None:
    ask(here, None, storage=storage)


@pytest.mark.parametrize(
    "study", ["sqlite:////etc/study.db", "sqlite:///../x.db", "sqlite:///link/x.db", "journal:/etc/x.log",
              "journal:../x", "sqlite:///file:/etc/x?uri=true", "journal:link/x"]
)  # fmt: skip
def test_a_study_outside(here: Path, study: str) -> None:
    with pytest.raises(UserError, match=r"job.yaml:3: search.study: .* put it below one of them, or leave it out"):
        ask(here, None, search=f"\n  study: {study}")


def test_a_study_inside_or_below_the_storage_of_the_command_line(here: Path) -> None:
    ask(here, None, search="\n  study: journal:runs/study.log")
    ask(here, None, search="\n  study: sqlite:///study.db")
    outside = here.parent / "outside"
    ask(here, str(outside), search=f"\n  study: journal:{outside}/study.log")


def test_the_command_says_it_before_the_task_is_loaded(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "job.yaml").write_text("task: nowhere:task\nstorage: ../outside\n")
    assert run(["search", "job.yaml"]) == 2
    assert "say --storage ../outside" in capfd.readouterr().err
    assert run(["search", "job.yaml", "--name", "../x", "--storage", "runs"]) == 2
    assert not list((here.parent / "outside").iterdir())


@pytest.mark.parametrize("name", ["trials", "baseline", "measured", "ray"])
def test_a_run_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    root = tmp_path / "run"
    RunStore.create(root, "task: a:b\n", {})
    assert RunStore.open(root).root == root
    (tmp_path / "elsewhere").mkdir()
    if (root / name).exists():
        (root / name).rename(tmp_path / "kept")
    (root / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=f"{root / name} is a link out of the run folder: put the folder back"):
        RunStore.open(root)


def test_a_run_may_be_a_link_as_a_whole(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", "task: a:b\n", {})
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert RunStore.open(tmp_path / "link").name == "run"
