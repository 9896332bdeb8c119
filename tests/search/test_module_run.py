"""A whole search on a rig of modules, through Ray, and what the commands make of its folder; no figure is looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from admm.compact import load_pruned
from evaluators.parity import compare_modules
from search import load_measured
from search.bench import open_bench
from search.cli import run
from search.store import RunStore

SMALL = Path(__file__).parent / "small_task"
JOB = """
task: small:task
layers: {exclude: [head]}
structures: [filter, shape]
rigs: [torch-cpu]
sparsity: {align: 8}
admm: {iterations: 2}
finetune: {epochs: 1}
search: {trials: 2, final_stretch: 1}
resources: {max_concurrent: 2}
"""
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a search of two trials."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "small.py").write_text((SMALL / "small.py").read_text())
    (folder / "job.yaml").write_text(JOB)
    done = subprocess.run(
        [sys.executable, "-c", "from search.cli import main; main()", "search", "job.yaml", "--name", "small"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SMALL.parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "small"


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    torch.set_num_threads(threads)
    sys.modules.pop("small", None)


def said(capfd: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    capfd.readouterr()
    assert run([str(argument) for argument in arguments]) == code
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    return out + err


def test_trials_ship_modules_and_no_onnx_file(searched: Path) -> None:
    results = RunStore.open(searched).results()
    assert [r.status for r in results.values()] == ["complete", "complete"], [r.reason for r in results.values()]
    assert list(searched.rglob("*.onnx")) == []
    for number, result in results.items():
        assert set(result.measurements) == {"torch-cpu"}
        assert result.measurements["torch-cpu"]["stamp"]["clock"] == "thread_cpu"
        found = {path.name for path in (searched / "trials" / str(number)).iterdir()}
        assert found == {"plan.json", "result.json", "trace.jsonl", "weights.safetensors"}


def test_what_a_trial_ships_is_scored_as_its_record_says(searched: Path) -> None:
    store = RunStore.open(searched)
    bench = open_bench(store)
    assert bench.modules is not None
    for number, result in store.results().items():
        folder = store.trial_dir(number)
        task = bench.task.task
        loaded = load_measured(task.model(), folder)
        right = [(task.metric(loaded(x), y)) for x, y in bench.task.val_batches()]
        assert float(torch.cat(right).double().mean()) == result.accuracy
        inputs = [next(iter(bench.task.val_batches()))[0]]
        assert compare_modules(load_pruned(task.model(), folder), loaded, inputs, tolerance=1e-4).ok


def test_a_run_is_measured_again_on_a_rig_of_modules_and_on_no_other(
    searched: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(said(capfd, "measure", searched, "--json", "--all-trials").partition("\n}\n")[0] + "\n}")
    assert [row["trial"] for row in content["networks"]] == ["dense", 0, 1]
    assert content["stamp"]["rig"] == "torch-cpu"
    line = said(capfd, "measure", searched, "--rig", "onnxruntime-cpu", code=2)
    assert "rig 'onnxruntime-cpu' takes ONNX files, and this run ships modules, as torch-cpu measures" in line


def test_a_trial_is_exported_with_how_to_load_it(
    searched: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said(capfd, "export", searched, "--trial", 0, "--out", tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "plan.json",
        "weights.safetensors",
        "trace.jsonl",
        "card.json",
        "README.md",
    }
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["load"] == {
        "admm": "admm.load_pruned(build_model(), FOLDER)",
        "torch-cpu": "search.load_measured(build_model(), FOLDER, 'torch-cpu')",
    }
    assert set(card["modules"]) == {"torch-cpu"}
    line = said(capfd, "export", searched, "--trial", 0, "--int8", "--out", tmp_path / "other", code=2)
    assert "--int8: int8 is a form of ONNX files, and this run decides on torch-cpu: leave it out" in line


def test_a_trial_comes_back_bit_equal_from_its_plan(
    searched: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan = searched / "trials" / "0" / "plan.json"
    said(capfd, "prune", searched, "--plan", plan, "--out", tmp_path / "again")
    weights = (tmp_path / "again" / "weights.safetensors").read_bytes()
    assert weights == (searched / "trials" / "0" / "weights.safetensors").read_bytes()
    assert not (tmp_path / "again" / "model.onnx").exists()


@pytest.mark.slow
def test_the_profile_of_a_run_says_what_is_known_of_modules(searched: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shown = said(capfd, "profile", searched)
    assert "rig        torch-cpu: " in shown
    assert "not timed: ONNX Runtime's profiler times them on onnxruntime-cpu, not on torch-cpu" in shown
    assert "fastest" in shown
