"""Bad input through the whole run: one clear line, or a stated clamp and a sound network, never one with a NaN."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from admm.errors import DivergedError, PlanError, PruneError
from admm.groups import find_groups
from admm.outcome import PruneResult
from admm.pipeline import PruneRun, prune
from admm.plan import PruningPlan
from admm.projector import Projector
from admm.settings import AdmmSettings, FinetuneSettings
from admm.target import Target
from admm.validate import check_align, check_model, plan_notes
from tests.admm.toys import TinyResNet, epochs_of, patterns, seeded, trained

torch.set_num_threads(1)
DATA = patterns(64)
PLAN = {
    "stem": {"filter": 0.5},
    "conv1": {"filter": 0.5, "shape": 0.4},
    "conv2": {"unstructured": 0.5},
    "head": {"unstructured": 0.5},
}
LAYERS = ("stem", "conv1", "conv2", "head")
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.set_num_threads(1)
    return trained(TinyResNet, DATA, epochs=2)


def _prune(model: nn.Module, plan: dict[str, dict[str, float]], **options: Any) -> PruneResult:
    """A short run; whatever comes out of it is finite."""
    known: dict[str, Any] = {
        "train_batches": epochs_of(DATA),
        "groups": find_groups(model, DATA[0][:1]),
        "admm": AdmmSettings(iterations=2, lr=0.02),
        "finetune": FinetuneSettings(epochs=1, lr=0.02),
    }
    result = prune(model, PruningPlan(plan), **{**known, **options})
    assert all(bool(value.isfinite().all()) for value in result.model.state_dict().values())
    with torch.no_grad():
        assert bool(result.model(DATA[0]).isfinite().all())
    return result


def _with(model: nn.Module, name: str, value: float, index: int | None = None) -> nn.Module:
    changed = copy.deepcopy(model)
    tensor = changed.state_dict()[name]
    (tensor if index is None else tensor.view(-1)[index]).fill_(value)
    return changed


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("conv1.weight", PLAN),
        ("bn.weight", PLAN),
        ("head.weight", {"conv2": {"unstructured": 0.5}}),  # in a layer that the plan leaves alone
        ("head.bias", {}),
        ("bn1.running_var", PLAN),
        ("bn.running_mean", {"head": {"channel": 0.5}}),
    ],
)
def test_weights_that_are_not_finite_are_named(
    dense: nn.Module, name: str, plan: dict[str, dict[str, float]], value: float
) -> None:
    model = _with(dense, name, value, 3)
    with pytest.raises(PruneError, match=rf"^{name} holds a NaN or Inf before pruning: .*load sound weights$"):
        check_model(model)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(
    ("name", "plan"), [("conv1.weight", PLAN), ("bn1.bias", {"conv2": {"unstructured": 0.5}}), ("head.weight", {})]
)
def test_a_run_from_weights_that_are_not_finite_is_an_error_in_one_line(
    dense: nn.Module, name: str, plan: dict[str, dict[str, float]], value: float
) -> None:
    with pytest.raises(PruneError) as caught:
        _prune(_with(dense, name, value, 3), plan)
    assert "\n" not in str(caught.value)
    assert "NaN" in str(caught.value) or "nan" in str(caught.value)


def test_sound_weights_pass_and_a_mask_of_infinities_is_no_weight(dense: nn.Module) -> None:
    model = copy.deepcopy(dense)
    model.register_buffer("causal", torch.full((4, 4), -INF).triu(1))
    model.register_buffer("count", torch.tensor(3))
    check_model(model)
    check_model(model.half())


@pytest.mark.parametrize("phase", ["after ADMM", "after retraining"])
@pytest.mark.parametrize("spoiled", ["head.bias", "bn.weight"])
def test_weights_spoilt_by_the_last_step_are_not_handed_over(dense: nn.Module, phase: str, spoiled: str) -> None:
    """The loss of the last step was sound, its gradient was not: no later step is there to see it."""
    batches = epochs_of(DATA)
    run = PruneRun(
        copy.deepcopy(dense),
        PruningPlan({"conv1": {"unstructured": 0.5}}),  # neither parameter is under it
        train_batches=batches,
        groups=find_groups(dense, DATA[0][:1]),
        admm=AdmmSettings(iterations=1, lr=0.02),
        finetune=FinetuneSettings(epochs=1, lr=0.02, distillation_weight=0.0),
    )
    if phase == "after retraining":
        run.step()
    left = [False] * (sum(1 for _ in batches(0)) - 1) + [True]
    parameter = run.model.get_parameter(spoiled)
    parameter.register_hook(lambda grad: grad * NAN if left.pop(0) else grad)
    with pytest.raises(DivergedError, match=rf"^{spoiled} holds a NaN or Inf {phase}: lower the lr"):
        run.step()
    assert not left


def test_a_frozen_layer_keeps_its_share_of_a_target(dense: nn.Module) -> None:
    """It has no gradient; of the others' mean worth, it is not the first to be emptied."""
    model = copy.deepcopy(dense)
    model.get_submodule("conv1").requires_grad_(False)
    kept = {}
    for name, network in (("trained", dense), ("frozen", model)):
        small = prune(
            network,
            Target(compression_x=3.0),
            train_batches=epochs_of(DATA),
            groups=find_groups(dense, DATA[0][:1]),
            admm=AdmmSettings(iterations=2, lr=0.02),
            finetune=FinetuneSettings(epochs=0),
        ).model
        kept[name] = int(small.get_submodule("conv1").weight.count_nonzero())  # type: ignore[union-attr, operator]
    assert 0.5 * kept["trained"] < kept["frozen"] < 2.0 * kept["trained"]


