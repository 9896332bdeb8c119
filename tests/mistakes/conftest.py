"""A new user's folder: a job that is right, modules that are not, models, a run with trials and one without."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from search.result import Baseline, TrialResult
from search.store import RunStore
from tests.mistakes.typed import job
from tests.search.fabricated_run import RIG, measurement

SMALL = Path(__file__).parents[1] / "search" / "small_task" / "small.py"


def model_of(width: int) -> onnx.ModelProto:
    """relu on [batch, width]: the smallest thing that can be measured."""
    shape = ["batch", width]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["input"], ["output"])],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def complete(number: int, accuracy: float, latency_ms: float) -> TrialResult:
    drop = 100 * (0.98 - accuracy)
    return TrialResult(
        number=number,
        status="complete",
        plan_digest=f"p{number}",
        seed=0,
        accuracy=accuracy,
        accuracy_drop=drop,
        latency_ms=latency_ms,
        latency_high_ms=latency_ms * 1.01,
        speedup=1.0 / latency_ms,
        speedup_low=0.99 / latency_ms,
        compression_x=2.0,
        macs=5,
        params=6,
    )


def make_run(root: Path, results: list[TrialResult]) -> None:
    store = RunStore.create(root, job(), {})
    dense = {RIG: measurement(1.0)}
    store.write_baseline(
        Baseline(accuracy=0.98, accuracy_stderr=0.01, latency_ms=1.0, macs=10, params=12, weights=9, measurements=dense)
    )
    onnx.save(model_of(4), store.baseline_dir / "model.onnx")
    for result in results:
        staged = store.attempt_dir(result.number, "one")
        if result.status == "complete":
            onnx.save(model_of(4), staged / "model.onnx")
            (staged / "weights.safetensors").write_bytes(b"")  # what is kept is told by it
        store.commit(result.number, staged, result)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(SMALL, folder)
    shutil.copy(Path(__file__).parent / "wrong.py", folder)
    (folder / "job.yaml").write_text(job())
    (folder / "text.onnx").write_text("this is no model")
    onnx.save(model_of(4), folder / "four.onnx")
    onnx.save(model_of(5), folder / "five.onnx")
    failed = TrialResult(number=2, status="failed", plan_digest="p2", seed=0, reason="the loss is nan")
    make_run(folder / "runs" / "good", [complete(0, 0.97, 0.5), complete(1, 0.90, 0.25), failed])
    make_run(folder / "runs" / "bare", [])
    return folder


@pytest.fixture
def here(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That folder, and no Ray to be had: whoever imports it before the job is known to be right fails the test."""
    folder = tmp_path / "user"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "no ray"))
    for name in ("ray", "search.driver", "search.searcher", "search.rig_actor"):
        monkeypatch.setitem(sys.modules, name, None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)
    for name in ("small", "wrong"):
        sys.modules.pop(name, None)
