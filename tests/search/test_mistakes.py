"""What a new user gets wrong: each ends in one line that names the value, the bound and the mend, before Ray starts."""

# ruff: noqa: E501  (one mistake a line: what was typed beside what is said)

from __future__ import annotations

import json
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from evaluators import Measurement
from search.address import checked_address
from search.bench import Prepared
from search.budget import Budget
from search.cli import run
from search.errors import BudgetUnreachable, UserError
from search.job import Job
from search.profile import require_reachable
from search.result import Baseline, TrialResult
from search.store import RunStore

SMALL = Path(__file__).parent / "small_task"

WRONG_TASKS = """
import small, torch
from torch import nn

def fails(): raise ValueError("no such file: data.npz")
def gives_a_number(): return 3

def not_a_number():
    task = small.task()
    task.train.x[17] = float("nan")
    return task

class Unexportable(small.Network):
    def forward(self, x):
        return super().forward(x) * float(torch.tensor(x.mean().item() > 1e9) + 1)

def unexportable(): return small.Task(name="u", model=lambda: Unexportable(16), train=small.bars(40, 0), val=small.bars(20, 1))
def hopeless(): return small.Task(name="h", model=lambda: small.Network(16), train=small.bars(40, 0), val=small.bars(20, 1), dense=small.DenseRecipe(epochs=1, lr=1e-9, min_accuracy=0.99))
"""

SECTIONS = {
    "task": "task: small:task",
    "layers": "layers: {exclude: [head]}",
    "sparsity": "sparsity: {align: 8}",
    "admm": "admm: {iterations: 2}",
    "finetune": "finetune: {epochs: 1}",
}


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
    return TrialResult(
        number=number, status="complete", plan_digest=f"p{number}", seed=0, accuracy=accuracy, accuracy_drop=100 * (0.98 - accuracy),
        latency_ms=latency_ms, latency_high_ms=latency_ms * 1.01, speedup=1.0 / latency_ms, speedup_low=0.99 / latency_ms,
        compression_x=2.0, macs=5, params=6,
    )  # fmt: skip


def make_run(root: Path, job: Path, results: list[TrialResult]) -> None:
    store = RunStore.create(root, job.read_text(), {})
    stamp = {"onnxruntime-cpu": {"stamp": {"clock": "thread_cpu"}}}
    store.write_baseline(
        Baseline(accuracy=0.98, accuracy_stderr=0.01, latency_ms=1.0, macs=10, params=12, weights=9, measurements=stamp)
    )
    onnx.save(model_of(4), store.baseline_dir / "model.onnx")
    for result in results:
        staged = store.attempt_dir(result.number, "one")
        if result.status == "complete":
            onnx.save(model_of(4), staged / "model.onnx")
            (staged / "weights.safetensors").write_bytes(b"")  # what is kept is told by it
        store.commit(result.number, staged, result)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a job that is right, tasks that are wrong, models, a run with trials and one without."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(SMALL / "small.py", folder)
    (folder / "wrong.py").write_text(WRONG_TASKS)
    write(folder, "job.yaml")
    (folder / "text.onnx").write_text("this is no model")
    onnx.save(model_of(4), folder / "four.onnx")
    onnx.save(model_of(5), folder / "five.onnx")
    failed = TrialResult(number=2, status="failed", plan_digest="p2", seed=0, reason="the loss is nan")
    make_run(folder / "runs" / "good", folder / "job.yaml", [complete(0, 0.97, 0.5), complete(1, 0.90, 0.25), failed])
    make_run(folder / "runs" / "bare", folder / "job.yaml", [])
    return folder


