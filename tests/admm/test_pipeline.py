"""A whole run: plan in, smaller network out; continued from any step it ends the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from admm.checkpoint import read_state, save_state
from admm.compact import load_pruned, save_pruned
from admm.errors import DivergedError, PlanError, PruneError
from admm.groups import find_groups
from admm.outcome import StepReport
from admm.pipeline import PruneRun, prune
from admm.plan import PruningPlan
from admm.recalibrate import recalibrate
from admm.settings import AdmmSettings, FinetuneSettings
from tests.admm.toys import Tiny3d, TinyResNet, accuracy, epochs_of, kept_by_magnitude, patterns, seeded, trained

DATA = patterns()
VALIDATION = patterns(seed=2)
ADMM = AdmmSettings(iterations=3, lr=0.02)
FINETUNE = FinetuneSettings(epochs=2, lr=0.02)
MIXED = PruningPlan(
    {
        "stem": {"filter": 0.25},
        "conv1": {"filter": 0.25, "shape": 0.3},
        "conv2": {"channel": 0.5, "unstructured": 0.25},
        "head": {"unstructured": 0.5},
    }
)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.set_num_threads(1)
    return trained(TinyResNet, DATA)


def _run(model: nn.Module, plan: PruningPlan, **changes: object) -> PruneRun:
    options = {
        "train_batches": epochs_of(DATA),
        "groups": find_groups(model, DATA[0][:1]),
        "evaluate": lambda m: accuracy(m, VALIDATION),
        "admm": ADMM,
        "finetune": FINETUNE,
        "steps_per_epoch": 8,
        **changes,
    }
    return PruneRun(copy.deepcopy(model), plan, **options)  # type: ignore[arg-type]


def _finish(run: PruneRun) -> nn.Module:
    while run.phase != "done":
        run.step()
    return run.result().model


def test_the_network_obeys_the_plan_and_stays_as_good(dense: nn.Module) -> None:
    before = copy.deepcopy(dense.state_dict())
    reports: list[StepReport] = []
    result = prune(
        dense,
        MIXED,
        train_batches=epochs_of(DATA),
        example_input=DATA[0][:1],
        evaluate=lambda m: accuracy(m, VALIDATION),
        admm=ADMM,
        finetune=FINETUNE,
        on_step=reports.append,
    )
    model = result.model
    assert model.stem.out_channels == 6
    assert model.bn.num_features == model.bn2.num_features == 6  # BatchNorm of a removed filter is gone with it
    assert model.conv1.in_channels == 6
    # conv2 reads 4 of the 6 channels that conv1 has left by plan: the other two serve nobody and are purified away
    assert model.conv1.out_channels == model.conv2.in_channels == 4
    # of 8 x 9 columns 51 stay by plan, and 2 filters have a weight in each
    assert "purified: 2 filters that served nothing are gone, and 102 weights with them" in result.notes
    assert result.effective["conv1"]["filter"] == pytest.approx(0.5)
    assert model.head.in_features == 6
    assert int((model.head.weight == 0).sum()) == 12  # half of what is left, 4 x 6
    dead_columns = (model.conv1.weight.detach().abs().sum(0) == 0).sum()
    assert dead_columns == 6 * 9 - 51  # of the columns that still arrive
    assert [r.phase for r in reports] == ["admm"] * 3 + ["finetune"] * 2
    assert result.trace.accuracies()["after_finetune"] == reports[-1].accuracy == accuracy(model, VALIDATION)
    assert accuracy(model, VALIDATION) > accuracy(dense, VALIDATION) - 0.05
    assert not model.training
    for name, value in dense.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_admm_prepares_the_hard_prune_better_than_magnitude_alone(dense: nn.Module) -> None:
    """What ADMM is for: after the hard prune, before any retraining, little is lost."""
    plan = PruningPlan({"stem": {"filter": 0.5}, "conv1": {"filter": 0.75}})
    run = _run(dense, plan, finetune=FinetuneSettings(epochs=0))
    _finish(run)
    from admm.compact import compact

    one_shot = compact(dense, kept_by_magnitude(dense, run.groups, plan))
    recalibrate(one_shot, epochs_of(DATA)(0))
    assert run.trace.accuracy_after_prune is not None
    assert run.trace.accuracy_after_prune > accuracy(one_shot, VALIDATION) + 0.05
    assert run.trace.primal_residual is not None
    assert run.trace.primal_residual < 0.1
    assert run.trace.warning() is None


def test_epochs_count_training_whole_and_forward_passes_a_third(dense: nn.Module) -> None:
    run = _run(dense, MIXED)
    assert run.epochs == 0
    _finish(run)
    # 8 recalibration batches of 32 = the 256 samples: after each iteration, and before the hard prune
    assert run.epochs == pytest.approx(3 + 2 + 4 * 1 / 3)
    assert run.total_steps == 5


@pytest.mark.parametrize("kill_after", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_continued_from_its_state_ends_bit_equal(
    dense: nn.Module, tmp_path: Path, kill_after: int, optimizer: str
) -> None:
    settings = {
        "admm": AdmmSettings(iterations=3, lr=0.02 if optimizer == "sgd" else 0.002, optimizer=optimizer),  # type: ignore[arg-type]
        "finetune": FinetuneSettings(epochs=2, lr=0.02 if optimizer == "sgd" else 0.002, optimizer=optimizer),  # type: ignore[arg-type]
    }
    straight = _run(dense, MIXED, **settings)
    expected = _finish(straight).state_dict()

    first = _run(dense, MIXED, **settings)
    for _ in range(kill_after):
        first.step()
    save_state(tmp_path / "state", *first.state())
    torch.manual_seed(12345)  # whatever happened in between does not matter
    second = _run(dense, MIXED, **settings)
    second.load_state(*read_state(tmp_path / "state"))
    got = _finish(second).state_dict()

    assert list(got) == list(expected)
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    assert second.trace.to_dict() == straight.trace.to_dict()
    assert second.epochs == straight.epochs
    assert second.result().kept == straight.result().kept


def test_a_done_run_can_be_loaded_and_asked_for_its_result(dense: nn.Module, tmp_path: Path) -> None:
    run = _run(dense, MIXED)
    expected = _finish(run).state_dict()
    save_state(tmp_path / "state", *run.state())
    other = _run(dense, MIXED)
    other.load_state(*read_state(tmp_path / "state"))
    assert other.phase == "done"
    for name, value in other.result().model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_another_plans_state_is_refused(dense: nn.Module) -> None:
    run = _run(dense, MIXED)
    run.step()
    other = _run(dense, PruningPlan({"head": {"unstructured": 0.5}}))
    with pytest.raises(PruneError, match="the checkpoint is of plan"):
        other.load_state(*run.state())


def test_what_was_saved_is_loaded_into_a_freshly_built_network(dense: nn.Module, tmp_path: Path) -> None:
    run = _run(dense, MIXED)
    result = (_finish(run), run.result())[1]
    save_pruned(tmp_path, result.model, result.kept, result.requested, result.effective)
    again = load_pruned(TinyResNet(), tmp_path)
    with torch.no_grad():
        assert torch.equal(again(DATA[0]), result.model(DATA[0]))
    assert json.loads((tmp_path / "plan.json").read_text())["requested"] == MIXED.to_dict()


def test_zeros_stay_zero_while_retraining(dense: nn.Module) -> None:
    plan = PruningPlan({"conv1": {"unstructured": 0.5}, "head": {"unstructured": 0.75}})
    model = _finish(_run(dense, plan, finetune=FinetuneSettings(epochs=3, lr=0.1)))
    assert int((model.conv1.weight == 0).sum()) == 288
    assert int((model.head.weight == 0).sum()) == 24


def test_three_dimensional_convolutions_end_to_end() -> None:
    data = patterns(samples=128, size=4, dims=3)
    model = trained(Tiny3d, data, epochs=4)
    plan = PruningPlan({"conv1": {"filter": 0.5}, "conv2": {"filter": 0.25, "shape": 0.5}})
    result = prune(
        model,
        plan,
        train_batches=epochs_of(data),
        example_input=data[0][:1],
        evaluate=lambda m: accuracy(m, data),
        admm=ADMM,
        finetune=FINETUNE,
    )
    assert result.model.conv1.out_channels == 4
    assert result.model.conv2.weight.shape == (6, 4, 3, 3, 3)
    assert result.model.head.in_features == 6 * 8
    assert accuracy(result.model, data) > 0.8


def test_a_loss_that_is_not_finite_is_an_error_with_its_mend(dense: nn.Module) -> None:
    run = _run(dense, MIXED, loss=lambda outputs, targets: outputs.sum() * torch.nan)
    with pytest.raises(DivergedError, match=r"the loss is nan in ADMM iteration 1: lower its lr"):
        run.step()


def test_an_unconverged_run_tells_what_to_change(dense: nn.Module) -> None:
    plan = PruningPlan({"stem": {"filter": 0.75}, "conv1": {"filter": 0.75}})
    weak = AdmmSettings(iterations=1, lr=1e-4, rho_start=1e-6, rho_end=1e-6)
    run = _run(dense, plan, admm=weak, steps_per_epoch=None, finetune=FinetuneSettings(epochs=0))
    _finish(run)
    warning = run.trace.warning()
    assert warning is not None
    assert "raise admm.iterations" in warning
    assert warning in run.result().notes


def test_a_plan_that_does_not_fit_is_refused_before_training(dense: nn.Module) -> None:
    with pytest.raises(PlanError, match=r"'conv2'.*coupled with those of 'stem'"):
        _run(dense, PruningPlan({"conv2": {"filter": 0.5}}))
    with pytest.raises(PlanError, match=r"no prunable layer 'conv3'; did you mean"):
        _run(dense, PruningPlan({"conv3": {"filter": 0.5}}))


def test_results_and_steps_only_at_their_time(dense: nn.Module) -> None:
    run = _run(dense, MIXED)
    with pytest.raises(PruneError, match="phase 'admm'"):
        run.result()
    _finish(run)
    with pytest.raises(PruneError, match="done"):
        run.step()


def test_recalibration_touches_statistics_only() -> None:
    model = seeded(TinyResNet)
    with torch.no_grad():
        model.train()
        model(DATA[0][:32] + 3.0)
    model.eval()
    before = copy.deepcopy(model.state_dict())
    samples = recalibrate(model, epochs_of(DATA)(0), limit=3)
    assert samples == 96
    assert not any(m.training for m in model.modules())
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    first = torch.cat([x for x, _ in list(epochs_of(DATA)(0))[:3]])
    mean = model.stem(first).mean((0, 2, 3)).detach()
    assert torch.allclose(model.bn.running_mean, mean, atol=1e-5)
    for name, value in model.state_dict().items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(value, before[name]), name
