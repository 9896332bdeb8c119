"""The examples of segmentation and regression, pruned in this process as `prunefront prune` does it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
import yaml
from rich.console import Console
from torch import Tensor, nn

from admm.compact import load_pruned
from evaluators import OnnxPredictor, check_parity, evaluate
from search.job_file import load_job
from search.prune_command import prune_to_folder
from search.tasks import prepare
from search.tasks.dense import build_model

EXAMPLES = Path(__file__).parents[2] / "examples"
#: Small enough for seconds: task arguments, the plan, and the filters that must be left in each layer.
CASES = {
    "segmentation": (
        {"width": 8, "side": 16, "samples": 200, "epochs": 10},
        {"down.0": {"filter": 0.5}, "up1": {"filter": 0.5}},
        {"down.0": 8, "down.3": 16, "up1": 4, "up2": 8},
    ),
    "regression": (
        {"width": 8, "samples": 400, "epochs": 12},
        {"body.0": {"filter": 0.5}, "body.3": {"filter": 0.25}},
        {"body.0": 4, "body.3": 12, "body.6": 16},
    ),
}


@pytest.fixture(autouse=True)
def _one_thread_and_clean_imports() -> Iterator[None]:
    path, threads = list(sys.path), torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    sys.path[:] = path
    for name in CASES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", CASES)
def test_an_example_is_pruned_to_a_file_that_computes_the_same(name: str, tmp_path: Path) -> None:
    args, plan, left = CASES[name]
    content = yaml.safe_load((EXAMPLES / name / "job.yaml").read_text())
    content |= {"task_args": args, "base_dir": str(EXAMPLES / name), "admm": {**content["admm"], "iterations": 2}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    out = tmp_path / "out"
    prune_to_folder(tmp_path / "job.yaml", plan=tmp_path / "plan.json", out=out, console=Console(quiet=True))

    task = load_job(tmp_path / "job.yaml").load_task()
    prepared = prepare(task)
    inputs = next(iter(prepared.val_batches()))[0]
    small = load_pruned(build_model(prepared), out)
    assert check_parity(small, out / "model.onnx", [inputs]).ok
    for layer, filters in left.items():
        module = small.get_submodule(layer)
        width = module.weight.shape[1 if isinstance(module, nn.ConvTranspose2d) else 0]  # type: ignore[union-attr, index]
        assert width == filters, layer
    assert [o.name for o in onnx.load(out / "model.onnx").graph.output] == ["output"]

    result = json.loads((out / "result.json").read_text())
    score = evaluate(OnnxPredictor(out / "model.onnx"), prepared.val_batches(), task.metric)
    assert math.isclose(score.value, result["accuracy"], abs_tol=1e-6)
    assert 0.3 < score.value <= 1.0, "it still does its work"


def metric_of(name: str) -> object:
    sys.path.append(str(EXAMPLES / name))
    return __import__(name)


def test_mean_iou_is_that_of_each_image() -> None:
    module = metric_of("segmentation")
    labels = torch.tensor([[[0, 0], [1, 1]], [[2, 2], [2, 2]], [[0, 0], [0, 0]]])
    told = torch.tensor([[[0, 1], [1, 1]], [[2, 2], [2, 2]], [[1, 1], [1, 1]]])
    outputs = torch.nn.functional.one_hot(told, 3).permute(0, 3, 1, 2).float()
    assert module.mean_iou(outputs, labels).tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, 1.0, 0.0])  # type: ignore[attr-defined]


def test_r_squared_is_that_of_all_samples() -> None:
    module = metric_of("regression")
    targets: Tensor = module.waves(4000, seed=3).y  # type: ignore[attr-defined]
    outputs = 0.8 * targets + 0.1
    whole = 1 - (outputs - targets).square().sum() / (targets - targets.mean()).square().sum()
    assert float(module.r_squared(outputs, targets).mean()) == pytest.approx(float(whole), abs=0.02)  # type: ignore[attr-defined]
