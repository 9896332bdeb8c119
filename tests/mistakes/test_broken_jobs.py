"""A thousand job files that are broken: one line each, no traceback, nothing written, nothing of Ray's started."""

from __future__ import annotations

import contextlib
import io
import random
import sys
from pathlib import Path
from typing import NoReturn

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, seed, settings

from search import search_command
from search.cli import LONGEST, run
from search.errors import UserError
from search.job import Job
from search.job_file import read_yaml
from search.job_schema import job_schema
from tests.mistakes.breaking import DIGITS, FILES, broken_files

CHECK = jsonschema.Draft202012Validator(job_schema())
#: Said by the stub below of a file that the model takes.
A_JOB = "bad.yaml is a job"


def stopped(job: Job, *arguments: object) -> NoReturn:
    """What a job that may be searched comes to here: its task is not loaded, and nothing is searched."""
    raise UserError(A_JOB)


def is_broken(folder: Path) -> bool:
    """Whether `prunefront search bad.yaml` refuses the file in `folder`, in one line and without writing anything.

    A file that is not refused must be a job by the schema too.
    """
    said, complaint = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
        code = run(["search", "bad.yaml"])
    assert (code, said.getvalue()) == (2, "")
    (line,) = complaint.getvalue().splitlines()
    assert line.startswith("error: bad.yaml")
    assert line.isprintable()
    assert len(line) <= LONGEST + 20
    assert [path.name for path in folder.rglob("*")] == ["bad.yaml"]
    if line != f"error: {A_JOB}":
        return True
    content, _ = read_yaml(folder / "bad.yaml")
    assert [error.message for error in CHECK.iter_errors(content)] == []
    return False


def break_jobs(folder: Path, count: int) -> None:
    """Until so many different files were refused; those that are still jobs are not counted."""
    seen: set[bytes] = set()
    first = 0 if settings.default.derandomize else random.randrange(2**32)
    for number in range(first, first + 9):
        if len(seen) >= count:
            return

        @seed(number)
        @settings(max_examples=max(50, count - len(seen)), suppress_health_check=list(HealthCheck), database=None)
        @given(raw=broken_files)
        def each(raw: bytes) -> None:
            (folder / "bad.yaml").write_bytes(raw)
            assume(is_broken(folder))
            seen.add(raw)

        each()
    raise AssertionError(f"{len(seen)} different broken files, {count} wanted")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder; what would start Ray fails."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(search_command, "_checked", stopped)
    return here


def test_a_thousand_broken_job_files(folder: Path) -> None:
    break_jobs(folder, 1000)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_job(folder: Path, name: str) -> None:
    (folder / "bad.yaml").write_bytes(FILES[name])
    assert is_broken(folder)


def test_a_job_is_told_from_a_broken_one(folder: Path) -> None:
    """Else nothing above would count."""
    (folder / "bad.yaml").write_text(DIGITS.read_text())
    assert not is_broken(folder)
