"""What tightens, averages, targets and purifies on the way: the options of a run beyond a fixed plan."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from admm.checkpoint import read_state, save_state
from admm.compute import Compute
from admm.cost import LayerSize
from admm.errors import PruneError
from admm.finetune import Finetune
from admm.groups import find_groups
from admm.pipeline import PruneRun
from admm.plan import PruningPlan
from admm.projector import Masks, Projector
from admm.purify import purify
from admm.settings import AdmmSettings, FinetuneSettings
from admm.solver import Admm
from admm.target import Target
from tests.admm.toys import TinyResNet, accuracy, epochs_of, patterns, seeded, trained

DATA = patterns()
STEPS = 8


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.set_num_threads(1)
    return trained(TinyResNet, DATA)


def _run(model: nn.Module, wanted: PruningPlan | Target, **changes: object) -> PruneRun:
    options = {
        "train_batches": epochs_of(DATA),
        "groups": find_groups(model, DATA[0][:1]),
        "example_input": DATA[0][:1],
        "evaluate": lambda m: accuracy(m, DATA),
        "admm": AdmmSettings(iterations=4, lr=0.02, progressive=0.75),
        "finetune": FinetuneSettings(epochs=2, lr=0.02),
        "steps_per_epoch": STEPS,
        **changes,
    }
    return PruneRun(copy.deepcopy(model), wanted, **options)  # type: ignore[arg-type]


def _finish(run: PruneRun) -> nn.Module:
    while run.phase != "done":
        run.step()
    return run.result().model


def test_a_relaxed_plan_keeps_the_power_of_what_it_keeps(dense: nn.Module) -> None:
    plan = PruningPlan({"stem": {"filter": 0.75}, "head": {"unstructured": 0.75}})
    projector = Projector(dense, find_groups(dense, DATA[0][:1]), plan)
    values = {n: p.detach() for n, p in dense.named_parameters()}
    whole = projector.project(values)
    projector.relax(0.5)
    half = projector.project(values)
    assert (int(whole.slots["stem"].sum()), int(half.slots["stem"].sum())) == (2, 4)  # of 8: a quarter, then its root
    assert projector.effective().sparsity("head", "unstructured") == pytest.approx(0.5)
    projector.relax(1.0)
    assert torch.equal(projector.project(values).slots["stem"], whole.slots["stem"])


@pytest.mark.parametrize(
    "wanted",
    [PruningPlan({"head": {"unstructured": 0.75}, "conv2": {"shape": 0.7}}), Target(compression_x=6)],
    ids=["plan", "target"],
)
def test_progressive_pruning_tightens_until_the_whole_is_asked(dense: nn.Module, wanted: PruningPlan | Target) -> None:
    run = _run(dense, wanted)
    _finish(run)
    kept = [sum(record.kept.values()) for record in run.trace.records]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1]
    assert kept[-2] == kept[-1]  # three quarters of the way it is all asked for
    if isinstance(wanted, Target):
        total = sum(p.numel() for p in dense.parameters() if p.ndim > 1)
        assert kept[-1] <= total / 6


@pytest.mark.parametrize("kill_after", [1, 3, 4, 5])
def test_a_target_with_averaging_continues_bit_equal(dense: nn.Module, tmp_path: Path, kill_after: int) -> None:
    target = Target(compression_x=5, structures=("filter", "unstructured"))
    finetune = FinetuneSettings(epochs=2, lr=0.02, schedule="one-cycle", ema=0.9, distillation_weight=0.0)
    whole = _run(dense, target, finetune=finetune)
    _finish(whole)
    first = _run(dense, target, finetune=finetune)
    for _ in range(kill_after):
        first.step()
    save_state(tmp_path / "state", *first.state())
    second = _run(dense, target, finetune=finetune)
    second.load_state(*read_state(tmp_path / "state"))
    _finish(second)
    a, b = whole.result(), second.result()
    assert (a.requested, a.effective, a.kept) == (b.requested, b.effective, b.kept)
    for name, value in a.model.state_dict().items():
        assert torch.equal(value, b.model.state_dict()[name]), name


def test_an_average_is_what_counts_and_keeps_the_zeros(dense: nn.Module) -> None:
    zeros = {"head.weight": torch.rand(dense.head.weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5}
    models = {}
    for ema in (0.0, 0.9):
        model = copy.deepcopy(dense)
        run = Finetune(model, zeros, FinetuneSettings(epochs=2, lr=0.05, ema=ema), loss=F.cross_entropy)
        while not run.done:
            run.step(epochs_of(DATA)(run.epoch))
        assert not model.head.weight[~zeros["head.weight"]].any()
        models[ema] = model
    assert not torch.equal(models[0.0].head.weight, models[0.9].head.weight)


@pytest.mark.parametrize("steps", [None, STEPS])
def test_the_first_epoch_of_a_one_cycle_trains(dense: nn.Module, steps: int | None) -> None:
    model = copy.deepcopy(dense)
    settings = FinetuneSettings(epochs=10, lr=0.05, schedule="one-cycle")
    run = Finetune(model, {}, settings, loss=F.cross_entropy, steps_per_epoch=steps)
    before = model.head.weight.detach().clone()
    run.step(epochs_of(DATA)(0))
    assert (model.head.weight - before).abs().max() > 1e-4


def test_an_empty_plan_continues_where_it_was(dense: nn.Module) -> None:
    projector = Projector(dense, find_groups(dense, DATA[0][:1]), PruningPlan())
    first = Admm(dense, projector, AdmmSettings(iterations=3))
    first.end_iteration(1.0)
    second = Admm(dense, projector, AdmmSettings(iterations=3))
    second.load_state(*first.state())
    assert second.iteration == 1


def test_a_state_within_an_iteration_keeps_what_was_observed(dense: nn.Module) -> None:
    model = copy.deepcopy(dense)
    plan = PruningPlan({"head": {"unstructured": 0.5}})
    projector = Projector(model, find_groups(model, DATA[0][:1]), plan)
    first = Admm(model, projector, AdmmSettings(iterations=3, epochs_per_iteration=2))
    for _ in range(10):
        model.zero_grad()
        F.cross_entropy(model(DATA[0]), DATA[1]).backward()
        first.after_step(0.01)
    second = Admm(copy.deepcopy(model), projector, AdmmSettings(iterations=3, epochs_per_iteration=2))
    second.load_state(*first.state())
    assert first.end_iteration(1.0) == second.end_iteration(1.0)
    assert first.rho == second.rho
    assert first.rho["head.weight"] > 0.0


def test_purified_widths_stay_multiples_of_the_block() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)))
    groups = find_groups(model, torch.randn(1, 6))
    (name,) = groups.groups
    read = torch.ones(3, 16, dtype=torch.bool)
    read[:, 5:11] = False  # six of sixteen that nobody reads
    masks = Masks(slots={}, channels={}, parameters={"2.weight": read})
    kept = {align: int(purify(model, groups, masks, align).slots[name].sum()) for align in (1, 4)}
    assert kept == {1: 10, 4: 12}
    assert name not in purify(model, groups, masks, 16).slots


@dataclass(frozen=True)
class Priced:
    """A cost table of a user's own: so much a weight."""

    price: float

    def cost(self, layer: str, size: LayerSize) -> float:
        return self.price * size.weights


