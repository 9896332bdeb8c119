"""ADMM in a loop of one's own: what PruneRun does, in plain torch, and each way of getting it wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from admm.attach import AttachedAdmm, attach
from admm.checkpoint import read_state, save_state
from admm.errors import DivergedError, PlanError, PruneError
from admm.groupmap import GroupMap
from admm.groups import find_groups
from admm.hold import hold_zeros
from admm.pipeline import PruneRun
from admm.plan import PruningPlan
from admm.settings import AdmmSettings, FinetuneSettings
from admm.target import Target
from admm.training import make_optimizer
from tests.admm.toys import Batch, TinyResNet, accuracy, epochs_of, patterns, trained

DATA = patterns()
VALIDATION = patterns(seed=2)
BATCHES = epochs_of(DATA)
STEPS = 8
SETTINGS = AdmmSettings(iterations=3, lr=0.02)
PLAN = PruningPlan(
    {"stem": {"filter": 0.25}, "conv1": {"filter": 0.25, "shape": 0.3}, "head": {"unstructured": 0.5}},
)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.set_num_threads(1)
    return trained(TinyResNet, DATA)


@pytest.fixture(scope="module")
def groups(dense: nn.Module) -> GroupMap:
    return find_groups(dense, DATA[0][:1])


@pytest.fixture
def model(dense: nn.Module) -> nn.Module:
    return copy.deepcopy(dense)


def sgd(model: nn.Module, lr: float = SETTINGS.lr) -> torch.optim.Optimizer:
    return make_optimizer(model.parameters(), kind="sgd", lr=lr, momentum=0.9, weight_decay=1e-4)


def epoch_of(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[Batch]) -> float:
    """One epoch as anybody writes it; the mean loss per sample."""
    model.train()
    total, samples = torch.zeros((), dtype=torch.float64), 0
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(x)
        samples += len(x)
    return float(total) / samples


def drive(admm: AttachedAdmm, model: nn.Module, optimizer: torch.optim.Optimizer, until: int | None = None) -> None:
    for epoch in range(admm.epoch, admm.epochs if until is None else until):
        admm.end_epoch(epoch_of(model, optimizer, BATCHES(epoch)))


def equal(one: nn.Module, other: nn.Module) -> None:
    assert type(one) is type(other)
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def one_line(call: Callable[[], Any], kind: type[Exception] = PruneError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("nearly_dead", [0.0, 0.3])
@pytest.mark.parametrize("wanted", [PLAN, Target(compression_x=3.0, structures=("unstructured",))])
def test_it_is_prune_run_bit_for_bit(
    dense: nn.Module, model: nn.Module, groups: GroupMap, wanted: PruningPlan | Target, nearly_dead: float
) -> None:
    settings = replace(SETTINGS, nearly_dead=nearly_dead)
    finetune = FinetuneSettings(epochs=2, lr=0.01, schedule="constant", distillation_weight=0.0)
    run = PruneRun(
        copy.deepcopy(dense),
        wanted,
        train_batches=BATCHES,
        groups=groups,
        admm=settings,
        finetune=finetune,
        steps_per_epoch=STEPS,
    )
    while run.phase != "done":
        run.step()

    optimizer = sgd(model)
    admm = attach(model, optimizer, wanted, groups=groups, settings=settings, steps_per_epoch=STEPS)
    drive(admm, model, optimizer)
    small = admm.finish(BATCHES(admm.epochs - 1))
    optimizer = sgd(small.model, lr=finetune.lr)
    hold_zeros(small.model, optimizer, small.zeros)
    for epoch in range(finetune.epochs):
        epoch_of(small.model, optimizer, BATCHES(admm.epochs + epoch))

    result = run.result()
    assert admm.trace.to_dict()["records"] == result.trace.to_dict()["records"]
    assert small.kept == result.kept
    assert small.effective == result.effective
    assert small.notes == result.notes
    assert small.zeros
    equal(small.model, result.model)
    assert accuracy(small.model, VALIDATION) > 0.8


def test_a_wrapped_network_is_looked_into(model: nn.Module, groups: GroupMap) -> None:
    plain = copy.deepcopy(model)
    optimizer = sgd(plain)
    admm = attach(plain, optimizer, PLAN, groups=groups, settings=SETTINGS)
    drive(admm, plain, optimizer)

    wrapped: Any = nn.DataParallel(torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    assert next(name for name, _ in wrapped.named_parameters()).startswith("module._orig_mod.")
    optimizer = sgd(wrapped)
    same = attach(wrapped, optimizer, PLAN, groups=groups, settings=SETTINGS)
    for epoch in range(same.epochs):  # through the network itself: to compile it is not what is tested
        same.end_epoch(epoch_of(model, optimizer, BATCHES(epoch)))
    assert same.trace == admm.trace
    small = same.finish()
    equal(small.model, admm.finish().model)
    wrapped = nn.DataParallel(small.model)
    hold_zeros(wrapped, sgd(wrapped), small.zeros)


def test_ddp_trains_and_prunes_its_module(
    tmp_path: Path, model: nn.Module, groups: GroupMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # the name of the machine need not resolve
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        optimizer = sgd(wrapped)
        admm = attach(wrapped, optimizer, PLAN, groups=groups, settings=SETTINGS)
        drive(admm, wrapped, optimizer)
        small = admm.finish(BATCHES(0))
        wrapped = nn.parallel.DistributedDataParallel(small.model)
        optimizer = sgd(wrapped)
        hold_zeros(wrapped, optimizer, small.zeros)
        epoch_of(wrapped, optimizer, BATCHES(0))
    finally:
        distributed.destroy_process_group()
    assert small.model.stem.out_channels == 6
    assert all(not bool(small.model.get_parameter(name)[~mask].any()) for name, mask in small.zeros.items())


def test_accumulated_gradients_are_one_step(model: nn.Module, groups: GroupMap) -> None:
    """Four quarters of a batch, then one step: the same as the whole batch, to rounding (BatchNorm set aside)."""
    model.eval()
    whole = copy.deepcopy(model)
    traces = []
    for network, parts in ((whole, 1), (model, 4)):
        optimizer = sgd(network)
        admm = attach(network, optimizer, PLAN, groups=groups, settings=SETTINGS)
        for epoch in range(admm.epochs):
            for x, y in BATCHES(epoch):
                optimizer.zero_grad()
                for part_x, part_y in zip(x.chunk(parts), y.chunk(parts), strict=True):
                    (F.cross_entropy(network(part_x), part_y) / parts).backward()
                optimizer.step()
            admm.end_epoch()
        traces.append(admm.trace.records[-1])
    assert traces[0].rho == pytest.approx(traces[1].rho, rel=1e-3)
    assert traces[0].primal == pytest.approx(traces[1].primal, rel=1e-2)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_skipped_here_too(model: nn.Module, groups: GroupMap, fused: bool) -> None:
    """An unfused optimiser is not called at all, a fused one skips in its kernel and leaves scaled gradients behind."""
    reference = copy.deepcopy(model)
    ends = []
    for network, scale in ((reference, None), (model, 2.0**14)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, fused=fused, foreach=False)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        admm = attach(network, optimizer, PLAN, groups=groups, settings=SETTINGS, steps_per_epoch=STEPS)
        network.train()
        for epoch in range(admm.epochs):
            for step, (x, y) in enumerate(BATCHES(epoch)):
                poisoned = step == 3
                if poisoned and scale is None:
                    continue
                optimizer.zero_grad()
                buffers = [b.clone() for b in network.buffers()]
                scaler.scale(F.cross_entropy(network(x), y) * (torch.inf if poisoned else 1.0)).backward()
                before = [p.detach().clone() for p in network.parameters()]
                scaler.step(optimizer)
                scaler.update()
                if poisoned:
                    assert all(torch.equal(b, p) for b, p in zip(before, network.parameters(), strict=True))
                    for buffer, old in zip(network.buffers(), buffers, strict=True):
                        buffer.copy_(old)
            admm.end_epoch()
        ends.append(admm.trace.records[-1])
    # a power of two scales without rounding
    assert ends[0].rho == ends[1].rho
    assert ends[0].primal == ends[1].primal


def test_a_warm_up_does_not_blow_up_the_penalty(model: nn.Module, groups: GroupMap) -> None:
    """rho's floor goes as 1/lr: taken at the first steps of a warm-up, it would pin W to Z within the iteration."""
    steps = 32
    first = []
    for network, warm_up in ((copy.deepcopy(model), 0), (model, 2 * steps)):
        optimizer = sgd(network)
        if warm_up:
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
            assert optimizer.param_groups[0]["lr"] == 0.0
        admm = attach(network, optimizer, PLAN, groups=groups, settings=SETTINGS, steps_per_epoch=steps)
        for step, (x, y) in enumerate(epochs_of(DATA, batch=len(DATA[0]) // steps)(0)):
            if warm_up:
                optimizer.param_groups[0]["lr"] = SETTINGS.lr * step / warm_up
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
        record = admm.end_epoch()
        assert record is not None
        first.append(max(record.rho.values()))
    assert 0.5 * first[0] < first[1] < 2.0 * first[0]


def test_groups_of_one_rate_are_one_and_of_two_are_refused(model: nn.Module, groups: GroupMap) -> None:
    norms = [p for p in model.parameters() if p.ndim == 1]
    weights = [p for p in model.parameters() if p.ndim > 1]
    optimizer = torch.optim.AdamW([{"params": weights}, {"params": norms, "weight_decay": 0.0}], lr=1e-3)
    admm = attach(model, optimizer, PLAN, groups=groups, settings=SETTINGS)
    drive(admm, model, optimizer)
    assert admm.done
    admm.detach()
    optimizer.param_groups[1]["lr"] = 1e-4
    message = one_line(lambda: attach(model, optimizer, PLAN, groups=groups))
    assert message == "the pruned layers have different learning rates (0.0001, 0.001): give them one"
    only_weights = PruningPlan({"conv2": {"shape": 0.5}, "head": {"unstructured": 0.5}})
    attach(model, optimizer, only_weights, groups=groups)


def test_the_wrappers_of_other_libraries_are_looked_into(model: nn.Module, groups: GroupMap) -> None:
    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    optimizer = sgd(model)
    wrapped: Any = Wrapper(optimizer)
    admm = attach(model, wrapped, PLAN, groups=groups, settings=SETTINGS)
    drive(admm, model, optimizer)
    assert admm.done


def test_the_optimiser_and_the_hook(model: nn.Module, groups: GroupMap) -> None:
    optimizer = sgd(model)
    admm = attach(model, optimizer, PLAN, groups=groups, settings=SETTINGS)
    assert "attached already" in one_line(lambda: attach(model, optimizer, PLAN, groups=groups))
    assert "by itself" in one_line(lambda: admm.after_step(0.1))
    expected = "ADMM has done 0 of 3 iterations: call end_epoch() after each of the 3 epochs, then finish()"  # not [^:]
    assert one_line(admm.finish) == expected
    drive(admm, model, optimizer)
    assert admm.end_epoch() is None
    admm.finish()
    hard = {n: p.detach().clone() for n, p in model.named_parameters()}
    drained = sum(float(p.detach().abs().sum()) for p in model.parameters())
    model.zero_grad()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()  # a hook would still pull W to Z
    assert sum(float(p.detach().abs().sum()) for p in model.parameters()) == drained
    assert all(torch.equal(p, hard[n]) for n, p in model.named_parameters())
    attach(model, optimizer, PLAN, groups=groups).detach()


def test_w_is_held_near_z_until_finish(model: nn.Module, groups: GroupMap) -> None:
    """A loop that runs on for an epoch must not carry W away from the Z that the hard prune will use."""
    optimizer = sgd(model)
    admm = attach(model, optimizer, PLAN, groups=groups, settings=SETTINGS, steps_per_epoch=STEPS)
    drive(admm, model, optimizer)
    masks = admm.admm.masks.parameters

    def outside() -> float:
        return max(float((p * ~masks[n]).norm() / p.norm()) for n, p in model.state_dict().items() if n in masks)

    before = outside()
    epoch_of(model, optimizer, BATCHES(9))
    assert outside() < max(1.5 * before, 0.05)


def test_a_loop_without_an_optimiser_of_torch(model: nn.Module, groups: GroupMap) -> None:
    twin = copy.deepcopy(model)
    optimizer = sgd(twin)
    hooked = attach(twin, optimizer, PLAN, groups=groups, settings=SETTINGS)
    drive(hooked, twin, optimizer)
    optimizer = sgd(model)
    admm = attach(model, None, PLAN, groups=groups, settings=SETTINGS)
    for epoch in range(admm.epochs):
        for x, y in BATCHES(epoch):
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            admm.after_step(optimizer.param_groups[0]["lr"])
        admm.end_epoch()
    equal(model, twin)


def test_what_is_wrong_with_the_set_up_is_said_at_once(model: nn.Module, groups: GroupMap) -> None:
    other = copy.deepcopy(model)
    message = one_line(lambda: attach(model, sgd(other), PLAN, groups=groups))
    assert message == (
        "the optimiser does not train stem.weight, which the plan prunes: give attach() the one that does"
    )
    assert "needs example_input" in one_line(lambda: attach(model, sgd(model), PLAN))
    unknown = PruningPlan({"steem": {"filter": 0.5}})
    assert "did you mean 'stem'?" in one_line(lambda: attach(model, sgd(model), unknown, groups=groups), PlanError)
    fraction = Target(mac_fraction=0.5, structures=("filter",))
    assert "needs example_input" in one_line(lambda: attach(model, sgd(model), fraction, groups=groups), PlanError)
    other.head.weight.data[0, 0] = torch.nan
    message = one_line(lambda: attach(other, sgd(other), PLAN, groups=groups))
    assert message == "head.weight holds a NaN or Inf before pruning: load sound weights"


def test_a_frozen_layer_needs_no_optimiser(model: nn.Module, groups: GroupMap) -> None:
    model.head.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    admm = attach(model, optimizer, PLAN, groups=groups, settings=SETTINGS)
    drive(admm, model, optimizer)
    assert any("frozen" in note for note in admm.finish().notes)


def test_an_epoch_in_which_nothing_reached_admm(model: nn.Module, groups: GroupMap) -> None:
    optimizer = sgd(model)
    admm = attach(model, optimizer, PLAN, groups=groups, settings=SETTINGS)
    epoch_of(model, sgd(model), BATCHES(0))  # made anew after attach
    message = one_line(admm.end_epoch)
    assert message.startswith("ADMM saw no step with a learning rate above 0 in epoch 1: ")
    assert message.endswith("or attach again to the new one")
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    epoch_of(model, optimizer, BATCHES(0))
    assert one_line(admm.end_epoch) == message


@pytest.mark.parametrize("to_none", [False, True])
def test_gradients_cleared_within_the_step(model: nn.Module, groups: GroupMap, to_none: bool) -> None:
    class Clearing(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    p -= group["lr"] * p.grad
            self.zero_grad(set_to_none=to_none)

    optimizer = Clearing(model.parameters(), {"lr": 0.02})
    admm = attach(model, optimizer, PLAN, groups=groups, settings=SETTINGS)
    epoch_of(model, optimizer, BATCHES(0))
    assert one_line(admm.end_epoch).startswith("no pruned layer had a gradient after the steps of epoch 1: ")


def test_an_optimiser_that_calls_its_parents_step_is_followed_once(model: nn.Module, groups: GroupMap) -> None:
    class Derived(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    twin = copy.deepcopy(model)
    for network, kind in ((twin, torch.optim.SGD), (model, Derived)):
        optimizer = kind(network.parameters(), lr=0.02, momentum=0.9)
        admm = attach(network, optimizer, PLAN, groups=groups, settings=SETTINGS)
        drive(admm, network, optimizer)
    equal(twin, model)


def test_a_model_moved_or_replaced_after_attach(model: nn.Module, groups: GroupMap) -> None:
    optimizer = sgd(model)
    admm = attach(model, optimizer, PLAN, groups=groups, settings=SETTINGS)
    model.double()
    data = DATA[0].double(), DATA[1]
    message = one_line(lambda: epoch_of(model, optimizer, epochs_of(data)(0)))
    assert message == (
        "the model was float32 on cpu when attach() saw it and is float64 on cpu: move it first, then attach"
    )
    model.float()
    admm.detach()
    admm = attach(model, optimizer, PLAN, groups=groups, settings=SETTINGS)
    model.load_state_dict(copy.deepcopy(model).state_dict(), assign=True)
    epoch_of(model, optimizer, BATCHES(0))
    assert one_line(admm.end_epoch).startswith("stem.weight was replaced by another tensor after attach()")


def test_a_loss_or_weights_that_are_not_finite(model: nn.Module, groups: GroupMap) -> None:
    optimizer = sgd(model)
    admm = attach(model, optimizer, PLAN, groups=groups, settings=SETTINGS)
    epoch_of(model, optimizer, BATCHES(0))
    message = one_line(lambda: admm.end_epoch(torch.tensor(torch.nan)), DivergedError)
    assert message == "the loss is nan in ADMM epoch 1: lower the lr, or clip gradients"
    model.stem.weight.data.fill_(torch.inf)
    assert one_line(admm.end_epoch, DivergedError).startswith("stem.weight holds a NaN or Inf in ADMM iteration 1")


@pytest.mark.parametrize("wanted", [PLAN, Target(compression_x=3.0)])
@pytest.mark.parametrize("stop", [0, 2, 3])
def test_a_run_continued_from_its_state_is_the_same(
    tmp_path: Path, model: nn.Module, groups: GroupMap, wanted: PruningPlan | Target, stop: int
) -> None:
    optimizer = sgd(model)
    admm = attach(model, optimizer, wanted, groups=groups, settings=SETTINGS)
    drive(admm, model, optimizer, until=stop)
    save_state(tmp_path / "admm", *admm.state())
    weights, moments = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    drive(admm, model, optimizer)
    small = admm.finish(BATCHES(0))

    optimizer = sgd(weights)  # made anew
    optimizer.load_state_dict(moments)
    again = attach(weights, optimizer, wanted, groups=groups, settings=SETTINGS)
    again.load_state(*read_state(tmp_path / "admm"))
    assert again.epoch == stop
    drive(again, weights, optimizer)
    assert again.trace == admm.trace
    other = again.finish(BATCHES(0))
    assert (other.kept, other.effective, other.notes) == (small.kept, small.effective, small.notes)
    equal(other.model, small.model)


def test_a_state_is_taken_within_an_iteration_too(model: nn.Module, groups: GroupMap) -> None:
    settings = AdmmSettings(iterations=2, epochs_per_iteration=2)
    optimizer = sgd(model)
    admm = attach(model, optimizer, PLAN, groups=groups, settings=settings)
    drive(admm, model, optimizer, until=3)
    tensors, values = admm.state()
    saved = {name: tensor.clone() for name, tensor in tensors.items()}
    admm.detach()
    again = attach(model, optimizer, PLAN, groups=groups, settings=settings)
    again.load_state(tensors, values)
    drive(again, model, optimizer)
    assert (again.done, again.epoch, len(again.trace.records)) == (True, 4, 2)
    assert again.trace.records[0] == admm.trace.records[0]
    assert all(torch.equal(saved[name], tensor) for name, tensor in tensors.items())  # not aliased


def test_a_state_of_something_else_is_refused(model: nn.Module, groups: GroupMap) -> None:
    state = attach(model, None, PLAN, groups=groups, settings=SETTINGS).state()
    other = attach(model, None, PruningPlan({"stem": {"filter": 0.5}}), groups=groups, settings=SETTINGS)
    assert one_line(lambda: other.load_state(*state)).startswith(f"the checkpoint is of plan {PLAN.digest()}")
    longer = attach(model, None, PLAN, groups=groups, settings=AdmmSettings(iterations=9))
    assert "other settings" in one_line(lambda: longer.load_state(*state))


def test_widths_stay_aligned_and_an_empty_iterable_is_said(model: nn.Module, groups: GroupMap) -> None:
    """conv2 reads so little that purification takes filters of conv1 that no plan named."""
    plan = PruningPlan({"stem": {"filter": 0.75}, "conv2": {"unstructured": 0.99}})
    widths = []
    for align in (1, 4):
        network = copy.deepcopy(model)
        optimizer = sgd(network)
        admm = attach(network, optimizer, plan, groups=groups, settings=SETTINGS, align=align)
        drive(admm, network, optimizer)
        assert "no batch" in one_line(lambda admm=admm: admm.finish([]))
        small = admm.finish(BATCHES(0))
        widths.append((small.model.stem.out_channels, small.model.conv1.out_channels))
    assert widths[0][0] == 2
    assert widths[0][1] < 8
    assert widths[1] in ((4, 4), (4, 8))
    assert any("rounded up to a multiple of 4" in note for note in small.notes)


@pytest.fixture(scope="module")
def half_zero() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The lower half of each weight is masked."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    return model, {f"{i}.weight": model[i].weight.detach() > 0 for i in (0, 2)}


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    ],
)
def test_zeros_are_held_under_momentum_and_decay(
    half_zero: tuple[nn.Module, dict[str, torch.Tensor]],
    make: Callable[[Any], torch.optim.Optimizer],
) -> None:
    model, zeros = copy.deepcopy(half_zero[0]), half_zero[1]
    optimizer = make(model.parameters())
    dense = {name: p.detach().clone() for name, p in model.named_parameters()}
    # momentum that was gathered before, and pulls on what is masked
    F.mse_loss(model(torch.ones(3, 6)), torch.ones(3, 4)).backward()
    optimizer.step()
    handle = hold_zeros(model, optimizer, zeros)
    for seed in range(5):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        F.mse_loss(model(torch.randn(8, 6)), torch.randn(8, 4)).backward()
        optimizer.step()
        for name, mask in zeros.items():
            weight = model.get_parameter(name)
            assert not bool(weight[~mask].any())
            assert bool((weight[mask] != dense[name][mask]).all())
    handle.remove()
    optimizer.step()
    assert bool(model[0].weight[~zeros["0.weight"]].any())


def test_zeros_follow_a_model_that_is_cast(half_zero: tuple[nn.Module, dict[str, torch.Tensor]]) -> None:
    model, zeros = copy.deepcopy(half_zero[0]), half_zero[1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hold_zeros(model, optimizer, zeros)
    model.double()
    model(torch.ones(3, 6, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert not bool(model[0].weight[~zeros["0.weight"]].any())


def test_zeros_of_another_model_are_refused(half_zero: tuple[nn.Module, dict[str, torch.Tensor]]) -> None:
    model, zeros = half_zero
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert "no parameter 9.weight" in one_line(lambda: hold_zeros(model, optimizer, {"9.weight": zeros["0.weight"]}))
    message = one_line(lambda: hold_zeros(model, optimizer, {"0.weight": zeros["2.weight"]}))
    assert message == "0.weight is [8, 6], its mask [4, 8]: use the zeros of the same finish()"
    other = copy.deepcopy(model)
    assert "does not train 0.weight of this model" in one_line(lambda: hold_zeros(other, optimizer, zeros))


def test_the_package_gives_functions_where_modules_have_their_names() -> None:
    import admm
    import admm.purify

    assert len(admm.__all__) == len(set(admm.__all__))
    for name in ("attach", "compact", "purify", "shrink", "recalibrate", "hold_zeros", "fastest_compute", "prune"):
        assert callable(getattr(admm, name)), name
    assert {"attach", "AttachedAdmm", "hold_zeros", "Compute", "fastest_compute", "Ema", "purify", "Target"} <= set(
        dir(admm)
    )
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = admm.nothing
