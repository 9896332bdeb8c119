"""Autocast, layouts, their choice by measurement, the average of the weights and the rates of a cycle."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import admm.compute as compute_module
from admm.checkpoint import read_state, save_state
from admm.compute import PLAIN, Compute, fastest_compute, has_bf16
from admm.ema import Ema
from admm.training import cosine, frozen_teacher, make_optimizer, one_cycle, soft_loss, train_epoch
from tests.admm.toys import TinyResNet, epochs_of, patterns, seeded

DATA = patterns(samples=64)
CPU = torch.device("cpu")
LAST = Compute(channels_last=True)
HALF = Compute(autocast="bf16", channels_last=True)
needs_bf16 = pytest.mark.skipif(not has_bf16(CPU), reason="this processor has neither avx512_bf16 nor amx")


class Seen(nn.Module):
    """A convolution that remembers what reached it."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.inputs = self.outputs = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.conv(x)
        self.inputs, self.outputs = x, outputs.detach()
        return outputs.mean((2, 3))


class Views(nn.Module):
    """A network that channels-last breaks: it views what a convolution gave."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.head = nn.Linear(2 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).view(len(x), -1))


def _train(compute: Compute | None, epochs: int = 3) -> tuple[nn.Module, float]:
    model = seeded(TinyResNet)
    optimizer = make_optimizer(model.parameters(), kind="sgd", lr=0.05, momentum=0.9, weight_decay=1e-4)
    options = {} if compute is None else {"compute": compute}
    for epoch in range(epochs):
        stats = train_epoch(model, epochs_of(DATA)(epoch), F.cross_entropy, optimizer, phase="test", **options)
    return model, stats.loss


def test_plain_compute_changes_no_bit() -> None:
    ours, loss = _train(PLAIN)
    bare = seeded(TinyResNet).train()
    optimizer = make_optimizer(bare.parameters(), kind="sgd", lr=0.05, momentum=0.9, weight_decay=1e-4)
    for epoch in range(3):
        for x, y in epochs_of(DATA)(epoch):
            optimizer.zero_grad()
            F.cross_entropy(bare(x), y).backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), bare.state_dict().values(), strict=True))
    assert loss == _train(None)[1]


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_reaches_the_convolution_and_not_the_weights(channels: int) -> None:
    model = Seen(channels)
    batch = [(torch.randn(5, channels, 6, 7), torch.randint(4, (5,)))]
    optimizer = make_optimizer(model.parameters(), kind="sgd", lr=0.05, momentum=0.9, weight_decay=0.0)
    train_epoch(model, batch, F.cross_entropy, optimizer, phase="test", compute=LAST)
    assert torch.equal(model.inputs, batch[0][0])
    assert model.outputs.is_contiguous(memory_format=torch.channels_last)
    assert not model.outputs.is_contiguous()
    assert all(t.is_contiguous() for t in (*model.state_dict().values(), *copy.deepcopy(model).state_dict().values()))
    assert all(v["momentum_buffer"].is_contiguous() for v in optimizer.state.values())


def test_only_images_are_laid_out_anew() -> None:
    for shape in ((4, 7), (4, 3, 5), (4, 3, 5, 5, 5)):
        inputs = torch.randn(shape)
        assert LAST.layout(inputs) is inputs
    image = torch.randn(2, 3, 5, 5)
    assert PLAIN.layout(image) is image
    once = LAST.layout(image)
    assert once.stride() == (75, 1, 15, 3)
    assert LAST.layout(once).data_ptr() == once.data_ptr()
    sliced = torch.randn(2, 3, 5, 5)[:, 1:2]
    assert torch.equal(LAST.layout(sliced), sliced)


def test_channels_last_learns_the_same() -> None:
    plain, last = _train(PLAIN), _train(LAST)
    assert last[1] == pytest.approx(plain[1], rel=1e-4)
    x = DATA[0]
    assert torch.allclose(plain[0].eval()(x), last[0].eval()(x), atol=1e-3)


@needs_bf16
def test_bf16_learns_the_same_within_its_precision() -> None:
    plain, half = _train(PLAIN), _train(HALF)
    assert half[1] == pytest.approx(plain[1], rel=0.05)
    assert half[1] != plain[1]
    assert all(t.dtype == torch.float32 for t in half[0].parameters())


@needs_bf16
def test_a_teacher_can_use_the_same_and_answers_in_single_precision() -> None:
    model = seeded(TinyResNet, seed=4)
    exact = frozen_teacher(copy.deepcopy(model))(DATA[0])
    soft = frozen_teacher(model, HALF)(DATA[0])
    assert soft.dtype == torch.float32
    assert not torch.equal(soft, exact)
    assert torch.allclose(soft, exact, atol=0.05, rtol=0.05)
    student = seeded(TinyResNet)
    optimizer = make_optimizer(student.parameters(), kind="sgd", lr=0.05, momentum=0.9, weight_decay=0.0)
    before = float(soft_loss(student.eval()(DATA[0]), exact, 2.0).detach())
    for epoch in range(4):
        train_epoch(
            student,
            epochs_of(DATA)(epoch),
            F.cross_entropy,
            optimizer,
            phase="test",
            teacher=frozen_teacher(model, HALF),
            distillation=(1.0, 2.0),
            compute=HALF,
        )
    assert float(soft_loss(student.eval()(DATA[0]), exact, 2.0).detach()) < before


def test_bf16_without_the_instructions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_module, "has_bf16", lambda _: False)
    model = seeded(TinyResNet)
    optimizer = make_optimizer(model.parameters(), kind="sgd", lr=0.05, momentum=0.9, weight_decay=0.0)
    with pytest.raises(ValueError, match=r"this cpu has no bf16 instructions .* use 'off'"):
        train_epoch(model, epochs_of(DATA)(0), F.cross_entropy, optimizer, phase="test", compute=HALF)
    choice = fastest_compute(model, DATA, F.cross_entropy, steps=1)
    assert choice.compute.autocast == "off"
    assert set(choice.passed_over) == {"bf16", "bf16 channels-last"}
    with pytest.raises(ValueError, match="must be 'off' or 'bf16', got 'fp16'"):
        Compute(autocast="fp16")  # type: ignore[arg-type]
    assert not has_bf16(torch.device("meta"))


def test_the_choice_leaves_model_and_generator_alone_and_goes_through_json() -> None:
    model = seeded(TinyResNet)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    choice = fastest_compute(model, DATA, F.cross_entropy)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert {"fp32", "fp32 channels-last"} <= set(choice.milliseconds)
    assert min(choice.milliseconds.values()) > 0.0
    assert str(choice.compute) in choice.note()
    assert Compute(**json.loads(json.dumps(choice.compute.to_dict()))) == choice.compute


def test_the_fastest_is_chosen_and_a_tie_goes_to_the_plainer(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"fp32": 10.0, "fp32 channels-last": 9.8, "bf16": 5.0, "bf16 channels-last": 4.9}
    now = 0.0

    class Timed(Compute):
        def forward(self, model: object, inputs: Tensor) -> object:
            nonlocal now
            now += costs[str(self)]
            return super().forward(model, inputs)  # type: ignore[arg-type]

    ways = [Timed(autocast=a, channels_last=c) for a in ("off", "bf16") for c in (False, True)]  # type: ignore[arg-type]
    monkeypatch.setattr(compute_module, "_ways", lambda _: ways)
    monkeypatch.setattr(compute_module, "PLAIN", ways[0])
    monkeypatch.setattr(compute_module, "has_bf16", lambda _: True)
    monkeypatch.setattr("admm.compute.time.thread_time", lambda: now)
    choice = fastest_compute(seeded(TinyResNet), DATA, F.cross_entropy)
    assert choice.compute == ways[2]
    assert choice.milliseconds == {name: 1e3 * cost for name, cost in costs.items()}


def test_what_cannot_be_used_is_passed_over_with_the_reason() -> None:
    torch.manual_seed(0)
    choice = fastest_compute(Views(), DATA, F.cross_entropy, steps=1)
    assert not choice.compute.channels_last
    assert "view" in choice.passed_over["fp32 channels-last"]
    assert "not fp32 channels-last: " in choice.note()
    with pytest.raises(RuntimeError, match="shape"):
        fastest_compute(nn.Linear(3, 2), (torch.zeros(2, 5), torch.zeros(2).long()), F.cross_entropy)


def test_a_way_with_another_loss_is_passed_over() -> None:
    class Strides(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1) * (1.0 if x.is_contiguous() else 50.0))

    data = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    choice = fastest_compute(Strides(18, 4), data, F.cross_entropy, steps=1)
    assert "its loss is" in choice.passed_over["fp32 channels-last"]


def test_the_average_follows_its_recursion_and_copies_statistics() -> None:
    model = seeded(TinyResNet)
    ema = Ema(model, 0.6)
    expected = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    optimizer = make_optimizer(model.parameters(), kind="sgd", lr=0.05, momentum=0.9, weight_decay=0.0)
    steps = 0

    def after_step() -> None:
        nonlocal steps
        ema.update()
        decay = min(0.6, (1 + steps) / (10 + steps))
        steps += 1
        for name, parameter in model.named_parameters():
            expected[name] = decay * expected[name] + (1.0 - decay) * parameter.detach().double()

    for epoch in range(4):
        train_epoch(model, epochs_of(DATA)(epoch), F.cross_entropy, optimizer, phase="test", after_step=after_step)
    assert ema.updates == steps == 8
    for name, parameter in ema.model.named_parameters():
        assert torch.allclose(parameter.double(), expected[name], atol=1e-6)
        assert not parameter.requires_grad
    for ours, theirs in zip(ema.model.buffers(), model.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert not ema.model.training
    other = seeded(TinyResNet, seed=9)
    ema.copy_to(other)
    assert torch.equal(other.eval()(DATA[0]), ema.model(DATA[0]))


def test_the_average_keeps_zeros_and_continues_from_its_state(tmp_path: Path) -> None:
    model = seeded(TinyResNet)
    with torch.no_grad():
        model.conv1.weight[:, :3] = 0.0
    ema = Ema(model, 0.99)

    def shake(seed: int) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                parameter.add_(0.1 * noise * (parameter != 0))

    for seed in range(3):
        shake(seed)
        ema.update()
    assert not ema.model.conv1.weight[:, :3].any()
    save_state(tmp_path / "ema", *ema.state())
    resumed = Ema(model, 0.99)
    resumed.load_state(*read_state(tmp_path / "ema"))
    shake(3)
    ema.update()
    resumed.update()
    pairs = zip(ema.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ValueError, match=r"made with decay 0\.99, this one has 0\.9"):
        Ema(model, 0.9).load_state(*ema.state())
    for decay in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\)"):
            Ema(model, decay)


def test_one_cycle_rises_and_falls() -> None:
    assert one_cycle(0.0, 0.25) == 0.0
    assert one_cycle(0.125, 0.25) == pytest.approx(0.5)
    assert one_cycle(0.25, 0.25) == 1.0
    assert one_cycle(0.625, 0.25) == pytest.approx(0.5)
    assert one_cycle(1.0, 0.25) == one_cycle(1.5, 0.25) == pytest.approx(0.0)
    shares = [one_cycle(i / 50, 0.2) for i in range(51)]
    assert shares[:11] == sorted(shares[:11])
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert all(one_cycle(p / 10, 0.0) == cosine(p / 10) for p in range(11))
    for warmup in (1.0, -0.5):
        with pytest.raises(ValueError, match=r"warmup must lie in \[0, 1\)"):
            one_cycle(0.5, warmup)
