"""A few of the mistakes in a process of their own, as a shell sees them: one line, an exit code, no traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mistakes import test_command_lines, test_job_files, test_own_tasks, test_runs
from tests.mistakes.typed import Mistake, content

PROGRAM = [sys.executable, "-c", "from search.cli import main; main()"]
A_FEW = [test_command_lines.COMMANDS[0], test_job_files.KEYS[0], test_own_tasks.DATA[0], test_runs.EXPORTS[-4]]


@pytest.mark.parametrize("mistake", A_FEW, ids=str)
def test_in_a_shell(template: Path, tmp_path: Path, mistake: Mistake) -> None:
    folder = tmp_path / "user"
    shutil.copytree(template, folder)
    mistake.prepare(folder)
    before = content(folder)
    ended = subprocess.run(
        [*PROGRAM, *mistake.arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (ended.returncode, ended.stdout) == (mistake.code, "")
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    for needle in mistake.says:
        assert needle in ended.stderr
    assert content(folder) == before
