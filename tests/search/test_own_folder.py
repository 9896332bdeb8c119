"""A worker's own folder: seen by nobody else, and gone with its process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from search import own_folder


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_folder.tempfile, "tempdir", str(tmp_path))


def test_is_seen_by_its_owner_alone_and_not_swept_while_it_lives() -> None:
    folder = own_folder.own_folder()
    assert folder.stat().st_mode & 0o077 == 0
    assert own_folder.own_folder() != folder
    assert folder.exists()


def test_of_a_process_that_was_killed_is_swept(tmp_path: Path) -> None:
    code = "import os, signal\nfrom search.own_folder import own_folder\n(own_folder() / 'big').write_text('x')\n"
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code + kill], env=environment, check=False, timeout=120)
    assert len(list(tmp_path.glob("*/big"))) == 1
    own_folder.own_folder()
    assert not list(tmp_path.glob("*/big"))
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    assert not list(tmp_path.glob("*/big"))  # it cleared up itself


def test_leaves_alone_what_only_looks_like_one(tmp_path: Path) -> None:
    (tmp_path / "prunefront-run-mine").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lock").touch()
    (tmp_path / "prunefront-run-link").symlink_to(tmp_path / "elsewhere")
    own_folder.own_folder()
    assert (tmp_path / "prunefront-run-mine").is_dir()
    assert (tmp_path / "elsewhere" / "lock").exists()
