"""Mistakes with runs and where they are kept: folders that are there, are not, or are another's; exports."""

# ruff: noqa: E501  (one mistake a line: what was typed beside what is said)

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from evaluators import Measurement
from search.bench import Prepared
from search.budget import Budget
from search.cli import run
from search.errors import BudgetUnreachable, UserError
from search.job import Job
from search.profile import require_reachable
from tests.mistakes.typed import Mistake, job, refused, typed

FOLDERS = [
    typed("search job.yaml --name good", "run good exists already: `prunefront search runs/good` goes on with it, or choose another --name"),
    typed("search job.yaml --name ../x", "a run's name is at most 100 letters", "got '../x'"),
    typed("search job.yaml --storage job.yaml", "cannot make", "a file stands where a folder is needed: choose another --storage"),
    typed("search runs/none", "runs/none: no such file"),
    typed("search runs/good --name other", "--name and --storage belong to a new run: leave them out to go on with one"),
    typed("front runs/none", "runs/none is not a run folder: it does not exist"),
    typed("front job.yaml", "job.yaml is not a run folder: it is a file"),
    typed("front runs", "runs is not a run folder: job.yaml, environment.json, trials, baseline missing"),
    typed("status runs/none", "runs/none is not a run folder: it does not exist"),
    typed("report runs", "runs is not a run folder: give the folder that `prunefront search` made"),
    typed("report runs/good --out runs", "--out runs is a folder: name the file, such as runs/report.html"),
    typed("measure runs/good --trial 9", "--trial 9: it is not in this run"),
]  # fmt: skip

EXPORTS = [
    typed("export runs/good --out new", "say which network to export by exactly one of --latency-ms, --speedup, --max-drop, --trial: nothing was said"),
    typed("export runs/good --out new --speedup 2 --trial 1", "exactly one of", "--speedup and --trial were given"),
    typed("export runs/good --speedup 2", "Missing option '--out'"),
    typed("export runs/good --out new --speedup 0", "--speedup must be above 0, got 0"),
    typed("export runs/good --out new --speedup nan", "--speedup must be above 0, got nan"),
    typed("export runs/good --out new --max-drop -1", "--max-drop must be at least 0, got -1"),
    typed("export runs/good --out new --trial 7", "there is no finished trial 7: on the front are 0, 1"),
    typed("export runs/good --out new --trial -1", "--trial must be at least 0, got -1"),
    typed("export runs/good --out new --trial 2", "trial 2 failed: the loss is nan: choose another"),
    typed("export runs/bare --out new --speedup 2", "no trial of this run is complete: nothing can be exported yet"),
    typed("export runs/none --out new --trial 0", "runs/none is not a run folder"),
    typed("export runs/good/trials/0 --out new --trial 0", "runs/good/trials/0 is not a run folder: job.yaml"),
    typed("export runs/good --out runs --trial 0", "--out runs exists already and is not empty: choose a new folder"),
    typed("export runs/good --out '' --trial 0", "--out . exists already and is not empty: choose a new folder"),
    typed("export runs/good --out job.yaml --trial 0", "--out job.yaml is a file: choose a new folder"),
    typed("export runs/good --out job.yaml/new --trial 0", "--out job.yaml/new cannot be written", "choose another folder"),
    typed("export runs/good --out new --speedup 9", "no trial keeps the budget of 9x on onnxruntime-cpu: the fastest is trial 1 with 0.2525 ms, 3.96x: ask for less", code=3),
    typed("export runs/good --out new --latency-ms 0.1", "no trial keeps the budget of 0.1 ms on onnxruntime-cpu: the fastest is trial 1", code=3),
    typed("export runs/good --out new --max-drop 0.5", "no trial drops at most 0.5 pp: the least is 1.00 pp, by trial 0", code=3),
    # the files of this run are one and the same model, whatever its records say
    typed("export runs/good --out new --speedup 3", "1 trial kept the budget of 3x on onnxruntime-cpu in the search, none does now (trial 1: ", code=3),
]  # fmt: skip


@pytest.mark.parametrize("mistake", [*FOLDERS, *EXPORTS], ids=str)
def test_a_folder_or_an_export_that_is_wrong(here: Path, capfd: pytest.CaptureFixture[str], mistake: Mistake) -> None:
    mistake.make(here, capfd)


@pytest.fixture
def read_only(tmp_path: Path) -> Path:
    """A folder in which nobody may make another, the superuser included."""
    folder = tmp_path / "read only"
    folder.mkdir(mode=0o555)
    folder = folder if not os.access(folder, os.W_OK) else Path("/sys")
    if not folder.is_dir():
        pytest.skip("the superuser may write everywhere here: there is no /sys")
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("search job.yaml --storage READ_ONLY/runs", "choose a folder that can be written with --storage"),
        ("export runs/good --trial 0 --out READ_ONLY/new", "choose another folder"),
        ("prune job.yaml --compression-x 2 --out READ_ONLY/new", "choose another folder"),
        ("report runs/good --no-layer-times --out READ_ONLY/new.html", ""),
    ],
)
def test_a_disk_that_cannot_be_written(
    here: Path,
    read_only: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    says: str,
) -> None:
    monkeypatch.setattr(Prepared, "check_shapes", lambda self: None)
    words = [word.replace("READ_ONLY", str(read_only)) for word in arguments.split()]
    line = refused(here, words, capfd)
    assert str(read_only) in line
    assert any(why in line for why in ("Permission denied", "Operation not permitted", "Read-only file system"))
    assert says in line


