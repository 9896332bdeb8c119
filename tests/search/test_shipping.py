"""What travels to workers, and where they find it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search import shipping
from search.errors import UserError
from search.shipping import arrived, home_of, pack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "job"
    for name in ("task.py", "package/__init__.py", "package/inner.py", "words.txt", ".env", ".git/config",
                 "__pycache__/task.cpython-311.pyc", "venv/pyvenv.cfg", "venv/lib/big.py", "run/job.yaml",
                 "run/trials/0/result.json"):  # fmt: skip
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (home / "data.bin").write_bytes(b"\0" * (shipping.MOST_FILE + 1))
    (home / "gone").symlink_to(tmp_path / "nowhere")
    return home


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    arrived.cache_clear()
    yield
    arrived.cache_clear()


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_code_and_small_files_travel_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    cargo = pack(tmp_path / "stage", folder)
    *_, job = map(Path, cargo.modules)
    assert names(job) == {"task.py", "package/__init__.py", "package/inner.py", "words.txt"}
    assert cargo.left == ("data.bin",)
    assert job.name == cargo.env_vars[shipping.NAME]


def test_the_package_that_travels_is_whole_and_knows_its_version(tmp_path: Path) -> None:
    cargo = pack(tmp_path / "stage", None)
    assert cargo.env_vars == {}
    path = os.pathsep.join(str(Path(module).parent) for module in cargo.modules)
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import search, admm, evaluators, search.worker, search.cli; "
         "print(search.__file__, search.__version__)"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    where, version = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path / "stage")
    assert version == shipping.search.__version__


def test_a_worker_uses_the_folder_where_it_has_the_same_code(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert arrived(folder) == folder  # a driver
    arrived.cache_clear()
    cargo = pack(tmp_path / "stage", folder)
    for name, value in cargo.env_vars.items():
        monkeypatch.setenv(name, value)
    copy = Path(cargo.modules[-1])
    monkeypatch.setattr(sys, "path", [*sys.path, str(copy.parent)])
    (folder / "words.txt").write_text("other data, the same code")
    assert arrived(folder) == folder
    arrived.cache_clear()
    (folder / "task.py").write_text("other code")
    assert arrived(folder) == copy
    assert arrived(tmp_path / "not here") == copy


def test_a_copy_that_did_not_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shipping.NAME, "prunefront_job_0123")
    with pytest.raises(UserError, match="is not on this machine, and its copy did not arrive"):
        arrived(tmp_path / "nowhere")


def test_a_folder_with_everything_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "MOST_CODE", 3)
    home = tmp_path / "all"
    home.mkdir()
    for number in range(4):
        (home / f"m{number}.py").write_text("")
    with pytest.raises(UserError, match="holds more than 3 modules, and a job's folder travels"):
        pack(tmp_path / "stage", home)


def test_the_source_tree_of_this_package_is_not_taken_along_twice(tmp_path: Path) -> None:
    root = Path(shipping.search.__file__).resolve().parents[1]
    found = {path.relative_to(root).parts[0] for path in shipping._files(root)}
    assert found.isdisjoint(shipping.PACKAGES)
    assert "tests" in found


def test_only_a_task_beside_the_job_needs_its_folder(folder: Path) -> None:
    assert home_of("task:make", folder) == folder
    assert home_of("package.inner:make", folder) == folder
    assert home_of("search.tasks.digits:task", folder) is None
    assert home_of("installed.module:make", folder) is None


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,4}\.py", fullmatch=True), st.binary(max_size=9), min_size=2))
def test_a_digest_tells_contents_and_names_apart(contents: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        files = sorted(folder.iterdir())
        whole = shipping._digest(folder, files)
        assert whole == shipping._digest(folder, files)
        first, second, *rest = files
        assert whole != shipping._digest(folder, [second, *rest])
        joined = first.read_bytes() + second.read_bytes()
        if second.read_bytes():
            first.write_bytes(joined)
            second.write_bytes(b"")
            assert whole != shipping._digest(folder, files)
