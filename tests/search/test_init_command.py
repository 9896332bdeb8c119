"""A first job file for a network of one's own: it can be read, and says what was seen."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from search.bench import Prepared
from search.cli import run
from search.init_command import look
from search.job_file import load_job

MODULE = """
import torch
from torch import nn

def residual():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, padding=1)
            self.inner = nn.Conv2d(16, 32, 3, padding=1)
            self.outer = nn.Conv2d(32, 16, 3, padding=1)
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            x = self.stem(x).relu()
            x = (x + self.outer(self.inner(x).relu())).relu()
            return self.head(x.mean((2, 3)))

    return Block()

def strided(): return nn.Sequential(nn.Conv2d(1, 8, 7, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
def signal(): return nn.Sequential(nn.Conv1d(2, 8, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 2))
def dense(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 2))
def words(): return nn.Sequential(nn.Embedding(10, 8), nn.Flatten(), nn.Linear(80, 2))
def fixed(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 9 * 9, 2))
def several(width): return nn.Linear(width, 2)
def nothing(): return 3
"""


@pytest.fixture(autouse=True)
def _mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with a module of the user's, which is the current one."""
    (tmp_path / "netz.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in ("netz", "job_task"):
        sys.modules.pop(name, None)


def init(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capfd.readouterr()
    code = run(["init", *arguments])
    said, complaint = capfd.readouterr()
    return code, said, complaint


def test_a_network_becomes_a_job_that_waits_for_its_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, said, complaint = init(capfd, "netz:residual")
    assert (code, complaint) == (0, "")
    assert said.splitlines() == [
        "Block: 9.8 k parameters, 9.9 M MACs for an input of [1, 3, 32, 32], 4 prunable layers",
        "the input's shape is a guess that the network takes: --input says another",
        "layer head keeps all its filters: its filters are the network's output",
        "written: job_task.py, job.yaml",
        "next: fill in the data in job_task.py, then prunefront profile job.yaml",
    ]
    text = Path("job.yaml").read_text()
    assert "#   stem        432   442.4 k  coupled with outer\n" in text
    assert "#   inner     4.6 k     4.7 M\n" in text
    job = load_job(Path("job.yaml"))
    assert (job.task, job.structures, job.folder) == ("job_task:task", ("filter",), tmp_path)
    assert run(["profile", "job.yaml"]) == 2
    assert "fill in training_data: return Arrays(x, y)" in capfd.readouterr().err
    task = Path("job_task.py")
    empty = next(line for line in task.read_text().splitlines() if "raise NotImplementedError" in line)
    filled = "    import torch\n    return Arrays(torch.randn(64, 3, 32, 32), torch.arange(64) % 4)"
    task.write_text(task.read_text().replace(empty, filled))
    sys.modules.pop("job_task", None)
    prepared = Prepared.of(load_job(Path("job.yaml")))
    assert [d.layer for d in prepared.profile.space.dimensions] == ["inner"], "16 channels are one block"


def test_a_task_is_named_as_it_is(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    code, said, _ = init(capfd, "search.tasks.digits:task", "--out", "jobs/digits.yaml")
    assert code == 0
    assert said.splitlines()[-2:] == ["written: jobs/digits.yaml", "next: prunefront profile jobs/digits.yaml"]
    assert "guess" not in said
    assert not list(tmp_path.glob("*_task.py"))
    job = load_job(Path("jobs/digits.yaml"))
    assert (job.task, job.folder) == ("search.tasks.digits:task", tmp_path)
    assert job.load_task().name == "digits"


@pytest.mark.parametrize(
    ("function", "shape"),
    [("strided", (1, 1, 224, 224)), ("signal", (1, 2, 128)), ("dense", (1, 784)), ("residual", (1, 3, 32, 32))],
)
def test_an_input_is_guessed_by_the_first_layer(function: str, shape: tuple[int, ...]) -> None:
    looked = look(f"netz:{function}")
    assert (tuple(looked.example.shape), looked.assumed) == (shape, True)


def test_an_input_that_is_told_is_no_guess() -> None:
    looked = look("netz:fixed", "1,3,11,11")
    assert (tuple(looked.example.shape), looked.assumed) == ((1, 3, 11, 11), False)
    assert looked.macs == {"0": 4 * 27 * 81, "2": 4 * 81 * 2}
    assert torch.is_tensor(looked.example)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["netz:words"], "which input does Sequential take? its first layer does not tell: say --input 1,3,32,32"),
        (["netz:fixed"], "which input does Sequential take? none of [1, 3, 32, 32], "),
        (["netz:fixed", "--input", "1,3,9,9"], "the network fails on an input of [1, 3, 9, 9]: RuntimeError"),
        (["netz:fixed", "--input", "3x3"], "--input must be the shape of one input, such as 1,3,32,32, got '3x3'"),
        (["netz:fixed", "--input", "2,3,9,9"], "--input must be the shape of one input"),
        (["netz:several"], "task_args: netz:several: missing a required argument: 'width'"),
        (["netz:nothing"], "netz:nothing must return a torch.nn.Module or a search.tasks.Task, got int"),
        (["netz:residul"], "holds no function 'residul': did you mean 'residual'?"),
        (["netz.py"], "task: must read module:function, got 'netz.py'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_write_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    code, said, told = init(capfd, *arguments)
    assert (code, said, told.count("\n")) == (2, "", 1)
    assert complaint in told
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ""] == ["netz.py"]


@pytest.mark.parametrize("there", ["job.yaml", "job_task.py"])
def test_nothing_is_overwritten(tmp_path: Path, capfd: pytest.CaptureFixture[str], there: str) -> None:
    (tmp_path / there).write_text("mine")
    code, _, complaint = init(capfd, "netz:residual")
    assert (code, complaint) == (2, f"error: {there} exists already: name another file with --out\n")
    assert (tmp_path / there).read_text() == "mine"