def test_a_run_of_another_job(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its job.yaml was exchanged: its trials would not compare with new ones."""
    run_job = here / "runs" / "good" / "job.yaml"
    environment = here / "runs" / "good" / "environment.json"
    environment.write_text(json.dumps({"recipe": {"task": "small:task", "task_args": {}, "admm": {"lr": 0.01}}}))
    run_job.write_text(job("task: wrong:frozen"))
    line = refused(here, ["search", "runs/good"], capfd)
    assert "job.yaml: task was 'small:task' when the run began and is 'wrong:frozen' now" in line
    assert line.endswith("change it back, or start a new run with a job file")
    run_job.write_text(job("admm: {lr: 0.5}"))
    assert "admm.lr was 0.01 when the run began and is 0.5 now" in refused(here, ["search", "runs/good"], capfd)


def test_a_run_that_was_damaged(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(here / "runs" / "good" / "baseline")
    line = refused(here, ["search", "runs/good"], capfd)
    assert line == "runs/good is not a run folder: baseline missing"
    (here / "runs" / "bare" / "baseline" / "baseline.json").write_text("{")
    line = refused(here, ["front", "runs/bare"], capfd)
    assert "baseline.json: not JSON, perhaps torn" in line
    assert line.endswith("remove it to measure again")
    (here / "runs" / "bare" / "job.yaml").write_text("task: [")
    for command in ("front", "status", "report"):
        assert "runs/bare/job.yaml:1: not valid YAML" in refused(here, [command, "runs/bare"], capfd)


def test_an_export_of_a_run_whose_dense_file_is_gone(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "runs" / "good" / "baseline" / "model.onnx").unlink()
    line = refused(here, ["export", "runs/good", "--out", "new", "--trial", "1"], capfd)
    assert "model.onnx is gone, and every network is measured against it: put it back from a copy" in line


def test_a_budget_out_of_reach_is_told_before_anything_is_trained(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = refused(here, ["search", "job.yaml", "--speedup", "5000"], capfd, code=3)
    assert line.startswith("the budget of 5000x on onnxruntime-cpu cannot be met: the fastest reachable network takes ")
    assert line.endswith("x: ask for less, raise sparsity.max (0.9), lower sparsity.align (8), or add layers")


def test_zeros_alone_are_said_to_save_no_time() -> None:
    measured = SimpleNamespace(latency_high_ms=1.02, speedup_low=0.98)
    with pytest.raises(
        BudgetUnreachable, match=r"takes 1.02 ms, 0.98x: ask for less, or add the structure filter: single zeros"
    ):
        require_reachable(
            Budget(speedup=2.0), cast(Measurement, measured), Job(task="a:b", structures=("unstructured",))
        )


def test_a_refused_budget_does_not_change_the_run(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (here / "runs" / "good" / "job.yaml").read_text()
    (here / "runs" / "good" / "driver.lock").write_text("")
    shutil.copy(here / "small.py", here / "runs" / "good")
    refused(here, ["search", "runs/good", "--speedup", "5000"], capfd, code=3)
    assert (here / "runs" / "good" / "job.yaml").read_text() == before


def test_a_cluster_that_is_lost_after_training_keeps_the_network(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails later than it should, with a network trained meanwhile, says how to go on."""

    def lost(*arguments: object, **options: object) -> None:
        raise UserError("--address 10.0.0.1:6379: no Ray cluster answers there")

    monkeypatch.setattr(Prepared, "check_shapes", lambda self: None)
    driver: Callable[..., None] = lost
    monkeypatch.setitem(sys.modules, "search.driver", type("driver", (), {"run_search": staticmethod(driver)}))
    assert run(["search", "job.yaml", "--name", "kept"]) == 2
    complaint = capfd.readouterr().err
    assert complaint.count("\n") == 1
    assert complaint.endswith("the dense network is kept: prunefront search runs/kept goes on with it\n")
    assert (here / "runs" / "kept" / "baseline" / "weights.safetensors").exists()


def test_ctrl_c_in_a_command_without_ray_leaves_nothing(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.prune_command.evaluate_plan", interrupted)
    (here / "plan.json").write_text('{"first": {"filter": 0.5}}')
    line = refused(here, ["prune", "job.yaml", "--plan", "plan.json", "--out", "new"], capfd, code=130)
    assert line == "interrupted: nothing was written"


def test_the_same_folder_used_rightly(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What the mistakes above are measured against."""
    assert run(["front", "runs/good", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["front"]
    assert [row["trial"] for row in rows] == ["dense", 0, 1]
    assert np.isclose(rows[1]["speedup"], 2.0)