@pytest.fixture
def here(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That folder, and no Ray to be had: whoever imports it before the job is known to be right fails the test."""
    folder = tmp_path / "user"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("ray", "search.driver", "search.searcher", "search.rig_actor"):
        monkeypatch.setitem(sys.modules, name, None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)
    for name in ("small", "wrong"):
        sys.modules.pop(name, None)


def write(folder: Path, name: str, **sections: str) -> None:
    """A job file that is right but for the sections given."""
    (folder / name).write_text("\n".join({**SECTIONS, **sections}.values()) + "\n")


def refused(folder: Path, arguments: list[str], capfd: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Run a command that must be refused; returns the one line it says, having left nothing behind."""
    before = content(folder)
    capfd.readouterr()
    assert run(arguments) == code
    said, complaint = capfd.readouterr()
    assert "Traceback" not in said + complaint
    lines = complaint.splitlines()
    assert len(lines) == 1, complaint
    assert lines[0].startswith("error: ")
    assert content(folder) == before
    return lines[0].removeprefix("error: ")


def content(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() and path.name != "driver.lock" and "__pycache__" not in path.parts
    } | {str(path.relative_to(folder)): (0, 0) for path in folder.rglob("*/") if path.name != "__pycache__"}


@pytest.mark.parametrize(
    ("sections", "needles"),
    [
        ({"search": "search: {trails: 3}"}, ["bad.yaml:6: search.trails: unknown key; did you mean 'trials'?"]),
        ({"sparsity": "sparsity: {align: Auto}"}, ["bad.yaml:3: sparsity.align: must be auto or a whole number of at least 1, got 'Auto'; did you mean 'auto'?"]),
        ({"sparsity": "sparsity: {align: 0}"}, ["bad.yaml:3: sparsity.align: must be auto or a whole number of at least 1, got 0"]),
        ({"sparsity": "sparsity: {align: 1.5}"}, ["sparsity.align: must be auto or a whole number of at least 1, got 1.5"]),
        ({"sparsity": "sparsity: {align: true}"}, ["sparsity.align: must be auto or a whole number of at least 1, got true"]),
        ({"sparsity": "sparsity: {max: 1.2}"}, ["bad.yaml:3: sparsity.max: must lie in [0, 1), got 1.2"]),
        ({"structures": "structures: [filters]"}, ["bad.yaml:6: structures.0: must be filter, channel, shape, unstructured or n:m, got 'filters'; did you mean 'filter'?"]),
        ({"layers": "layers: {exclude: [haed]}"}, ["bad.yaml:2: layers.exclude.0: no layer matches 'haed'; did you mean 'head'?"]),
        ({"layers": "layers: {include: ['type:Conv3d']}"}, ["layers.include.0: no layer type matches 'Conv3d'; did you mean 'Conv2d'?"]),
        ({"layers": "layers: {exclude: ['*']}"}, ["bad.yaml:2: layers: no layer is left to prune: exclude fewer"]),
        ({"sparsity": "sparsity: {align: 64}"}, ["nothing can be pruned with structures filter", "too narrow", "64", "lower sparsity.align"]),
        ({"task": "task: smal:task"}, ["bad.yaml:1: task: there is no module 'smal'", "did you mean 'small'?"]),
        ({"task": "task: small:tsak"}, ["bad.yaml:1: task: small", "holds no function 'tsak'", "did you mean 'task'?"]),
        ({"task": "task: small.py:task"}, ["'small.py:task' names a file: name its module, small:task"]),
        ({"task": "task: wrong:fails"}, ["wrong.py:5: task 'wrong:fails' raised ValueError: no such file: data.npz"]),
        ({"task": "task: wrong:gives_a_number"}, ["wrong:gives_a_number must return a search.tasks.Task, got int"]),
        ({"task_args": "task_args: {wdith: 3}"}, ["bad.yaml:6: task_args.wdith: small:task takes no such argument; did you mean 'width'?"]),
        ({"task_args": "task_args: {width: wide}"}, ["task 'bars': model() raised TypeError"]),
        ({"task": "task: wrong:not_a_number"}, ["task 'bars': the train inputs hold NaN or infinity in 1 of 320 samples, first in sample 17: clean the data"]),
        ({"task": "task: wrong:unexportable"}, ["task 'u': the model cannot be exported: in the forward of Unexportable itself, whose path depends on the data: ", "torch.export must follow its forward, or a rig of modules decide (rigs: [torch-cpu]), which needs no ONNX file"]),
        ({"task": "task: wrong:hopeless"}, ["the dense network reaches", "below dense.min_accuracy 0.99: train longer (dense.epochs 1)"]),
        ({"rigs": "rigs: [onnxruntime-gpu]"}, ["bad.yaml:6: rigs.0: unknown rig 'onnxruntime-gpu': did you mean 'onnxruntime-cpu'?"]),
        ({"rigs": "rigs: [cuda]"}, ["bad.yaml:6: rigs.0: rig 'cuda' needs a CUDA device"]),
        ({"rigs": "rigs: [{name: torch-cpu, precision: fp16}]"}, ["bad.yaml:6: rigs.0: precision must be one of fp32, bf16, got 'fp16'"]),
        ({"rigs": "rigs: [torch-cpu]\nquantize: int8"}, ["bad.yaml:7: quantize: int8 is a form of ONNX files, and rig 'torch-cpu' measures modules: leave it out"]),
        ({"opset": "opset: 17"}, ["bad.yaml:6: opset: must lie in [18, 25], got 17"]),
        ({"structures": "structures: [n:m, shape]"}, ["bad.yaml:6: structures: 'n:m' goes with 'filter' only, not with 'shape': leave one out"]),
        ({"sparsity": "structures: [n:m]\nsparsity: {align: 8, max: 0.2}"}, ["no pattern n:m within [0, 0.2]: they remove 0.25, 0.5, 0.75"]),
        ({"rigs": "rigs: [{name: onnxruntime-cpu, threads: 999}]"}, ["bad.yaml:6: rigs.0: threads must lie in 1..", "got 999"]),
        ({"budget": "budget: {latency_ms: 1, speedup: 2}"}, ["bad.yaml:6: budget: give latency_ms or speedup, not both"]),
        ({"resources": "resources: {cpus_per_trial: 4096}"}, ["bad.yaml:6: resources.cpus_per_trial: a trial needs 4096 CPUs, this machine has ", "lower it"]),
        ({"search": "search: {trials: 0}"}, ["bad.yaml:6: search.trials: must be at least 1, got 0"]),
        ({"storage": "storage: job.yaml/deeper"}, ["cannot make", "job.yaml/deeper", "choose another --storage"]),
        ({"task": "task: [small"}, ["bad.yaml:2: not valid YAML"]),
    ],
)  # fmt: skip
def test_a_job_that_is_wrong(
    here: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, str],
    needles: list[str],
) -> None:
    write(here, "bad.yaml", **sections)
    if "unexportable" not in sections.get("task", ""):
        monkeypatch.setattr(Prepared, "check_shapes", lambda self: None)  # seconds, and not what is wrong
    line = refused(here, ["search", "bad.yaml"], capfd)
    for needle in needles:
        assert needle in line


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        ("search", ["Missing argument 'JOB.yaml|RUN'", "prunefront search --help"]),
        ("serch job.yaml", ["No such command 'serch'", "search"]),
        ("--speedup 2", ["No such option", "--speedup"]),
        ("search job.yaml --trails 3", ["No such option", "--trials", "prunefront search --help"]),
        ("search jub.yaml", ["jub.yaml: no such file; did you mean job.yaml?"]),
        ("search .", ["a folder, not a job file: try job.yaml"]),
        ("search runs", ["runs: a folder, not a job file"]),
        ("search text.onnx", ["text.onnx:1: a job is a mapping of keys"]),
        ("search job.yaml --speedup 0", ["--speedup: must be above 1, got 0"]),
        ("search job.yaml --speedup -1", ["--speedup: must be above 1, got -1"]),
        ("search job.yaml --speedup nan", ["--speedup: must be a finite number, got nan"]),
        ("search job.yaml --speedup fast", ["Invalid value for '--speedup': 'fast' is not a number", "prunefront search --help"]),
        ("search job.yaml --latency-ms 0", ["--latency-ms: must be above 0, got 0"]),
        ("search job.yaml --latency-ms 1 --speedup 2", ["--latency-ms and --speedup: give one of them, not both"]),
        ("search job.yaml --trials 0", ["--trials: must be at least 1, got 0"]),
        ("search job.yaml --seed -1", ["--seed: must lie in [0, 4.29497e+09), got -1"]),
        ("search job.yaml --time-budget soon", ["--time-budget: 'soon' is no duration above 0: write 90s, 10m or 1h30m"]),
        ("search job.yaml --time-budget 1h30", ["--time-budget: '1h30' is no duration"]),
        ("search job.yaml --time-budget 0m", ["--time-budget: '0m' is no duration above 0"]),
        ("search job.yaml --address 127.0.0.1:CLOSED", ["--address 127.0.0.1:CLOSED: no Ray cluster answers", "ray start --head"]),
        ("search job.yaml --address nowhere", ["--address must be local, auto or HOST:PORT, got 'nowhere'"]),
        ("search job.yaml --address auto", ["--address auto: no Ray cluster runs on this machine"]),
        ("search job.yaml --name good", ["run good exists already: `prunefront search runs/good` goes on with it"]),
        ("search job.yaml --name ../x", ["a run's name is at most 100 letters", "got '../x'"]),
        ("search job.yaml --storage job.yaml", ["cannot make", "choose another --storage"]),
        ("search runs/good --name other", ["--name and --storage belong to a new run"]),
        ("front runs/none", ["runs/none is not a run folder: it does not exist"]),
        ("front job.yaml", ["job.yaml is not a run folder: it is a file"]),
        ("front runs", ["runs is not a run folder: job.yaml, environment.json, trials, baseline missing"]),
        ("front", ["Missing argument 'RUN'"]),
        ("export runs/good --out new", ["say which network to export by exactly one of --latency-ms, --speedup, --max-drop, --trial: nothing was said"]),
        ("export runs/good --out new --speedup 2 --trial 1", ["exactly one of", "--speedup and --trial were given"]),
        ("export runs/good --speedup 2", ["Missing option '--out'"]),
        ("export runs/good --out new --speedup 0", ["--speedup must be above 0, got 0"]),
        ("export runs/good --out new --speedup nan", ["--speedup must be above 0, got nan"]),
        ("export runs/good --out new --max-drop -1", ["--max-drop must be at least 0, got -1"]),
        ("export runs/good --out new --trial 7", ["there is no finished trial 7: on the front are 0, 1"]),
        ("export runs/good --out new --trial 2", ["trial 2 failed: the loss is nan: choose another"]),
        ("export runs/bare --out new --speedup 2", ["no trial of this run is complete: nothing can be exported yet"]),
        ("export runs/none --out new --trial 0", ["runs/none is not a run folder"]),
        ("export runs/good --out runs --trial 0", ["--out runs exists already and is not empty: choose a new folder"]),
        ("export runs/good --out job.yaml --trial 0", ["--out job.yaml is a file: choose a new folder"]),
        ("export runs/good --out job.yaml/new --trial 0", ["--out job.yaml/new cannot be written", "choose another folder"]),
        ("measure none.onnx", ["none.onnx: no such file"]),
        ("measure text.onnx", ["ONNX Runtime cannot load text.onnx"]),
        ("measure runs", ["runs: a folder, not an ONNX file"]),
        ("measure four.onnx --against none.onnx", ["none.onnx: no such file"]),
        ("measure four.onnx --against five.onnx", ["candidate and reference read different inputs", "(1, 4)", "(1, 5)"]),
        ("measure four.onnx --rig cuda", ["rig 'cuda' needs a CUDA device"]),
        ("measure four.onnx --rig torch-cpu", ["rig 'torch-cpu' measures torch modules", "or measure the ONNX file on onnxruntime-cpu"]),
        ("measure four.onnx --threads 0", ["threads must lie in 1..", "got 0"]),
        ("measure four.onnx --batch 0", ["batch must be an integer >= 1, got 0"]),
        ("measure four.onnx --batch 1.5", ["Invalid value for '--batch': '1.5' is not a whole number"]),
        ("measure four.onnx --threads 999", ["threads must lie in 1..", "got 999"]),
    ],
)  # fmt: skip
def test_a_command_line_that_is_wrong(
    here: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    needles: list[str],
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(here / "no ray"))
    monkeypatch.setattr(Prepared, "check_shapes", lambda self: None)  # seconds, and none of these is about it
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there, nobody else takes it
        port = str(taken.getsockname()[1])
        line = refused(here, arguments.replace("CLOSED", port).split(), capfd)
    for needle in needles:
        assert needle.replace("CLOSED", port) in line


