"""A run goes on with another rig: what it kept is measured there, nothing is trained; real networks, made-up times."""

# ruff: noqa: E501  (figures of one measurement in few lines)

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from admm.plan import PruningPlan
from evaluators import DeviceStamp, Measurement, OnnxPredictor, RigError, evaluate, module_predictor
from search import bench as benches
from search import catch_up as caught
from search import load_measured
from search.bench import Prepared, open_bench, prepare_run
from search.catch_up import catch_up
from search.errors import UserError
from search.job import Job
from search.job_file import load_job
from search.result import Baseline
from search.store import MODEL_NAME, RunStore
from search.tasks.dense import DenseEpoch
from search.trial import MeasureOn, TrialSpec
from search.worker import TrialRun

SMALL = Path(__file__).parent / "small_task"
JOB = """
task: small:task
task_args: {samples: 96}
layers: {exclude: [head]}
rigs: [RIG]
lower: false
sparsity: {align: 8}
admm: {iterations: 1}
finetune: {epochs: 0}
search: {early_stopping: false}
"""
PLANS = ({"first": {"filter": 0.25}}, {"first": {"filter": 0.5}}, {"first": {"filter": 0.75}})


class Stopwatch:
    """The more bytes, the slower; `measured` notes (rig, threads), and a rig in `broken` refuses everything."""

    def __init__(self) -> None:
        self.measured: list[tuple[str, int]] = []
        self.broken: set[str] = set()

    def __call__(self, job: Job, dense: benches.DenseForms, modules: object = None) -> MeasureOn:
        def measure(rig: str, candidate: bytes, reference: bytes | None = None) -> Measurement:
            spec = job.rig(rig)
            if rig in self.broken:
                raise RigError(f"{rig} is on holiday")
            self.measured.append((rig, spec.threads))
            speedup = len(dense.of(rig) if reference is None else reference) / len(candidate) * spec.threads
            stamp = DeviceStamp(
                rig=rig, device="Abacus 3", isa="beads", runtime="r 1", provider="p", threads=spec.threads,
                batch=spec.batch, clock="thread_cpu", platform="wood",
            )  # fmt: skip
            return Measurement(
                latency_ms=1.0 / speedup, latency_low_ms=0.99 / speedup, latency_high_ms=1.01 / speedup, dense_latency_ms=1.0,
                speedup=speedup, speedup_low=0.99 * speedup, speedup_high=1.01 * speedup, wall_p50_ms=None, wall_p95_ms=None,
                wall_min_ms=None, pairs=9, rejected=0, converged=True, seconds=0.1, stamp=stamp,
            )  # fmt: skip

        return measure


class Said(list[str]):
    """What a search says while it prepares."""

    def say(self, line: str) -> None:
        self.append(line)

    def dense_epoch(self, epoch: DenseEpoch, epochs: int) -> None:
        raise AssertionError("nothing is trained")


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    torch.set_num_threads(threads)
    sys.modules.pop("small", None)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    return _watched(monkeypatch)