def test_a_checkpoint_of_another_cost_table_of_the_same_name_is_refused(dense: nn.Module) -> None:
    runs = [_run(dense, Target(cost=Priced(price), at_most=300.0)) for price in (1.0, 1.0, 2.0)]
    state = runs[0].state()
    runs[1].load_state(*state)
    said = "the checkpoint is of plan at_most=300 by Priced of 1256,.* this is at_most=300 by Priced of 2512,"
    with pytest.raises(PruneError, match=said):
        runs[2].load_state(*state)


def test_nearly_dead_filters_go_where_that_is_asked(dense: nn.Module) -> None:
    model = copy.deepcopy(dense)
    with torch.no_grad():
        for parameter in (model.conv1.weight, model.conv2.weight):
            parameter[0] *= 1e-4
        model.conv2.weight[:, 0] *= 1e-4
    plan = PruningPlan({"head": {"unstructured": 0.2}})
    widths = {}
    for weak in (0.0, 0.05):
        admm = AdmmSettings(iterations=1, lr=1e-6, nearly_dead=weak)
        small = _finish(_run(model, plan, admm=admm, finetune=FinetuneSettings(epochs=0)))
        widths[weak] = small.conv1.out_channels
    assert widths == {0.0: 8, 0.05: 7}


def test_channels_last_changes_no_more_than_rounding(dense: nn.Module) -> None:
    plan = PruningPlan({"stem": {"filter": 0.25}})
    plain = _finish(_run(dense, plan))
    laid_out = _finish(_run(dense, plan, compute=Compute(channels_last=True)))
    outputs = [m(DATA[0]).detach() for m in (plain, laid_out)]
    assert torch.allclose(*outputs, atol=0.05 * float(outputs[0].abs().max()))
    assert all(p.is_contiguous() for p in laid_out.parameters())
    assert not math.isnan(float(outputs[1].sum()))