@pytest.mark.parametrize(
    ("answer", "is_ray"),
    [(b"HTTP/1.0 400 Bad Request\r\n\r\n", False), (b"", False), (bytes([0, 0, 0x18, 4, 0, 0, 0, 0, 0]), True)],
)
def test_an_address_where_something_else_answers(answer: bytes, is_ray: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the dashboard, or a web server: Ray would go on trying for minutes."""
    monkeypatch.setattr("search.address.TIMEOUT_S", 600.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        if is_ray:
            assert checked_address(address) == address
        else:
            with pytest.raises(UserError, match=f"what answers at {address} is no Ray head: give the port that"):
                checked_address(address)
        thread.join()


def test_auto_means_the_cluster_that_ray_would_join(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(
        UserError, match=r"--address auto: no Ray cluster answers at 127.0.0.1:1 \(Connection refused\)"
    ):
        checked_address("auto")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(here))
    (here / "ray").mkdir()
    (here / "ray" / "ray_current_cluster").write_text("127.0.0.1:2\n")
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127.0.0.1:2"):
        checked_address("auto")
    assert checked_address("local") is None
    assert checked_address(None) is None


@pytest.mark.parametrize(
    ("plan", "needles"),
    [
        ("{not json", ["plan.json: not JSON"]),
        ("[1, 2]", ["plan.json: holds a list, not an object"]),
        ('{"stom": {"filter": 0.5}}', ["plan.json: the network has no prunable layer 'stom'; did you mean 'stem'?"]),
        ('{"first": {"filters": 0.5}}', ["plan.json: layer 'first': unknown structure 'filters': use one of filter, channel"]),
        ('{"first": {"filter": 1.0}}', ["plan.json: layer 'first': sparsity must lie in [0, 1), got 1.0 for 'filter'"]),
        ('{"first": {"filter": "half"}}', ["plan.json: layer 'first': sparsity must be a number in [0, 1), got 'half'"]),
        ('{"first": {"filter": NaN}}', ["plan.json: layer 'first': sparsity must lie in [0, 1), got nan"]),
        ('{"second": {"filter": 0.5}}', ["layer 'second': its filters are coupled with those of 'stem': put the filter sparsity there"]),
        ('{"head": {"filter": 0.5}}', ["layer 'head': its filters cannot be removed: ", "output"]),
    ],
)  # fmt: skip
def test_a_plan_that_is_wrong(here: Path, capfd: pytest.CaptureFixture[str], plan: str, needles: list[str]) -> None:
    (here / "plan.json").write_text(plan)
    line = refused(here, ["prune", "job.yaml", "--plan", "plan.json", "--out", "new"], capfd)
    for needle in needles:
        assert needle in line


def test_a_plan_that_is_not_there(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = refused(here, ["prune", "job.yaml", "--plan", "plan.json", "--out", "new"], capfd)
    assert line == "--plan plan.json cannot be read: No such file or directory"


@pytest.mark.parametrize("name", ["search.py", "admm.py"])
def test_a_file_with_the_name_of_ours(here: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    (here / name).write_text("")
    line = refused(here, ["search", "job.yaml"], capfd)
    assert line.endswith(f"{name} has the name of a package of prunefront, {name[:-3]!r}: rename it")


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


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("--speedup 9", "no trial keeps the budget of 9x on onnxruntime-cpu: the fastest is trial 1 with 0.2525 ms, 3.96x: ask for less"),
        ("--latency-ms 0.1", "no trial keeps the budget of 0.1 ms on onnxruntime-cpu: the fastest is trial 1"),
        ("--max-drop 0.5", "no trial drops at most 0.5 pp: the least is 1.00 pp, by trial 0"),
    ],
)  # fmt: skip
def test_an_export_that_no_trial_can_serve(
    here: Path, capfd: pytest.CaptureFixture[str], asked: str, says: str
) -> None:
    line = refused(here, ["export", "runs/good", "--out", "new", *asked.split()], capfd, code=3)
    assert says in line


def test_an_export_of_a_run_whose_dense_file_is_gone(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "runs" / "good" / "baseline" / "model.onnx").unlink()
    line = refused(here, ["export", "runs/good", "--out", "new", "--trial", "1"], capfd)
    assert "model.onnx is gone, and every network is measured against it: put it back from a copy" in line


def test_an_export_whose_fresh_measurement_misses_the_budget(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # The files of this run are one and the same model, whatever its records say.
    line = refused(here, ["export", "runs/good", "--out", "new", "--speedup", "3"], capfd, code=3)
    assert line.startswith("1 trial kept the budget of 3x on onnxruntime-cpu in the search, none does now (trial 1: ")


def test_a_run_that_was_damaged(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(here / "runs" / "good" / "baseline")
    line = refused(here, ["search", "runs/good"], capfd)
    assert line == "runs/good is not a run folder: baseline missing"
    (here / "runs" / "bare" / "baseline" / "baseline.json").write_text("{")
    line = refused(here, ["front", "runs/bare"], capfd)
    assert "baseline.json: not JSON, perhaps torn" in line
    assert line.endswith("remove it to measure again")


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


def test_help_is_no_complaint(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["search", "-h"], ["front", "--help"], ["export", "--help"], ["prune", "-h"]):
        assert run(arguments) == 0
        said, complaint = capfd.readouterr()
        assert said.startswith("Usage: prunefront")
        assert complaint == ""
    assert run([]) == 2
    assert "Usage: prunefront" in "".join(capfd.readouterr())


def test_json_of_the_front_is_json(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same folder, used rightly: what the mistakes above are measured against."""
    assert run(["front", "runs/good", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["front"]
    assert [row["trial"] for row in rows] == ["dense", 0, 1]
    assert np.isclose(rows[1]["speedup"], 2.0)
