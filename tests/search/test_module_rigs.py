"""Trials whose rig measures modules: what they ship, that it is what was measured, and what ends them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from admm.compact import load_pruned
from admm.plan import PruningPlan
from evaluators import Measurement, check_parity, evaluate, module_predictor
from evaluators.accuracy import Predict
from evaluators.errors import EvaluationError
from evaluators.kept_columns import KeptColumnsConv2d
from evaluators.module_form import KEPT_COLUMNS
from evaluators.torch_rig import TorchCpuRig
from search import load_measured
from search.bench import DenseForms, local_measure, local_modules
from search.errors import UserError
from search.job import Job
from search.module_artefact import ModuleArtefact
from search.module_rigs import LocalModules
from search.payload import Payload
from search.profile import fast_structures, gainless_notes
from search.result import TrialResult
from search.trial import Bench, TrialSpec
from search.worker import TrialRun, evaluate_plan
from tests.search import test_worker
from tests.search.test_budget import MEASURED
from tests.search.test_worker import make_bench

PLAN = PruningPlan({"0": {"filter": 0.5}, "3": {"filter": 0.5, "shape": 0.75}})


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Timed:
    """Stands in for the stopwatch of `torch-cpu`, and notes what it was given: columns gain, all else is even."""

    def __init__(self, gain: float = 2.0) -> None:
        self.gain = gain
        self.candidates: list[nn.Module] = []
        self.batches: list[int] = []

    def __call__(
        self, rig: TorchCpuRig, candidate: nn.Module, reference: nn.Module, example_input: Tensor, *, batch: int = 1
    ) -> Measurement:
        self.candidates.append(candidate)
        self.batches.append(batch)
        ratio = self.gain if any(isinstance(m, KeptColumnsConv2d) for m in candidate.modules()) else 1.0
        return replace(
            MEASURED, speedup=ratio, speedup_low=0.99 * ratio, speedup_high=1.01 * ratio, stamp=rig.stamp(batch)
        )


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Timed:
    made = Timed()
    monkeypatch.setattr(TorchCpuRig, "measure_modules", lambda self, *a, **b: made(self, *a, **b))
    return made


def bench_on(rigs: list[Any], **sections: Any) -> Bench:
    """A bench whose modules are answered for here, and whose ONNX files weigh what they weigh."""
    bench = make_bench(rigs=rigs, structures=["filter", "shape"], **{"lower": True, **sections})
    modules = local_modules(bench.job, bench.task)
    dense = DenseForms(module=Payload.of(bench.dense, {}).to_bytes())
    inner = local_measure(bench.job, dense, modules)

    def measure(rig: str, candidate: bytes, reference: bytes | None = None) -> Measurement:
        if rig == "onnxruntime-cpu":
            return test_worker._measure(rig, candidate, reference)
        return inner(rig, candidate, reference)

    return replace(bench, modules=modules, measure=measure)


def run_on(rigs: list[Any], out: Path, **sections: Any) -> tuple[TrialResult, TrialRun]:
    spec = TrialSpec(number=0, plan=PLAN, params={}, seed=0)
    return evaluate_plan(bench_on(rigs, **sections), spec, artefacts=out)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_trial_ships_the_module_that_was_measured(timed: Timed, tmp_path: Path, precision: str) -> None:
    result, run = run_on([{"name": "torch-cpu", "precision": precision, "batch": 4}], tmp_path)
    assert result.status == "complete", result.reason
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "weights.safetensors", "trace.jsonl"}
    assert result.lowered is not None
    assert [layer["choice"] for layer in result.lowered["layers"] if layer["name"] == "3"] == [KEPT_COLUMNS]
    assert set(timed.batches) == {4}
    assert set(result.measurements) == {"torch-cpu"}
    assert result.measurements["torch-cpu"]["stamp"]["provider"] == f"{precision}, eager"
    assert result.speedup == 2.0

    # what lies in the folder is, to the last bit, what the stopwatch was given last
    loaded = load_measured(test_worker._network(), tmp_path)
    measured = timed.candidates[-1].to(torch.float32 if precision == "fp32" else torch.bfloat16).state_dict()
    state = loaded.state_dict()
    assert list(state) == list(measured)
    assert all(torch.equal(value, measured[name]) for name, value in state.items())
    assert isinstance(loaded.get_submodule("3"), KeptColumnsConv2d)

    # its accuracy is that of the record, and the plain network in fp32 says the same within the bound
    bench = run._bench
    dtype = next(loaded.parameters()).dtype

    def predict(x: Tensor) -> Tensor:
        return module_predictor(loaded)(x.to(dtype)).float()

    score = evaluate(predict, bench.task.val_batches(), bench.task.task.metric)
    assert (score.value, score.stderr) == (result.accuracy, result.accuracy_stderr)
    plain = load_pruned(test_worker._network(), tmp_path)
    assert type(plain.get_submodule("3")) is nn.Conv2d
    x = torch.randn(8, 1, 6, 6)
    want = module_predictor(plain)(x)
    assert float((predict(x) - want).abs().max() / want.abs().max()) <= (1e-4 if precision == "fp32" else 2e-2)
    assert result.parity_max_abs is not None


def test_rigs_of_both_kinds_ship_both_forms(timed: Timed, tmp_path: Path) -> None:
    result, _ = run_on(["torch-cpu", "onnxruntime-cpu"], tmp_path)
    assert result.status == "complete", result.reason
    assert (tmp_path / "model.onnx").is_file()
    assert set(result.measurements) == {"torch-cpu", "onnxruntime-cpu"}
    assert result.speedup == 2.0
    plain = load_pruned(test_worker._network(), tmp_path)
    assert check_parity(plain, tmp_path / "model.onnx", [torch.randn(4, 1, 6, 6)]).ok
    content = json.loads((tmp_path / "plan.json").read_text())
    assert content["modules"] == {"torch-cpu": {"precision": "fp32", "lowering": {"3": KEPT_COLUMNS}}}
    # and the other way round: the file decides, the module is beside it
    other, _ = run_on(["onnxruntime-cpu", "torch-cpu"], tmp_path / "other", lower=False)
    assert other.status == "complete", other.reason
    assert other.speedup == other.measurements["onnxruntime-cpu"]["speedup"]
    assert other.measurements["torch-cpu"]["speedup"] == 1.0
    assert json.loads((tmp_path / "other" / "plan.json").read_text())["modules"]["torch-cpu"]["lowering"] == {}


def test_columns_that_gain_nothing_stay_dense_and_it_is_said(timed: Timed, tmp_path: Path) -> None:
    timed.gain = 1.01
    result, _ = run_on(["torch-cpu"], tmp_path)
    assert result.status == "complete", result.reason
    assert type(load_measured(test_worker._network(), tmp_path).get_submodule("3")) is nn.Conv2d
    assert any(note.startswith("no gain on torch-cpu by shape") for note in result.notes)


def test_over_budget_by_its_shapes_is_not_trained(timed: Timed, tmp_path: Path) -> None:
    bench = bench_on(["torch-cpu"], budget={"speedup": 3.0})
    run = TrialRun(bench, TrialSpec(number=0, plan=PLAN, params={}, seed=0), store=None, artefacts=tmp_path)
    assert run.step().phase == "infeasible"
    assert run.result is not None
    assert (run.result.epochs, run.result.speedup) == (0.0, 2.0)
    assert any(isinstance(m, KeptColumnsConv2d) for m in timed.candidates[-1].modules())


def test_a_budget_on_a_rig_of_the_other_kind_gets_the_other_form(timed: Timed, tmp_path: Path) -> None:
    rigs = ["onnxruntime-cpu", "torch-cpu"]
    bench = bench_on(rigs, budget={"speedup": 3.0, "rig": "torch-cpu"}, lower=False)
    run = TrialRun(bench, TrialSpec(number=0, plan=PLAN, params={}, seed=0), store=None, artefacts=tmp_path)
    run.step()
    assert run.result is not None
    assert run.result.status == "infeasible"
    assert set(run.result.measurements) == set(rigs)
    assert run.result.speedup == run.result.measurements["onnxruntime-cpu"]["speedup"]
    assert len(timed.candidates) == 1


def test_a_module_that_says_something_else_is_no_result(
    timed: Timed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = TorchCpuRig.predictor

    def predictor(self: TorchCpuRig, module: nn.Module) -> Predict:
        inner = told(self, module)
        return lambda x: inner(x) + 0.5

    monkeypatch.setattr(TorchCpuRig, "predictor", predictor)
    result, _ = run_on(["torch-cpu"], tmp_path)
    assert result.status == "failed"
    assert (result.reason or "").startswith("torch-cpu in fp32: parity breach: max abs difference")
    assert list(tmp_path.iterdir()) == []


def test_a_rig_that_was_never_asked_for_is_one_line() -> None:
    bench = bench_on(["torch-cpu"])
    modules = LocalModules(bench.job.rigs, lambda: bench.task)
    content = Payload.of(bench.dense, {}).to_bytes()
    with pytest.raises(Exception, match="rig 'cuda' is none of this job's rigs of modules: torch-cpu"):
        modules.judge("cuda", content)
    with pytest.raises(UserError, match="not at hand in the form that rig 'onnxruntime-cpu' takes"):
        DenseForms(module=content).of("onnxruntime-cpu")


def test_the_task_is_loaded_when_the_first_module_comes_and_its_network_built_once() -> None:
    bench = bench_on(["torch-cpu"])
    loads: list[int] = []
    builds: list[int] = []
    real = bench.task.task.model

    def model() -> nn.Module:
        builds.append(1)
        return real()

    def load() -> Any:
        loads.append(1)
        return replace(bench.task, task=replace(bench.task.task, model=model))

    modules = LocalModules(bench.job.rigs, load)
    assert loads == []
    content = Payload.of(bench.dense, {}).to_bytes()
    first, second = (modules.judge("torch-cpu", content) for _ in range(2))
    assert first == second
    assert first.parity.max_abs == 0.0
    assert (len(loads), len(builds)) == (1, 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "say which rig's module to load, those that measured it are none: load_pruned gives"),
        ({"a": {"precision": "fp32", "lowering": {}}, "b": {}}, "those that measured it are a, b"),
        ({"a": {"lowering": {}}}, "is damaged: its modules: 'precision'"),
        ({"a": {"lowering": {}, "precision": "fp3"}}, "precision must be one of fp32, tf32, fp16, bf16, got 'fp3'"),
        ([], "is damaged: its modules: "),
    ],
)
def test_a_folder_that_no_rig_measured_is_one_line(timed: Timed, tmp_path: Path, content: Any, words: str) -> None:
    run_on(["torch-cpu"], tmp_path)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "modules": content}))
    with pytest.raises((UserError, EvaluationError)) as caught:
        load_measured(test_worker._network(), tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"cuda|modules"):
        load_measured(test_worker._network(), tmp_path, "cuda")


def job(**sections: Any) -> Job:
    return Job.model_validate({"task": "made:up", **sections})


def test_what_gains_nothing_is_known_before_any_training() -> None:
    nm, single, shape = ["filter", "n:m"], ["unstructured"], ["shape"]
    line = "no gain on {} by {}: {} in dense kernels cost what weights cost"
    assert gainless_notes(job(structures=nm)) == (line.format("onnxruntime-cpu", "n:m", "single zeros"),)
    assert gainless_notes(job(structures=single)) == (line.format("onnxruntime-cpu", "unstructured", "single zeros"),)
    assert gainless_notes(job(structures=shape)) == ()
    assert gainless_notes(job(structures=shape, lower=False)) == (
        line.format("onnxruntime-cpu", "shape", "columns of zeros"),
    )
    assert gainless_notes(job(structures=shape, rigs=["torch-cpu"])) == ()
    assert len(gainless_notes(job(structures=nm, rigs=["torch-cpu"]))) == 1
    assert len(gainless_notes(job(structures=nm, rigs=["cuda"]))) == 1, "sparse tensor cores take no float32"
    assert gainless_notes(job(structures=nm, rigs=[{"name": "cuda", "precision": "fp16"}])) == ()
    assert fast_structures(job(rigs=["cuda"], lower=False)) == ("filter", "channel")


def test_what_plan_json_says_is_enough_to_load(timed: Timed) -> None:
    bench = bench_on(["torch-cpu"])
    judged = LocalModules(bench.job.rigs, lambda: bench.task).judge("torch-cpu", Payload.of(bench.dense, {}).to_bytes())
    made = ModuleArtefact(
        content=Payload.of(bench.dense, {}, {"3": KEPT_COLUMNS}).to_bytes(),
        parity=judged.parity,
        score=judged.score,
        precision="bf16",
    )
    assert made.to_dict() == {"precision": "bf16", "lowering": {"3": KEPT_COLUMNS}}
