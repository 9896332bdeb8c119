"""The shared training loop and the distillation loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from admm.errors import DivergedError, PruneError
from admm.finetune import Finetune
from admm.settings import AdmmSettings, FinetuneSettings
from admm.training import cosine, frozen_teacher, make_optimizer, seed_epoch, soft_loss, train_epoch
from tests.admm.toys import TinyResNet, epochs_of, patterns, seeded

DATA = patterns(samples=64)


def test_the_distillation_loss_is_hintons() -> None:
    """T² Σ p_teacher (log p_teacher − log p_student), mean over the batch (Hinton et al. 2015, section 2)."""
    torch.manual_seed(0)
    student, teacher, t = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64), 3.0
    p, q = (teacher / t).softmax(1), (student / t).softmax(1)
    expected = t**2 * (p * (p.log() - q.log())).sum(1).mean()
    assert soft_loss(student, teacher, t) == pytest.approx(float(expected), rel=1e-12)
    assert soft_loss(teacher, teacher, t) == pytest.approx(0.0, abs=1e-12)


def test_the_distillation_loss_of_pixels_is_the_mean_over_pixels() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    flat = soft_loss(student.movedim(1, -1).reshape(-1, 5), teacher.movedim(1, -1).reshape(-1, 5), 2.0)
    assert soft_loss(student, teacher, 2.0) == pytest.approx(float(flat), rel=1e-5)


def test_one_output_is_a_regression() -> None:
    student, teacher = torch.randn(6, 1), torch.randn(6, 1)
    assert soft_loss(student, teacher, 4.0) == F.mse_loss(student, teacher)


def test_the_mean_loss_is_over_samples() -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    batches = [(torch.zeros(3, 2), torch.ones(3, 1)), (torch.zeros(1, 2), torch.full((1, 1), 3.0))]
    optimizer = make_optimizer(model.parameters(), kind="sgd", lr=1e-12, momentum=0.0, weight_decay=0.0)
    stats = train_epoch(model, batches, F.mse_loss, optimizer, phase="test")
    assert (stats.samples, stats.steps) == (4, 2)
    assert stats.loss == pytest.approx((3 * 1.0 + 9.0) / 4)


def test_no_data_and_a_diverging_loss_are_errors() -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    optimizer = make_optimizer(model.parameters(), kind="sgd", lr=0.1, momentum=0.9, weight_decay=0.0)
    with pytest.raises(PruneError, match="no batch in test: train_batches"):
        train_epoch(model, [], F.mse_loss, optimizer, phase="test")
    huge = [(torch.full((2, 2), 1e30), torch.zeros(2, 1))]
    with pytest.raises(DivergedError, match="the loss is inf in test"):
        train_epoch(model, huge, F.mse_loss, optimizer, phase="test")


def test_clipping_bounds_the_step() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    before = model[0].weight.detach().clone()
    optimizer = make_optimizer(model.parameters(), kind="sgd", lr=1.0, momentum=0.0, weight_decay=0.0)
    steep = [(torch.full((2, 2), 100.0), torch.zeros(2, 1))]
    train_epoch(model, steep, F.mse_loss, optimizer, phase="test", max_grad_norm=0.01)
    assert float((model[0].weight.detach() - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_the_teacher_is_frozen_and_in_eval_mode() -> None:
    model = seeded(TinyResNet)
    model.train()
    teach = frozen_teacher(model)
    first = teach(DATA[0])
    assert not first.requires_grad
    assert torch.equal(first, teach(DATA[0]))  # statistics did not move


def test_the_cosine_falls_from_one_to_zero() -> None:
    assert cosine(0.0) == 1.0
    assert cosine(0.5) == pytest.approx(0.5)
    assert cosine(1.0) == cosine(1.5) == 0.0


def test_an_epochs_seed_depends_on_all_three() -> None:
    draws = set()
    for key in ((0, 0, "admm"), (0, 1, "admm"), (1, 0, "admm"), (0, 0, "finetune")):
        seed_epoch(*key)
        draws.add(float(torch.rand(())))
    assert len(draws) == 4
    seed_epoch(0, 0, "admm")
    assert float(torch.rand(())) in draws


def test_retraining_follows_the_teacher_and_its_schedule() -> None:
    model = seeded(TinyResNet, seed=3)
    teacher = seeded(TinyResNet, seed=4)
    settings = FinetuneSettings(epochs=6, lr=0.05, distillation_weight=1.0, temperature=2.0)
    run = Finetune(model, {}, settings, loss=F.cross_entropy, teacher=frozen_teacher(teacher))
    with torch.no_grad():
        before = soft_loss(model.eval()(DATA[0]), frozen_teacher(teacher)(DATA[0]), 2.0)
    rates = []
    while not run.done:
        run.step(epochs_of(DATA)(run.epoch))
        rates.append(run._optimizer.param_groups[0]["lr"])
    with torch.no_grad():
        after = soft_loss(model.eval()(DATA[0]), frozen_teacher(teacher)(DATA[0]), 2.0)
    assert after < 0.5 * before
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.2 * settings.lr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdmmSettings(iterations=-1), r"admm\.iterations must be at least 0, got -1"),
        (lambda: AdmmSettings(lr=0.0), r"admm\.lr must be above 0"),
        (lambda: AdmmSettings(rho_start=2.0, rho_end=1.0), r"rho_start must lie in \(0, rho_end\], got 2"),
        (lambda: FinetuneSettings(epochs=-1), r"finetune\.epochs must be at least 0"),
        (lambda: FinetuneSettings(distillation_weight=1.5), r"lie in \[0, 1\], got 1\.5"),
        (lambda: FinetuneSettings(temperature=0.0), r"temperature must be above 0"),
    ],
)
def test_settings_name_the_value_and_the_bound(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
