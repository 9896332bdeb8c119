"""The final front measured again: in a process of its own, once for each network, and never at the cost of the end."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from evaluators import Measurement
from search import final_measure
from search.errors import UserError
from search.final_measure import FILE, read_final, remeasure_front
from search.job import Job
from search.job_file import load_job
from search.store import RunStore
from tests.search.test_measure_command import THEN, FakeRig, folder, measurement, rig, said, stamp

__all__ = ["folder", "rig"]  # fixtures


class Child:
    """Answers in place of the process, with what the measure command itself says here."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.asked: list[list[int]] = []
        self._capfd = capfd

    def __call__(self, root: Path, trials: Sequence[int], seconds: float) -> str:
        self.asked.append(list(trials))
        assert seconds >= final_measure.PATIENCE_S
        arguments = [part for number in trials for part in ("--trial", str(number))]
        return said(self._capfd, "measure", root, "--json", *arguments)[0]


@pytest.fixture
def child(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Child:
    made = Child(capfd)
    monkeypatch.setattr(final_measure, "in_fresh_process", made)
    monkeypatch.setattr(final_measure, "_require_same_device", lambda *of: None)
    return made


def again(root: Path, lines: list[str] | None = None) -> bool:
    store = RunStore.open(root)
    say = (lines if lines is not None else []).append
    return remeasure_front(store, load_job(store.job_path), store.read_baseline(), store.results(), say)


def final(root: Path) -> dict[str, float]:
    store = RunStore.open(root)
    found = read_final(store, load_job(store.job_path))
    assert found is not None
    return {name: m.latency_ms for name, m in found.networks.items()}


def test_what_came_onto_the_front_is_measured_and_nothing_twice(folder: Path, rig: FakeRig, child: Child) -> None:
    root = folder / "runs" / "good"
    rig.latencies = {**THEN, "1": 0.41}
    lines: list[str] = []
    assert again(root, lines)
    assert lines == ["measuring the front again, in a fresh process: the dense network and 3 more"]
    assert child.asked == [[0, 1, 2]]
    assert final(root) == {"dense": 1.0, "0": 0.5, "1": 0.41, "2": 0.25}
    assert not again(root)
    assert child.asked == [[0, 1, 2]], "a front that is known starts no process"
    # a search that went on: 3 came onto the front
    content = json.loads((root / FILE).read_text())
    del content["networks"]["1"]
    (root / FILE).write_text(json.dumps(content))
    assert again(root)
    assert child.asked == [[0, 1, 2], [1]]
    assert final(root).keys() == {"dense", "0", "1", "2"}


def test_the_table_and_the_json_say_it(
    folder: Path, rig: FakeRig, child: Child, capfd: pytest.CaptureFixture[str]
) -> None:
    root = folder / "runs" / "good"
    rig.latencies = {**THEN, "0": 0.95}
    again(root)
    out, _ = said(capfd, "front", root)
    assert "trial 0 keeps the budget of 1.1x on onnxruntime-cpu in its record, and missed it when measured again" in out
    assert out.count("missed it when measured again") == 1
    shown = json.loads(said(capfd, "front", root, "--json")[0])
    rows = {row["trial"]: row for row in shown["front"]}
    assert rows[0]["latency_again"]["median"] == 0.95
    assert rows[0]["latency_ms"] == 0.5
    assert rows["dense"]["speedup_again"]["median"] == 1.0
    assert len(shown["progress"]) == 5
    assert shown["reference"]["accuracy"] == pytest.approx(0.95)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"schema": 2}', '{"schema": 1, "rig": "onnxruntime-cpu", "networks": {"0": {}}}',
             '{"schema": 1, "rig": "onnxruntime-cpu", "networks": 3}']
)  # fmt: skip
def test_a_damaged_file_is_made_anew(folder: Path, rig: FakeRig, child: Child, text: str) -> None:
    root = folder / "runs" / "good"
    (root / FILE).write_text(text)
    store = RunStore.open(root)
    assert read_final(store, load_job(store.job_path)) is None
    assert again(root)
    assert final(root).keys() == {"dense", "0", "1", "2"}


def test_figures_of_another_rig_or_other_threads_are_not_these(folder: Path, rig: FakeRig, child: Child) -> None:
    root = folder / "runs" / "good"
    again(root)
    store, job = RunStore.open(root), load_job(folder / "runs" / "good" / "job.yaml")

    def with_rig(**of: Any) -> Job:
        return Job.model_validate({"task": "a:b", "rigs": [{"name": "onnxruntime-cpu", **of}]})

    assert read_final(store, job) is not None
    for other in (with_rig(threads=2), with_rig(batch=2)):
        found = read_final(store, other)
        assert found is not None
        assert found.networks == {}
    assert read_final(store, Job.model_validate({"task": "a:b", "rigs": ["torch-cpu"]})) is None