@pytest.mark.parametrize("layer", LAYERS)
def test_an_all_zero_layer_is_pruned_and_said(dense: nn.Module, layer: str) -> None:
    model = _with(dense, f"{layer}.weight", 0.0)
    small: Any = _prune(model, PLAN).model
    assert (small.stem.out_channels, small.conv1.out_channels) == (4, 4)  # half of 8, as planned
    notes = plan_notes(model, find_groups(dense, DATA[0][:1]), PruningPlan(PLAN))
    assert notes == [f"{layer}: its weight is all zero: which units stay is decided by their order alone"]


def test_a_network_of_zeros_stays_a_network(dense: nn.Module) -> None:
    model = copy.deepcopy(dense)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    small: Any = _prune(model, PLAN).model
    assert (small.stem.out_channels, small.conv1.out_channels) == (4, 4)


@pytest.mark.parametrize("structure", ["filter", "channel", "shape", "unstructured"])
def test_a_sparsity_that_would_empty_a_layer_is_clamped_and_said(dense: nn.Module, structure: str) -> None:
    groups = find_groups(dense, DATA[0][:1])
    layers = ["stem", "conv1"] if structure == "filter" else ["conv1", "conv2", "head"]
    plan = {layer: {structure: 0.999999} for layer in layers}
    model = _prune(dense, plan, groups=groups).model
    for parameter in model.parameters():
        assert parameter.numel() > 0
    notes = plan_notes(dense, groups, PruningPlan(plan))
    assert len(notes) == len(layers)
    units = {"filter": 8, "channel": 8, "shape": 72, "unstructured": 576}[structure]
    assert f"conv1: {structure} sparsity 0.999999 would leave none of {units}: one is kept" in notes


def test_a_sparsity_that_leaves_one_unit_is_no_clamp(dense: nn.Module) -> None:
    plan = PruningPlan({"conv1": {"filter": 0.875, "channel": 0.875, "shape": 0.986111}, "head": {"channel": 0.5}})
    assert plan_notes(dense, find_groups(dense, DATA[0][:1]), plan) == []


def test_a_layer_smaller_than_the_block_stays_dense_and_says_so(dense: nn.Module) -> None:
    plan = {"stem": {"filter": 0.5}, "conv1": {"filter": 0.75}, "head": {"channel": 0.5}}
    result = _prune(dense, plan, align=16)
    assert result.model.stem.out_channels == result.model.conv1.out_channels == 8  # type: ignore[union-attr]
    for what, asked in (("stem: 8 of 8 filters", 4), ("conv1: 8 of 8 filters", 2), ("head: 8 of 8 input channels", 4)):
        assert f"{what} kept, {asked} asked for (rounded up to a multiple of 16)" in result.notes
    assert result.effective.to_dict() == {}


def test_a_group_of_one_filter_keeps_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 4))
    groups = find_groups(model, DATA[0][:1])
    assert "0" not in groups.groups
    with pytest.raises(PlanError, match=r"'0': its filters cannot be removed: .*too few filters"):
        Projector(model, groups, PruningPlan({"0": {"filter": 0.5}}))
    result = _prune(model, {"0": {"shape": 0.99}, "2": {"filter": 0.99, "shape": 0.99}}, groups=groups)
    assert result.model[2].out_channels == 1  # type: ignore[index, union-attr]


