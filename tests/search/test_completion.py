"""Shell completion: what a shell is offered, by the script that it is given and by the program that it asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import shellingham

from search import complete
from search.cli import run
from search.store import RunStore
from tests.pages import known_commands

ROOT = Path(__file__).parents[2]
BOTH = ["runs/first", "runs/second"]
ALL = ["runs/first", "runs/old.yaml", "runs/second"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, with `prunefront` on the path and a home of its own."""
    folder = tmp_path / "here"
    for name in ("runs/first", "runs/second", "elsewhere/third", "fourth"):
        RunStore.create(folder / name, "task: a:b\n", {})
    (folder / "runs" / "notes").mkdir()
    for name in ("job.yaml", "model.onnx", "runs/old.yaml", ".hidden.yaml"):
        (folder / name).write_text("")
    program = tmp_path / "bin" / "prunefront"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from search.cli import main; main()" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(folder)
    return folder


def bash(script: str) -> str:
    """What a bash without a user's settings prints."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def offered(*words: str) -> list[str]:
    """What the program answers, asked as bash's script asks it; the last word is the one being typed."""
    environment = {
        **os.environ,
        "_PRUNEFRONT_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["prunefront", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(["prunefront"], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_commands_and_options_are_offered(here: Path) -> None:
    assert set(offered("")) == set(known_commands())
    assert offered("pro") == ["profile"]
    assert set(offered("search", "job.yaml", "--s")) == {"--storage", "--seed", "--speedup"}


@pytest.mark.parametrize(
    ("typed", "jobs", "runs", "models"),
    [
        ("", ["fourth", "job.yaml", *ALL], ["fourth", *BOTH], ["fourth", "model.onnx", *BOTH]),
        ("runs/s", ["runs/second"], ["runs/second"], ["runs/second"]),
        ("ru", ALL, BOTH, BOTH),
        ("./j", ["./job.yaml"], [], []),
        ("elsewhere/", ["elsewhere/third"], ["elsewhere/third"], ["elsewhere/third"]),
        ("nowhere/", [], [], []),
    ],
)  # fmt: skip
def test_what_is_offered_for_an_argument(
    here: Path, typed: str, jobs: list[str], runs: list[str], models: list[str]
) -> None:
    assert complete.jobs_and_runs(typed) == jobs
    assert complete.runs(typed) == runs
    assert complete.models_and_runs(typed) == models
    absolute = f"{here}/elsewhere/"
    assert complete.runs(absolute) == [f"{absolute}third"]


def test_each_command_is_offered_what_it_takes(here: Path) -> None:
    assert offered("front", "runs/") == ["runs/first", "runs/second"]
    assert offered("search", "j") == ["job.yaml"]
    assert offered("measure", "m") == ["model.onnx"]


def test_bash_completes_by_the_script_it_is_shown(here: Path) -> None:
    """Sourced, as `--install-completion` has it done, and asked as readline asks a function."""
    script = bash("prunefront --show-completion; true")
    assert "complete -o default -F _prunefront_completion prunefront" in script
    (here / "script.sh").write_text(script)
    ask = (
        "source script.sh; COMP_WORDS=(prunefront {}); COMP_CWORD={}; _prunefront_completion prunefront; "
        'printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    assert bash(ask.format("sta", 1)).split() == ["status"]
    assert bash(ask.format("export runs/f", 2)).split() == ["runs/first"]
    assert bash(ask.format("export nothing-here", 2)).split() == []


def test_installing_it_says_where(here: Path) -> None:
    said = bash("prunefront --install-completion; true")
    home = Path(os.environ["HOME"])
    assert said.startswith(f"bash completion installed in {home}/.bash_completions/prunefront.sh")
    assert "_PRUNEFRONT_COMPLETE=complete_bash" in (home / ".bash_completions" / "prunefront.sh").read_text()
    assert "prunefront.sh" in (home / ".bashrc").read_text()


@pytest.mark.parametrize("asked", ["--install-completion", "--show-completion"])
def test_a_shell_that_cannot_be_told(
    asked: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> None:
        raise shellingham.ShellDetectionFailure

    monkeypatch.setattr(shellingham, "detect_shell", unknown)
    assert run([asked]) == 2
    said = f"error: {asked}: it cannot be told which shell this is: type it in bash, zsh, fish or PowerShell\n"
    assert capfd.readouterr() == ("", said)
