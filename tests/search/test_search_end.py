"""What follows the last trial: each step for itself, and none at the cost of the end of the search."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search import final_measure, keep
from search.job import Job
from search.job_file import load_job
from search.search_command import _finish
from search.store import RunStore
from search.view import View
from tests.search.test_final_measure import Child, child, folder, rig
from tests.search.test_measure_command import THEN, FakeRig

__all__ = ["child", "folder", "rig"]  # fixtures


class End:
    """The end of the search of the run `good`: 0, 1 and 2 are on its front, 3 is behind it."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.store = RunStore.open(root)
        job = load_job(self.store.job_path)
        self.job = job.model_copy(update={"search": job.search.model_copy(update=settings)})
        for number in range(4):
            (self.store.trial_dir(number) / "weights.safetensors").write_bytes(b"weights")
        self.lines: list[str] = []

    def come(self) -> str | None:
        said = io.StringIO()
        view = View(Console(file=said, width=1000))
        disk = _finish(self.store, self.job, self.store.read_baseline(), self.store.results(), view)
        self.lines = said.getvalue().splitlines()
        return disk

    def kept(self) -> list[int]:
        return [number for number in range(4) if keep.has_weights(self.store, number)]


def test_both_steps(folder: Path, rig: FakeRig, child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "ties", lambda results, on_front, *others: {})
    rig.latencies = {**THEN, "1": 0.42}
    end = End(folder / "runs" / "good", remeasure=True, keep_weights="front")
    end.job = end.job.model_copy(update={"budget": None})
    disk = end.come()
    assert disk is not None
    assert disk.endswith("weights of 3 of 4 trials kept")
    assert end.kept() == [0, 1, 2]
    assert end.lines == ["measuring the front again, in a fresh process: the dense network and 3 more"]
    rows = {row["trial"]: row for row in json.loads((end.store.root / "front.json").read_text())["rows"]}
    assert rows[1]["latency_again"]["median"] == 0.42
    assert end.come() is None, "nothing is new"
    assert end.lines == []
    assert child.asked == [[0, 1, 2]]


def test_neither_step_where_the_job_leaves_them_out(folder: Path, child: Child) -> None:
    end = End(folder / "runs" / "good", remeasure=False, keep_weights="all")
    assert end.come() is None
    assert (end.lines, end.kept(), child.asked) == ([], [0, 1, 2, 3], [])
    assert not (end.store.root / final_measure.FILE).exists()


def test_a_step_that_fails_is_a_line_and_the_next_one_follows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final_measure, "PROGRAM", "import sys; sys.exit('error: the device is gone')")
    monkeypatch.setattr(keep, "ties", lambda results, on_front, *others: {})
    end = End(folder / "runs" / "good", remeasure=True, keep_weights="front")
    end.job = end.job.model_copy(update={"budget": None})
    assert end.come() is not None
    assert [line for line in end.lines if "not measured again (the device is gone)" in line] == end.lines[1:]
    assert len(end.lines) == 2
    assert end.kept() == [0, 1, 2]


def test_a_disk_that_refuses_is_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(keep, "ties", lambda results, on_front, *others: {})
    end = End(folder / "runs" / "good", remeasure=False, keep_weights="front")
    end.job = end.job.model_copy(update={"budget": None})
    monkeypatch.setattr(Path, "unlink", refuses)
    assert end.come() is None
    (line,) = end.lines
    assert line.startswith("cannot remove ")
    assert "Read-only file system" in line


def test_the_settings_are_those_of_the_job_file() -> None:
    assert Job(task="a:b").search.remeasure
    with pytest.raises(ValueError, match="keep_weights"):
        Job.model_validate({"task": "a:b", "search": {"keep_weights": "best"}})