def test_a_network_that_cannot_be_measured_is_named_and_the_others_kept(
    folder: Path, rig: FakeRig, child: Child
) -> None:
    root = folder / "runs" / "good"
    (root / "trials" / "1" / "model.onnx").unlink()
    lines: list[str] = []
    assert again(root, lines)
    assert lines[1:] == ["trial 1 was not measured again: its model.onnx is gone"]
    assert final(root).keys() == {"dense", "0", "2"}


def failing(monkeypatch: pytest.MonkeyPatch, root: Path) -> str:
    with pytest.raises(UserError) as error:
        again(root)
    assert not (root / FILE).exists()
    line = str(error.value)
    assert "\n" not in line
    assert line.endswith(f"): prunefront measure {root} does it at any time")
    return line


@pytest.mark.parametrize("said", ["", "{", "[]", "{}", '{"networks": [{}], "skipped": []}', '{"networks": 1}'])
def test_what_cannot_be_read_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(final_measure, "in_fresh_process", lambda *of: said)
    assert "what its process printed cannot be read" in failing(monkeypatch, folder / "runs" / "good")


def test_another_machine_measures_other_figures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rig of a cluster stood elsewhere."""
    fresh = measurement(1.0, 1.0, stamp(device="Abacus 4")).to_dict()
    text = json.dumps({"networks": [{"trial": "dense", "now": fresh}], "skipped": []})
    monkeypatch.setattr(final_measure, "in_fresh_process", lambda *of: text)
    line = failing(monkeypatch, folder / "runs" / "good")
    assert "the search measured on Abacus 3, and this machine is Abacus 4" in line


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import sys; print('noise', file=sys.stderr); sys.exit('error: the rig is gone')", "(the rig is gone)"),
        ("import sys; sys.exit(3)", "(nothing was said)"),
        ("import os; os.kill(os.getpid(), 9)", "(its process was ended by signal 9)"),
        ("import time; time.sleep(60)", "(it took longer than 1 s)"),
        ("print('{')", "what its process printed cannot be read"),
    ],
)
def test_a_process_that_fails_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, program: str, says: str
) -> None:
    monkeypatch.setattr(final_measure, "PROGRAM", program)
    monkeypatch.setattr(final_measure, "PATIENCE_S", 1.0 if "sleep" in program else 600.0)
    monkeypatch.setattr(final_measure, "PATIENCE", 0.0)
    assert says in failing(monkeypatch, folder / "runs" / "good")


def test_no_process_and_ctrl_c_are_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(error: BaseException) -> None:
        def instead(*arguments: object, **options: object) -> None:
            raise error

        monkeypatch.setattr(subprocess, "run", instead)

    raises(KeyboardInterrupt())
    assert "(interrupted)" in failing(monkeypatch, folder / "runs" / "good")
    raises(OSError(11, "Resource temporarily unavailable"))
    assert "(no process could be started: Resource temporarily unavailable)" in failing(
        monkeypatch, folder / "runs" / "good"
    )


def test_a_real_process_measures_with_the_code_that_runs_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """From a folder with a `search.py` of its own; of the figures only the form."""
    (folder / "search.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.setattr(final_measure, "_require_same_device", lambda *of: None)  # the run was made up
    root = folder / "runs" / "good"
    assert again(root)
    store = RunStore.open(root)
    found = read_final(store, load_job(store.job_path))
    assert found is not None
    assert found.networks.keys() == {"dense", "0", "1", "2"}
    assert {m.stamp.rig for m in found.networks.values()} == {"onnxruntime-cpu"}
    record = json.loads((root / "measured" / "onnxruntime-cpu-1.json").read_text())
    assert [Measurement.from_dict(of["now"]) for of in record["networks"]] == list(found.networks.values())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--trial 9", "--trial 9: it is not in this run, and only complete trials have a network to measure"),
        ("--trial 0 --trial 4", "--trial 4: it is failed, and only complete trials"),
        ("--trial x", "'x' is not a whole number"),
        ("--trial 0 --all-trials", "--all-trials and --trial were given: leave one of them out"),
    ],
)
def test_mistakes(folder: Path, rig: FakeRig, capfd: pytest.CaptureFixture[str], arguments: str, says: str) -> None:
    _, err = said(capfd, "measure", "runs/good", *arguments.split(), code=2)
    assert says in err[-1]
    assert not (folder / "runs" / "good" / "measured").exists()


def test_one_trial_of_a_run_is_measured_by_its_number(
    folder: Path, rig: FakeRig, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also one behind the front, and each once."""
    printed = json.loads(said(capfd, "measure", "runs/good", "--json", "--trial", 3, "--trial", 0, "--trial", 3)[0])
    assert [n["trial"] for n in printed["networks"]] == ["dense", 3, 0]
    assert rig.measured == ["dense", "3", "0"]
    _, err = said(capfd, "measure", "dense.onnx", "--trial", 0, code=2)
    assert "--trial goes with a run folder: dense.onnx is none" in err[-1]