@pytest.mark.parametrize("align", [0, -3, 1.5, True, "16"])
def test_a_block_that_is_none_is_refused(align: Any) -> None:
    with pytest.raises(PlanError, match=r"align must be a whole number of at least 1, got"):
        check_align(align)
    check_align(1)
    check_align(16)


def test_a_frozen_layer_is_pruned_not_trained_and_said(dense: nn.Module) -> None:
    model = copy.deepcopy(dense)
    model.conv2.weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    result = _prune(model, {"conv2": {"unstructured": 0.5}}, finetune=FinetuneSettings(epochs=0))
    before, after = model.get_parameter("conv2.weight"), result.model.get_parameter("conv2.weight")
    kept = after != 0
    assert int(kept.sum()) == 288
    assert torch.allclose(after[kept], before[kept])
    assert bool(before[kept].abs().min() >= before[~kept].abs().max())
    notes = plan_notes(model, find_groups(dense, DATA[0][:1]), PruningPlan({"conv2": {"unstructured": 0.5}}))
    assert notes == ["conv2: its weight is frozen (requires_grad False): pruned by magnitude, not trained"]


def test_a_network_in_which_nothing_trains_is_refused(dense: nn.Module) -> None:
    model = copy.deepcopy(dense).requires_grad_(False)
    with pytest.raises(PruneError, match=r"no parameter .* requires a gradient: call model\.requires_grad_\(True\)"):
        check_model(model)


class _Aside(nn.Module):
    """A layer that works and that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.aside = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(torch.relu(self.conv(x)).mean((2, 3)))
        with torch.no_grad():
            shift = self.aside(x).mean((1, 2, 3))
        return y + shift[:, None]


def test_a_layer_that_no_gradient_reaches_is_pruned_by_magnitude() -> None:
    model = seeded(_Aside)
    result = _prune(model, {"aside": {"unstructured": 0.5}, "head": {"unstructured": 0.5}})
    before, after = model.get_parameter("aside.weight"), result.model.get_parameter("aside.weight")
    kept = after != 0
    assert int(kept.sum()) == 18
    assert bool(before[kept].abs().min() >= before[~kept].abs().max())
    rho = result.trace.records[-1].rho["aside.weight"]
    assert 0 < rho < INF


def _once() -> Callable[[int], Iterable[tuple[Tensor, Tensor]]]:
    batches = iter([(DATA[0], DATA[1])])
    return lambda epoch: batches


@pytest.mark.parametrize(
    "batches", [lambda epoch: [], lambda epoch: [(DATA[0][:0], DATA[1][:0])], _once()], ids=["none", "empty", "used up"]
)
def test_no_training_data_is_an_error_in_one_line(dense: nn.Module, batches: Any) -> None:
    with pytest.raises((PruneError, ValueError), match="the training data gave no batch"):
        _prune(dense, PLAN, train_batches=batches)


def test_inputs_that_are_not_finite_end_the_run(dense: nn.Module) -> None:
    with pytest.raises(PruneError, match="the loss is nan in ADMM iteration 1"):
        _prune(dense, PLAN, train_batches=lambda epoch: [(DATA[0] * NAN, DATA[1])])


@pytest.mark.parametrize("phase", ["admm", "finetune"])
def test_a_learning_rate_that_breaks_the_weights_ends_the_run(dense: nn.Module, phase: str) -> None:
    """The rate is so high that BatchNorm's squares overflow in the second step, whatever the machine rounds to."""
    huge: dict[str, Any] = {
        "admm": {"admm": AdmmSettings(iterations=2, lr=1e30)},
        "finetune": {"finetune": FinetuneSettings(epochs=2, lr=1e30)},
    }[phase]
    words = "ADMM iteration" if phase == "admm" else "retraining epoch"
    with pytest.raises(PruneError, match=rf"the loss is nan in {words} 1: lower its lr"):
        _prune(dense, PLAN, **huge)


def test_the_model_given_is_left_as_it_was_even_when_the_run_fails(dense: nn.Module) -> None:
    before = copy.deepcopy(dense.state_dict())
    with pytest.raises(PruneError):
        _prune(dense, PLAN, admm=AdmmSettings(iterations=2, lr=1e20))
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
