"""What docs/your_network.md shows of `prunefront init` and of layers that stay whole is what the program says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from admm.groups import find_groups
from search.cli import run
from tests.pages import ROOT, blocks

PAGE = (ROOT / "docs" / "your_network.md").read_text()
#: The page's small network with a grouped convolution in it.
NETWORK = """
from torch import nn

def build_model():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, groups=4), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("net", None)


def test_init_says_what_the_page_shows(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "net.py").write_text(NETWORK)
    assert run(["init", "net:build_model"]) == 0
    shown = next(text for _, text in blocks(PAGE) if "prunable layers" in text)
    assert capfd.readouterr().out == shown
    assert (folder / "job_task.py").exists()
    assert "training_data()" in (folder / "job_task.py").read_text()


class Whole(nn.Module):
    """One layer of each kind that keeps its filters, behind one another: [batch, 8] -> [batch, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.normed = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.unused = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.scaled(x) * self.scale)
        return self.head(torch.relu(self.norm(self.normed(x))))


class Gate(nn.Module):
    """A convolution that some inputs pass by."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.mean() > 0 else x


class Odd(nn.Module):
    """[batch, 3, 8, 8] -> [batch, 4]: one weight in two places, and a path that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.after = nn.Conv2d(3, 8, 3), Gate(), nn.Conv2d(8, 8, 3)
        self.a, self.b = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.b.weight = self.a.weight
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.after(self.gate(torch.relu(self.stem(x)))))
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def reasons_on_the_page() -> list[str]:
    table = PAGE[PAGE.index("## What cannot be pruned") :]
    return [re.sub(r" \.\.\.$", "", reason) for reason in re.findall(r"^\| `([^`]+)` \|", table, re.M)]


@pytest.mark.parametrize("layer", ["scaled", "normed", "unused", "head"])
def test_the_page_lists_the_reason(layer: str) -> None:
    excluded = find_groups(Whole(), torch.zeros(1, 8)).excluded
    assert any(excluded[layer].startswith(reason) for reason in reasons_on_the_page()), excluded[layer]


def test_the_page_tells_of_shared_weights_and_of_paths_that_depend_on_data() -> None:
    excluded = find_groups(Odd(), torch.zeros(1, 3, 12, 12)).excluded
    assert set(excluded) == {"stem", "gate.conv", "after", "a", "b", "head"}
    for layer in ("stem", "gate.conv", "a"):
        assert any(excluded[layer].startswith(reason) for reason in reasons_on_the_page()), excluded[layer]


def test_reasons_are_those_of_the_program() -> None:
    """Word for word, apart from names and numbers."""
    files = ("coupling.py", "groups.py", "verify.py", "frozen.py", "slicing.py", "decisions.py")
    source = " ".join((ROOT / "admm" / name).read_text() for name in files)
    plain = re.sub(r'"\s+f?"', "", source)
    assert len(reasons_on_the_page()) == 11
    for reason in reasons_on_the_page():
        fixed = re.sub(r"^(Conv2d '3'|LayerNorm 'norm'|parameter 'scale'|Conv2d 'a':) ", "", reason)
        parts = re.split(r"\d+|\.\.\.|module '\w+' \(Gate\)|weight|'b'", fixed)
        assert all(part.strip(" ()=:") in plain for part in parts), reason
