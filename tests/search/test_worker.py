"""One plan to one result, without Ray and without a rig: every outcome, checkpoints, and second attempts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from admm.checkpoint import read_state
from admm.compact import load_pruned
from admm.errors import PlanError
from admm.plan import PruningPlan
from admm.target import Target
from evaluators import ExportError, Measurement, check_parity
from search import artefact, plan_shapes, worker
from search.errors import AttemptLost
from search.job import Job
from search.precision import Precision
from search.profile import profile_network
from search.result import Baseline, TrialResult
from search.store import RunStore
from search.tasks import Arrays, Task, prepare
from search.trial import Bench, Progress, Start, TrialSpec
from search.weights import prunable_weights
from search.worker import TrialRun, evaluate_plan
from tests.search.test_budget import MEASURED

PLAN = PruningPlan({"0": {"filter": 0.5}, "3": {"filter": 0.5, "channel": 0.75, "unstructured": 0.25}})
ITERATIONS, EPOCHS = 3, 2
#: The latency of the made-up rig, in ms per byte of the file.
PER_BYTE = 1e-4


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, 3),
    )  # fmt: skip


def _data(samples: int, seed: int) -> Arrays:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 3
    x = torch.randn(samples, 1, 6, 6, generator=generator)
    return Arrays(x + y[:, None, None, None].float(), y)


def _measure(name: str, content: bytes, reference: bytes | None = None) -> Measurement:
    latency, dense = PER_BYTE * len(content), 1.0
    return replace(
        MEASURED,
        latency_ms=latency,
        latency_low_ms=0.99 * latency,
        latency_high_ms=1.01 * latency,
        dense_latency_ms=dense,
        speedup=dense / latency,
        speedup_low=0.99 * dense / latency,
        speedup_high=1.01 * dense / latency,
        stamp=replace(MEASURED.stamp, rig=name),
    )


def make_bench(
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    measure: worker.MeasureOn = _measure,
    **sections: Any,
) -> Bench:
    """A network that trains in milliseconds and a rig that weighs the file."""
    job = Job.model_validate(
        {
            "task": "made:up",
            "structures": ["filter", "channel", "unstructured"],
            "sparsity": {"align": 1},
            "lower": False,
            "admm": {"iterations": ITERATIONS, "lr": 0.02},
            "finetune": {"epochs": EPOCHS, "lr": 0.02},
            "search": {"early_stopping": False},
            **sections,
        }
    )
    dense = _network().eval()
    task = prepare(
        Task(name="made up", model=_network, train=_data(48, 1), val=_data(30, 2), loss=loss, batch_size=16), seed=0
    )
    baseline = Baseline(
        accuracy=0.9,
        accuracy_stderr=0.01,
        latency_ms=1.0,
        macs=30_000,
        params=sum(p.numel() for p in dense.parameters()),
        weights=prunable_weights(dense),
    )
    return Bench(
        job=job,
        task=task,
        dense=dense,
        profile=profile_network(job, dense, task.example_input),
        baseline=baseline,
        measure=measure,
        device=torch.device("cpu"),
    )


def _spent(epochs: float, iterations: int, retraining: int = 0) -> bool:
    """A pass to set BatchNorm's statistics anew may come with each iteration and before the hard prune: forward only,
    a third of an epoch."""
    return iterations + retraining <= epochs <= iterations + retraining + (iterations + 1) / 3 + 1e-9


def _spec(number: int = 0, plan: PruningPlan | Target = PLAN, seed: int = 0) -> TrialSpec:
    return TrialSpec(number=number, plan=plan, params={"0/filter": 4}, seed=seed)


def _finish(run: TrialRun) -> list[Progress]:
    progress = [run.step()]
    while run.result is None:
        progress.append(run.step())
    return progress


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "run", "task: made:up\n", {})


class _Calls:
    """A loss that misbehaves from its n-th call on."""

    def __init__(self, good: int, then: Callable[[Tensor], Tensor]) -> None:
        self.calls, self.good, self.then = 0, good, then

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        value = F.cross_entropy(outputs, targets)
        return value if self.calls <= self.good else self.then(value)


def test_a_complete_trial_is_recorded_whole(store: RunStore) -> None:
    bench = make_bench(measure=lambda name, content: replace(_measure(name, content), speedup_high=1.0))
    before = {key: value.clone() for key, value in bench.dense.state_dict().items()}
    run = TrialRun(bench, _spec(4), store=store)
    progress = _finish(run)
    result = store.result(4)
    assert result == run.result == progress[-1].result
    assert result.status == "complete"
    assert [p.phase for p in progress] == ["shapes"] + ["admm"] * ITERATIONS + ["finetune"] * EPOCHS + ["complete"]
    assert [p.step for p in progress] == list(range(1, run.total_steps + 1))
    assert progress[-1].total == run.total_steps == 2 + ITERATIONS + EPOCHS

    assert result.plan_digest == PLAN.digest()
    assert PruningPlan(result.requested) == PLAN
    assert dict(result.params_sampled) == {"0/filter": 4}
    assert _spent(result.epochs, ITERATIONS, EPOCHS)
    assert result.accuracy is not None
    assert result.accuracy_drop == pytest.approx(100 * (0.9 - result.accuracy))
    assert [r for r, _ in result.rungs] == list(range(1, ITERATIONS + 1))
    assert result.rungs == tuple((p.rung, p.accuracy) for p in progress if p.rung is not None)
    assert result.accuracy_after_prune is not None
    assert result.primal_residual is not None
    assert result.parity_max_abs is not None
    assert result.parity_max_abs < 1e-4
    # layer 3 reads 2 of the 4 filters that layer 0 has left by plan, so 2 x 9 weights stay there; of 4 x 2 x 9 a
    # quarter is zero, which the MACs of dense kernels do not know; the Linear layer has 3 x 16 of 3 x 32
    assert result.macs == 36 * (2 * 9 + 4 * 2 * 9) + 3 * 16
    assert result.compression_x == pytest.approx(bench.baseline.weights / (2 * 9 + 54 + 3 * 16))

    folder = store.trial_dir(4)
    assert sorted(p.name for p in folder.iterdir()) == [
        "model.onnx",
        "plan.json",
        "result.json",
        "trace.jsonl",
        "weights.safetensors",
    ]
    content = (folder / "model.onnx").read_bytes()
    assert result.latency_ms == pytest.approx(PER_BYTE * len(content))
    assert result.measurements == {"onnxruntime-cpu": bench.measure("onnxruntime-cpu", content).to_dict()}
    assert any("no gain on onnxruntime-cpu by unstructured" in note for note in result.notes)
    trace = [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in trace if line["kind"] == "admm"] == [1, 2, 3]
    plan = json.loads((folder / "plan.json").read_text())
    assert (plan["seed"], plan["align"], plan["params"]) == (0, 1, {"0/filter": 4})
    small = load_pruned(_network(), folder)
    assert check_parity(small, folder / "model.onnx", [torch.randn(5, 1, 6, 6)]).require().ok
    assert sum(p.numel() for p in small.parameters()) == result.params
    kept = sum(int(p.count_nonzero()) for p in small.parameters() if p.ndim > 1)
    assert result.compression_x == pytest.approx(bench.baseline.weights / kept)
    assert list(store.partial_dir.iterdir()) == []
    assert all(torch.equal(value, before[key]) for key, value in bench.dense.state_dict().items())
    # a worker that comes too late, and one that starts again, find it finished
    assert run.step().result == result
    assert TrialRun(bench, _spec(4), store=store).step().result == result


def test_a_plan_over_budget_is_not_trained(store: RunStore) -> None:
    bench = make_bench(budget={"latency_ms": 1e-6})
    run = TrialRun(bench, _spec(), store=store)
    (progress,) = _finish(run)
    result = store.result(0)
    assert result.status == progress.phase == "infeasible"
    assert result.epochs == 0.0
    assert result.rungs == ()
    assert "over the budget of 1e-06 ms on onnxruntime-cpu" in (result.reason or "")
    assert "not trained" in (result.reason or "")
    assert result.latency_high_ms is not None
    assert result.speedup_low is not None
    assert list(result.measurements) == ["onnxruntime-cpu"]
    assert [p.name for p in store.trial_dir(0).iterdir()] == ["result.json"]


def test_shapes_are_measured_only_where_somebody_asks(
    tmp_path: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_shapes, "shapes_onnx", lambda *_, **__: bytes(4321))
    asked: list[int] = []

    def measure(name: str, content: bytes) -> Measurement:
        asked.append(len(content))
        return _measure(name, content)

    early = {"search": {"early_stopping": True}}
    assert TrialRun(make_bench(measure=measure, **early), _spec(0), store=store).step().relative_latency is not None
    assert len(asked) == 1  # the scheduler needs the latency at the rungs
    TrialRun(make_bench(measure=measure), _spec(1), store=store).step()
    TrialRun(make_bench(measure=measure, **early), _spec(2), store=None, artefacts=tmp_path / "out").step()
    assert len(asked) == 1
    within = TrialRun(make_bench(measure=measure, budget={"latency_ms": 1e6}), _spec(3), store=store)
    progress = within.step()
    assert asked == [4321, 4321]
    assert progress.result is None
    assert progress.relative_latency == pytest.approx(PER_BYTE * 4321)


def _raise(error: Exception) -> Callable[..., Any]:
    def act(*_: object, **__: object) -> Any:
        raise error

    return act


@pytest.mark.parametrize(
    ("good", "then", "words"),
    [
        (0, lambda value: value * math.nan, ["the loss is nan in ADMM iteration 1", "lower its lr"]),
        (5, lambda value: value / 0.0, ["the loss is inf in ADMM iteration 2"]),
        (3 * ITERATIONS + 1, lambda value: value * math.nan, ["nan in retraining epoch 1"]),
        (4, _raise(KeyError("label")), ["KeyError: 'label'"]),
        (4, _raise(RuntimeError("mat1 and mat2\nshapes")), ["mat1 and mat2 shapes"]),
        (4, _raise(AssertionError()), ["AssertionError"]),
    ],
)
def test_training_that_breaks_is_a_failed_trial_with_its_reason(
    good: int, then: Callable[[Tensor], Tensor], words: list[str], store: RunStore
) -> None:
    bench = make_bench(loss=_Calls(good, then))
    run = TrialRun(bench, _spec(), store=store)
    _finish(run)
    result = store.result(0)
    assert result.status == "failed"
    assert "\n" not in (result.reason or "")
    assert all(word in (result.reason or "") for word in words), result.reason
    assert result.requested == PLAN.to_dict()
    assert _spent(result.epochs, min(good // 3, ITERATIONS))
    assert [p.name for p in store.trial_dir(0).iterdir()] == ["result.json"]
    assert list(store.partial_dir.iterdir()) == []


def _trained(store: RunStore, number: int = 0, **options: Any) -> TrialRun:
    """A trial of which only the last step is left."""
    run = TrialRun(make_bench(**options), _spec(number), store=store)
    for _ in range(1 + ITERATIONS + EPOCHS):
        assert run.step().result is None
    return run


def test_an_export_or_a_parity_that_fails_is_a_failed_trial(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(artefact, "export_onnx", _raise(ExportError("the graph is not valid ONNX: odd node")))
        assert _trained(store, 0).step().phase == "failed"
    with monkeypatch.context() as patch:
        # the file that is checked is another network's
        broken = _network()
        with torch.no_grad():
            broken.get_submodule("8").bias.add_(1.0)  # type: ignore[union-attr, operator]
        export = artefact.export_onnx
        patch.setattr(
            artefact, "export_onnx", lambda model, example, path, **more: export(broken, example, path, **more)
        )
        assert _trained(store, 1).step().phase == "failed"
    first, second = store.result(0), store.result(1)
    assert first.reason == "the graph is not valid ONNX: odd node"
    assert "parity breach" in (second.reason or "")
    assert first.accuracy is second.accuracy is None
    assert _spent(first.epochs, ITERATIONS, EPOCHS)
    assert _spent(second.epochs, ITERATIONS, EPOCHS)
    # a file that failed its checks is not left to be found
    assert [p.name for n in (0, 1) for p in store.trial_dir(n).iterdir()] == ["result.json"] * 2
    assert sorted(store.results()) == [0, 1]


def test_a_rig_that_is_lost_is_no_fault_of_the_trial(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_shapes, "shapes_onnx", lambda *_, **__: bytes(100))
    bench = make_bench(measure=_raise(AttemptLost("the rig is gone")), budget={"speedup": 2.0})
    run = TrialRun(bench, _spec(), store=store)
    with pytest.raises(AttemptLost):
        run.step()
    assert store.results() == {}
    assert not store.trial_dir(0).exists()
    assert run.result is None


def test_a_plan_that_does_not_fit_is_a_failed_trial(store: RunStore) -> None:
    run = TrialRun(make_bench(), _spec(plan=PruningPlan({"8": {"filter": 0.5}})), store=store)
    _finish(run)
    assert store.result(0).status == "failed"
    assert "network's output" in (store.result(0).reason or "")


def _state(run: TrialRun) -> dict[str, Tensor]:
    assert run._run is not None
    assert run._run.phase == "done"
    return run._run.model.state_dict()


def test_a_trial_goes_on_bit_equal_from_any_checkpoint(store: RunStore) -> None:
    straight = _trained(store, 0)
    expected = _state(straight)
    for steps in range(1, 1 + ITERATIONS + EPOCHS):
        number = steps
        first = TrialRun(make_bench(), _spec(number), store=store)
        for _ in range(steps):
            first.step()
        del first  # killed: only the run folder is left
        torch.manual_seed(steps)  # and whatever the next process did before
        second = TrialRun(make_bench(), _spec(number), store=store)
        resumed = second.step()
        assert resumed.phase == "resumed"
        assert resumed.step == steps
        for _ in range(1 + ITERATIONS + EPOCHS - steps):
            second.step()
        for key, value in _state(second).items():
            assert torch.equal(value, expected[key]), (steps, key)
        assert second._rungs == straight._rungs
    assert sum(1 for _ in store.partial_dir.iterdir()) == 1 + ITERATIONS + EPOCHS


def test_an_interrupted_trial_publishes_the_same_files(store: RunStore, tmp_path: Path) -> None:
    result, _ = evaluate_plan(make_bench(), _spec(0), artefacts=tmp_path / "alone")
    first = TrialRun(make_bench(), _spec(0), store=store)
    for _ in range(3):
        first.step()
    _finish(TrialRun(make_bench(), _spec(0), store=store))
    for name in ("weights.safetensors", "plan.json", "trace.jsonl", "model.onnx"):
        assert (store.trial_dir(0) / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    published = store.result(0)
    assert replace(published, seconds=0.0) == replace(result, seconds=0.0)
    assert not (tmp_path / "alone" / "result.json").exists()


def test_a_stopped_trial_knows_what_it_showed_so_far(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_shapes, "shapes_onnx", lambda *_, **__: bytes(100))
    run = TrialRun(make_bench(budget={"speedup": 2.0}), _spec(), store=store)
    for _ in range(3):
        run.step()
    so_far = run.so_far()
    assert TrialResult.from_dict(json.loads(json.dumps(so_far.to_dict()))) == so_far
    assert so_far.status == "stopped"
    assert _spent(so_far.epochs, 2)
    assert [r for r, _ in so_far.rungs] == [1, 2]
    assert so_far.latency_ms == pytest.approx(PER_BYTE * 100)
    assert so_far.speedup_low is not None


def _overtaken(store: RunStore, number: int) -> TrialResult:
    """Another attempt was taken for the only one, and has finished."""
    spec = _spec(number)
    result = TrialResult(
        number=number, status="failed", plan_digest=spec.plan.digest(), seed=0, reason="by the successor"
    )
    assert store.commit(number, store.attempt_dir(number, "successor"), result)
    return result


def test_a_late_second_attempt_is_thrown_away(store: RunStore) -> None:
    zombie = _trained(store, 0)
    record = _overtaken(store, 0)
    assert zombie.step().result == zombie.result == store.result(0) == record
    assert [p.name for p in store.trial_dir(0).iterdir()] == ["result.json"]
    assert list(store.partial_dir.iterdir()) == []


def test_a_zombie_in_training_learns_that_it_was_overtaken(store: RunStore) -> None:
    zombie = TrialRun(make_bench(), _spec(0), store=store)
    zombie.step()
    record = _overtaken(store, 0)
    assert zombie.step().result == record
    assert list(store.partial_dir.iterdir()) == []


def _checkpointed(store: RunStore, spec: TrialSpec, steps: int = 3) -> Path:
    run = TrialRun(make_bench(), spec, store=store)
    for _ in range(steps):
        run.step()
    return store.checkpoint_path(spec.number)


@pytest.mark.parametrize(
    "other",
    [_spec(seed=1), _spec(plan=PruningPlan({"0": {"filter": 0.25}}))],
    ids=["seed", "plan"],
)
def test_another_trial_s_checkpoint_is_not_taken_up(other: TrialSpec, store: RunStore) -> None:
    _checkpointed(store, _spec())
    run = TrialRun(make_bench(), other, store=store)
    assert run.step().phase == "shapes"
    report = run.step()
    assert (report.phase, report.rung) == ("admm", 1)
    assert run._rungs[0][0] == 1
    assert len(run._rungs) == 1
    # and what it wrote since is its own
    assert read_state(store.checkpoint_path(0))[1]["plan"] == other.plan.digest()


def test_a_torn_checkpoint_starts_the_trial_anew(store: RunStore) -> None:
    path = _checkpointed(store, _spec())
    path.write_bytes(path.read_bytes()[:-40])
    run = TrialRun(make_bench(), _spec(), store=store)
    assert run.step().phase == "shapes"
    straight = TrialRun(make_bench(), _spec(1), store=store)
    straight.step()
    for _ in range(2):
        straight.step()
        run.step()
    assert run._rungs == straight._rungs


def test_a_target_is_a_trial_whose_plan_is_found(tmp_path: Path) -> None:
    """Its shapes are not known before it trains: a budget is not looked at, and nothing is measured ahead."""
    measured: list[str] = []

    def measure(name: str, content: bytes) -> Measurement:
        measured.append(name)
        return _measure(name, content)

    bench = make_bench(measure=measure, budget={"speedup": 1000.0})
    target = Target(compression_x=5.0, structures=("filter", "unstructured"))
    steps: list[Progress] = []
    result, run = evaluate_plan(bench, _spec(plan=target), artefacts=tmp_path, on_progress=steps.append)
    assert result.status == "complete", result.reason
    assert len(measured) == 1
    assert result.compression_x is not None
    assert 5.0 <= result.compression_x < 5.1  # of 744 weights 148 may stay
    assert run.pruned is not None
    found = run.pruned.requested
    assert PruningPlan(result.requested) == found
    assert set(found) == {"0", "3", "8"}
    content = json.loads((tmp_path / "plan.json").read_text())
    assert content["digest"] == found.digest() == result.plan_digest
    assert Target.from_dict(content["target"]) == target
    assert [s.record.iteration for s in steps if s.record is not None] == list(range(1, ITERATIONS + 1))
    assert [s.report.phase for s in steps if s.report is not None] == ["admm"] * ITERATIONS + ["finetune"] * EPOCHS


def test_a_target_that_fails_says_so_and_names_no_plan(tmp_path: Path) -> None:
    bench = make_bench(loss=_Calls(4, lambda value: value * math.nan))
    result, run = evaluate_plan(bench, _spec(plan=Target(compression_x=5.0)), artefacts=tmp_path)
    assert result.status == "failed"
    assert result.requested == {}
    assert run.pruned is None
    assert not (tmp_path / "plan.json").exists()


def test_a_target_that_plan_json_could_not_tell_of_is_refused_before_any_training() -> None:
    with pytest.raises(PlanError, match="cannot be written as JSON because of its function of layer names"):
        _spec(plan=Target(compression_x=5.0, layers=lambda name: name != "8"))


@pytest.mark.parametrize("first", ["fp32", "int8"])
def test_a_plan_is_trained_once_for_both_precisions(first: Precision, store: RunStore) -> None:
    bench = make_bench(quantize="search")
    second: Precision = "int8" if first == "fp32" else "fp32"
    trained = TrialRun(bench, replace(_spec(0), precision=first), store=store)
    _finish(trained)
    twin = TrialRun(bench, replace(_spec(1), precision=second), store=store)
    phases = [progress.phase for progress in _finish(twin)]
    assert trained.result is not None
    assert twin.result is not None
    assert twin.result.status == "complete", twin.result.reason
    assert (trained.result.weights_of, twin.result.weights_of) == (None, 0)
    assert (trained.result.precision, twin.result.precision) == (first, second)
    assert twin.result.epochs == 0.0
    assert phases == ["shapes", "complete"]
    assert any("weights of trial 0" in note for note in twin.result.notes)
    same = ("plan_digest", "compression_x", "macs", "params", "primal_residual", "accuracy_after_prune")
    assert [getattr(twin.result, n) for n in same] == [getattr(trained.result, n) for n in same]
    folders = [store.trial_dir(n) for n in (0, 1)]
    weights = [load_file(folder / "weights.safetensors") for folder in folders]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    traces = [(folder / "trace.jsonl").read_text() for folder in folders]
    assert traces[0] == traces[1]
    quantized = [b"QuantizeLinear" in (folder / "model.onnx").read_bytes() for folder in folders]
    assert quantized == [first == "int8", second == "int8"]
    by_precision = {r.precision: r for r in (trained.result, twin.result)}
    assert by_precision["fp32"].int8_agreement is None
    assert 0.0 <= (by_precision["int8"].int8_agreement or -1.0) <= 1.0
    assert by_precision["int8"].accuracies == {"onnxruntime-cpu": by_precision["int8"].accuracy}


@pytest.mark.parametrize("spoil", ["weights.safetensors", "trace.jsonl", "plan.json"])
def test_weights_that_cannot_be_read_are_trained_again(spoil: str, store: RunStore) -> None:
    bench = make_bench(quantize="search")
    _finish(TrialRun(bench, _spec(0), store=store))
    (store.trial_dir(0) / spoil).write_bytes(b"{torn")
    twin = TrialRun(bench, replace(_spec(1), precision="int8"), store=store)
    _finish(twin)
    assert twin.result is not None
    assert twin.result.status == "complete", twin.result.reason
    assert twin.result.weights_of is None
    assert twin.result.epochs > 0


@pytest.mark.parametrize("change", ["seed", "plan", "align"])
def test_weights_of_another_trial_are_no_twins(change: str, store: RunStore) -> None:
    _finish(TrialRun(make_bench(quantize="search"), _spec(0), store=store))
    sections = {"sparsity": {"align": 2}} if change == "align" else {}
    other = replace(_spec(1, seed=int(change == "seed")), precision="int8")
    if change == "plan":
        other = replace(other, plan=PruningPlan({"0": {"filter": 0.25}}))
    twin = TrialRun(make_bench(quantize="search", **sections), other, store=store)
    _finish(twin)
    assert twin.result is not None
    assert (twin.result.status, twin.result.weights_of) == ("complete", None)


def test_a_longer_schedule_is_as_long_as_it_says(store: RunStore) -> None:
    bench = make_bench(search={"early_stopping": True})
    run = TrialRun(bench, replace(_spec(0), stretch=1.5, source="final"), store=store)
    progress = _finish(run)
    result = run.result
    assert result is not None
    assert (result.status, result.stretch) == ("complete", 1.5), result.reason
    iterations, epochs = math.ceil(1.5 * ITERATIONS), math.ceil(1.5 * EPOCHS)
    assert [p.phase for p in progress].count("admm") == iterations
    assert [p.phase for p in progress].count("finetune") == epochs
    assert all(p.rung is None for p in progress)  # rungs compare trials of one schedule
    assert result.rungs == ()
    assert not result.spent
    assert json.loads((store.trial_dir(0) / "plan.json").read_text())["stretch"] == 1.5
    assert any("1.5 times the schedule" in note for note in result.notes)


def test_a_plan_trained_on_from_its_own_weights_gets_what_is_left_of_its_schedule(store: RunStore) -> None:
    bench = make_bench()
    _finish(TrialRun(bench, _spec(0), store=store))
    own = Start(number=0, folder=store.trial_dir(0), stretch=1.0)
    run = TrialRun(bench, replace(_spec(1), stretch=3.0, start=own), store=store)
    total = run.total_steps
    progress = _finish(run)
    assert run.result is not None
    assert (run.result.status, run.result.started_from, run.result.stretch) == ("complete", 0, 3.0), run.result.reason
    assert [p.phase for p in progress].count("admm") == 0  # nothing is left for ADMM to prune
    assert [p.phase for p in progress].count("finetune") == 2 * (ITERATIONS + EPOCHS)
    assert {p.total for p in progress} == {total}
    assert json.loads((store.trial_dir(1) / "plan.json").read_text())["seen"] == 3 * (ITERATIONS + EPOCHS)
    # the same filters stay: what the plan asks for is gone already
    kept = [json.loads((store.trial_dir(n) / "plan.json").read_text())["kept"]["0"]["out"] for n in (0, 1)]
    assert kept[0] == kept[1]
    # where those weights are gone, it is trained from the dense ones for the whole of it
    gone = Start(number=7, folder=store.trial_dir(7), stretch=1.0)
    whole = TrialRun(bench, replace(_spec(2), stretch=2.0, start=gone), store=store)
    assert [p.phase for p in _finish(whole)].count("admm") == 2 * ITERATIONS
    with pytest.raises(ValueError, match="stretch must be above the 1 that its start was trained for"):
        replace(_spec(3), start=own)


@pytest.mark.parametrize("stretch", [0.5, math.nan, math.inf])
def test_a_schedule_is_not_shorter_than_the_job_says(stretch: float) -> None:
    with pytest.raises(ValueError, match="stretch must be at least 1"):
        replace(_spec(0), stretch=stretch)


def test_a_trial_may_begin_with_the_weights_of_a_less_pruned_one(store: RunStore) -> None:
    bench = make_bench()
    less = PruningPlan({"0": {"filter": 0.25}})
    _finish(TrialRun(bench, _spec(0, plan=less), store=store))
    start = Start(number=0, folder=store.trial_dir(0))
    more = PruningPlan({"0": {"filter": 0.5}})
    run = TrialRun(bench, replace(_spec(1, plan=more), start=start), store=store)
    run.step()
    run.step()
    # killed in the midst of it: the next attempt goes on from the checkpoint, and says the same of its origin
    again = TrialRun(bench, replace(_spec(1, plan=more), start=start), store=store)
    _finish(again)
    assert again.result is not None
    assert (again.result.status, again.result.started_from) == ("complete", 0), again.result.reason
    kept = [json.loads((store.trial_dir(n) / "plan.json").read_text()) for n in (0, 1)]
    assert set(kept[1]["kept"]["0"]["out"]) < set(kept[0]["kept"]["0"]["out"])
    assert kept[1]["started_from"] == 0
    assert [k["seen"] for k in kept] == [
        ITERATIONS + EPOCHS,
        2 * (ITERATIONS + EPOCHS),
    ]  # epochs go on from the start's
    from_dense = TrialRun(bench, _spec(2, plan=more), store=store)
    _finish(from_dense)
    assert from_dense.result is not None
    assert from_dense.result.started_from is None
    assert from_dense.result.primal_residual != again.result.primal_residual


def test_weights_to_begin_with_that_are_gone_are_the_dense_ones(store: RunStore) -> None:
    run = TrialRun(make_bench(), replace(_spec(0), start=Start(number=7, folder=store.trial_dir(7))), store=store)
    _finish(run)
    assert run.result is not None
    assert (run.result.status, run.result.started_from) == ("complete", None), run.result.reason
