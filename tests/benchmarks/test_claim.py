"""A figure names the code that it was measured with."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import benchmarks.claim as claim_module
from benchmarks.claim import Claim, commit


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit of a script and of a filed figure."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    root = tmp_path / "repository"
    (root / "benchmarks" / "results").mkdir(parents=True)
    (root / "benchmarks" / "some.py").write_text("1\n")
    (root / "benchmarks" / "results" / "some.json").write_text("[]\n")
    (root / ".gitignore").write_text("*.log\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    person = ("-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false")
    git(root, *person, "commit", "--quiet", "--no-verify", "-m", "first")
    return root


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(("git", "-C", str(root), *arguments), capture_output=True, text=True, check=True).stdout


def test_a_clean_tree_is_named_by_its_hash(repository: Path) -> None:
    found = commit(repository)
    assert found is not None
    assert len(found) >= 12
    assert git(repository, "rev-parse", "HEAD").startswith(found)


@pytest.mark.parametrize("name", ["benchmarks/some.py", "benchmarks/new.py", "new.py"])
def test_a_tree_that_differs_says_so(repository: Path, name: str) -> None:
    clean = commit(repository)
    (repository / name).write_text("2\n")
    assert commit(repository) == f"{clean}+changes"


@pytest.mark.parametrize("name", ["benchmarks/results/some.json", "benchmarks/results/new.json", "a.log"])
def test_figures_filed_and_ignored_files_are_no_change_of_the_code(repository: Path, name: str) -> None:
    clean = commit(repository)
    (repository / name).write_text("[1]\n")
    assert commit(repository) == clean


def test_nothing_is_named_outside_git_or_for_a_copy_inside_another_repository(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = repository / "copy"
    copy.mkdir()
    assert commit(copy) is None
    outside = tmp_path / "outside"
    outside.mkdir()
    assert commit(outside) is None
    assert commit(tmp_path / "not there") is None
    monkeypatch.setenv("PATH", str(outside))
    assert commit(repository) is None


def test_a_hooks_variables_do_not_name_another_repository(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert commit(tmp_path) is None


@pytest.mark.parametrize("made_from", ["0123456789ab+changes", None])
def test_every_entry_names_it_and_old_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_from: str | None
) -> None:
    monkeypatch.setattr(claim_module, "RESULTS", tmp_path)
    monkeypatch.setattr(claim_module, "COMMIT", made_from)
    old = {"date": "2026-11-20", "figure": 1.0}
    (tmp_path / "some.json").write_text(json.dumps([old]))
    claim = Claim(claim="c", figure=2.0, unit="x", bar=1.0, holds=True)
    entries = json.loads(claim.record("some", packages=()).read_text())
    assert entries[0] == old
    assert (entries[1]["commit"], entries[1]["figure"]) == (made_from, 2.0)