def _watched(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    made = Stopwatch()
    for module in (benches, caught):
        monkeypatch.setattr(module, "local_measure", made)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A run of files and a run of modules, by the rig's name, each with all its trials done: to be copied."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "path", list(sys.path))
        _watched(patched)
        rigs = ("onnxruntime-cpu", "torch-cpu")
        folder = tmp_path_factory.mktemp("task")
        shutil.copy(SMALL / "small.py", folder)
        yield {rig: _begin(folder, rig).root for rig in rigs}
        sys.modules.pop("small", None)


@pytest.fixture
def files(finished: dict[str, Path], tmp_path: Path) -> RunStore:
    return RunStore.open(Path(shutil.copytree(finished["onnxruntime-cpu"], tmp_path / "run")))


@pytest.fixture
def modules(finished: dict[str, Path], tmp_path: Path) -> RunStore:
    return RunStore.open(Path(shutil.copytree(finished["torch-cpu"], tmp_path / "run")))


def _prepared(store: RunStore, said: Said) -> tuple[Job, Prepared, Baseline, caught.Profile]:
    job = load_job(store.job_path)
    prepared = Prepared.of(job)
    return prepared.job, prepared, *prepare_run(store, prepared.job, prepared, said)


def _begin(folder: Path, rig: str) -> RunStore:
    """A run of that rig with a few finished trials."""
    store = RunStore.create(
        folder / rig, JOB.replace("RIG", rig).replace("task_args", f"base_dir: {folder}\ntask_args"), {}
    )
    torch.manual_seed(0)
    job = load_job(store.job_path)
    save_file(dict(job.load_task().model().state_dict()), store.baseline_dir / "weights.safetensors")
    job, *_ = _prepared(store, Said())
    bench = open_bench(store, job)
    for number, plan in enumerate(PLANS):
        spec = TrialSpec(number=number, plan=PruningPlan(plan), params={}, seed=0)
        trial = TrialRun(bench, spec, store=store)
        while trial.result is None:
            trial.step()
        assert trial.result.status == "complete", trial.result.reason
    return store


def _change(store: RunStore, change: Callable[[Job], Job]) -> None:
    store.job_path.write_text(change(load_job(store.job_path)).to_yaml())


def _go_on(store: RunStore) -> tuple[RunStore, Baseline, Said]:
    """The next start of the run, up to its first trial."""
    said, again = Said(), RunStore.open(store.root)
    job, prepared, _, profile = _prepared(again, said)
    return again, catch_up(again, job, prepared, profile, said.say), said


def test_a_run_whose_rigs_are_as_they_were_is_left_as_it_is(files: RunStore, watch: Stopwatch) -> None:
    before, baseline = files.results(), files.read_baseline()
    watch.measured.clear()
    again, now, said = _go_on(files)
    assert (again.results(), now, watch.measured, list(said)) == (before, baseline, [], [])
    assert baseline.size_bytes == (files.baseline_dir / MODEL_NAME).stat().st_size
    assert before[0].size_bytes == (files.trial_dir(0) / MODEL_NAME).stat().st_size


def test_kept_trials_are_measured_as_modules_and_the_rest_is_passed_over(files: RunStore, watch: Stopwatch) -> None:
    (files.trial_dir(1) / "weights.safetensors").unlink()
    before, dense = files.results(), files.read_baseline()
    _change(files, lambda job: job.with_overrides(rig="torch-cpu", objectives="accuracy,latency,size"))
    watch.measured.clear()
    again, baseline, said = _go_on(files)
    assert watch.measured == [("torch-cpu", 1)] * 3
    assert list(said) == [
        "measuring the dense network on torch-cpu",
        "looking at 2 finished trials on torch-cpu; nothing is trained",
        "trial 1: passed over, for the networks are not kept",
    ]
    assert again.unseen() == {1: "not measured on torch-cpu"}
    assert baseline.latency_ms == 1.0
    assert set(baseline.measurements) == {"onnxruntime-cpu", "torch-cpu"}
    assert baseline.size_bytes != dense.size_bytes
    task, bench = load_job(files.job_path).load_task(), open_bench(again)
    for number in (0, 2):
        now, folder = again.result(number), again.trial_dir(number)
        assert now.speedup == now.measurements["torch-cpu"]["speedup"] != before[number].speedup
        assert now.measurements["onnxruntime-cpu"] == before[number].measurements["onnxruntime-cpu"]
        loaded = load_measured(task.model(), folder, "torch-cpu")
        assert now.accuracy == evaluate(module_predictor(loaded), bench.task.val_batches(), task.metric).value
        assert now.size_bytes == now.sizes["torch-cpu"] != before[number].size_bytes
        # what the trial was is still there
        plan = json.loads((folder / "plan.json").read_text())
        assert (plan["requested"], plan["seed"]) == (PLANS[number], 0)
    # a second start has nothing left to do, and the way back is as it was
    watch.measured.clear()
    assert _go_on(files)[0].results() == again.results()
    _change(files, lambda job: job.with_overrides(rig="onnxruntime-cpu", objectives="accuracy,latency"))
    back, baseline, _ = _go_on(files)
    assert watch.measured == []
    assert (baseline.latency_ms, baseline.accuracy) == (dense.latency_ms, dense.accuracy)
    figures = {n: (r.speedup, r.latency_high_ms, r.accuracy, r.size_bytes) for n, r in back.results().items()}
    assert figures == {n: (r.speedup, r.latency_high_ms, r.accuracy, r.size_bytes) for n, r in before.items()}


@pytest.mark.slow  # an export a trial
def test_trials_that_shipped_modules_get_their_onnx_file(modules: RunStore, watch: Stopwatch) -> None:
    store = modules
    assert list(store.root.rglob("*.onnx")) == []
    _change(store, lambda job: job.with_overrides(rig="onnxruntime-cpu"))
    again, baseline, _ = _go_on(store)
    bench = open_bench(again)
    for number, result in again.results().items():
        path = again.model_path(number)
        assert result.speedup == (again.baseline_dir / MODEL_NAME).stat().st_size / path.stat().st_size
        scored = evaluate(OnnxPredictor(path), bench.task.val_batches(), bench.task.task.metric)
        assert result.accuracy == scored.value
        drop = 100.0 * (baseline.accuracy - scored.value)
        assert result.accuracy_drop == pytest.approx(drop)
        assert {p.name for p in path.parent.iterdir()} == {
            MODEL_NAME, "plan.json", "result.json", "trace.jsonl", "weights.safetensors",
        }  # fmt: skip
    assert set(again.results()) == {0, 1, 2}


def test_other_threads_are_another_rig(files: RunStore, watch: Stopwatch) -> None:
    text = files.job_path.read_text()
    files.job_path.write_text(text.replace("rigs: [onnxruntime-cpu]", "rigs: [{name: onnxruntime-cpu, threads: 2}]"))
    one = files.results()[0]
    watch.measured.clear()
    again, _, said = _go_on(files)
    assert watch.measured == [("onnxruntime-cpu", 2)] * 4
    assert said[0] == "measuring the dense network on onnxruntime-cpu (threads 2)"
    assert one.speedup is not None
    assert again.result(0).speedup == 2.0 * one.speedup


def test_a_rig_that_refuses_a_trial_costs_that_trial_alone(files: RunStore, watch: Stopwatch) -> None:
    (files.trial_dir(0) / "plan.json").write_text("{")
    _change(files, lambda job: job.with_overrides(rig="torch-cpu"))
    again, _, said = _go_on(files)
    assert len([line for line in said if line.startswith("trial 0 was not measured: ")]) == 1
    assert all("\n" not in line for line in said)
    assert (set(again.results()), set(again.unseen())) == ({1, 2}, {0})


def test_a_rig_that_cannot_measure_the_dense_network_ends_the_start_in_one_line(
    files: RunStore, watch: Stopwatch
) -> None:
    before = files.read_baseline()
    _change(files, lambda job: job.with_overrides(rig="torch-cpu"))
    watch.broken.add("torch-cpu")
    with pytest.raises((UserError, RigError), match="torch-cpu is on holiday"):
        _go_on(files)
    assert files.read_baseline() == before
    watch.broken.clear()
    assert set(_go_on(files)[0].results()) == {0, 1, 2}


def test_an_older_record_gets_the_size_of_its_file(files: RunStore, watch: Stopwatch) -> None:
    records = [files.trial_dir(number) / "result.json" for number in range(len(PLANS))]
    for place in (*records, files.baseline_dir / "baseline.json"):
        content = json.loads(place.read_text())
        content = {k: v for k, v in content.items() if k not in ("size_bytes", "sizes")}
        place.write_text(json.dumps(content))
    assert RunStore.open(files.root).results()[0].size_bytes is None
    _change(files, lambda job: job.with_overrides(objectives="accuracy,size"))
    watch.measured.clear()
    again, baseline, said = _go_on(files)
    assert watch.measured == []
    assert list(said) == ["looking at 3 finished trials for the sizes of their files; nothing is trained"]
    assert again.result(0).size_bytes == (again.trial_dir(0) / MODEL_NAME).stat().st_size
    assert baseline.size_bytes == (again.baseline_dir / MODEL_NAME).stat().st_size
