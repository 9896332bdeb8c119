"""The simpler allocations to compare with, and sensitivities measured by pruning one layer at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from admm.errors import DivergedError
from admm.groupmap import GroupMap
from admm.groups import find_groups
from admm.projection import keep_count
from admm.rivals import global_magnitude, sensitivity_from_pruning, uniform
from admm.target import Target
from tests.admm.toys import TinyResNet, patterns, seeded

SIZES = {"stem": 72, "conv1": 576, "conv2": 576, "head": 32}


@pytest.fixture(scope="module")
def groups() -> GroupMap:
    return find_groups(seeded(TinyResNet), torch.randn(1, 1, 6, 6))


def test_uniform_is_the_same_everywhere(groups: GroupMap) -> None:
    plan = uniform(seeded(TinyResNet), groups, Target(compression_x=4))
    assert set(plan) == set(SIZES)
    kept = {n: keep_count(units, plan.sparsity(n, "unstructured")) for n, units in SIZES.items()}
    assert all(0.2 < kept[n] / SIZES[n] <= 0.25 for n in SIZES)
    assert sum(kept.values()) <= sum(SIZES.values()) // 4


@pytest.mark.parametrize("normalise", [True, False])
def test_one_threshold_for_all(groups: GroupMap, normalise: bool) -> None:
    model = seeded(TinyResNet)
    plan = global_magnitude(model, groups, Target(compression_x=4), normalise=normalise)
    weights = {n: model.get_submodule(n).weight.detach().abs() for n in SIZES}  # type: ignore[operator]
    scores = {n: w / (w.square().mean().sqrt() if normalise else 1.0) for n, w in weights.items()}
    bound = sum(SIZES.values()) // 4
    threshold = torch.cat([s.flatten() for s in scores.values()]).topk(bound).values.min()
    kept = {n: keep_count(units, plan.sparsity(n, "unstructured")) for n, units in SIZES.items()}
    assert kept == {n: int((s >= threshold).sum()) for n, s in scores.items()}


def test_normalising_forgives_the_scale_of_a_layer(groups: GroupMap) -> None:
    model, louder = seeded(TinyResNet), seeded(TinyResNet)
    with torch.no_grad():
        louder.get_submodule("conv1").weight.mul_(8.0)  # type: ignore[operator, union-attr]
    target = Target(compression_x=4)
    assert global_magnitude(model, groups, target) == global_magnitude(louder, groups, target)
    plain = [global_magnitude(m, groups, target, normalise=False) for m in (model, louder)]
    assert plain[1].sparsity("conv1", "unstructured") < plain[0].sparsity("conv1", "unstructured")


def test_sensitivity_is_the_rise_of_the_loss_by_energy_removed() -> None:
    """A loss that is linear in the energies: the fit gives its coefficients, and the weights come back bit for bit."""
    model = seeded(TinyResNet)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    slopes = {"stem": 0.5, "conv1": 2.0, "conv2": 0.0, "head": 7.0}

    def loss_of(pruned: nn.Module) -> float:
        weights = {n: pruned.get_submodule(n).weight.detach().double() for n in slopes}  # type: ignore[operator]
        return 3.0 - sum(slope * float(weights[n].square().sum()) for n, slope in slopes.items())

    found = sensitivity_from_pruning(model, loss_of)
    assert {n: v for n, v in found.items() if n != "conv2"} == pytest.approx(
        {n: slopes[n] for n in slopes if slopes[n]}
    )
    assert 0.0 < found["conv2"] < 1e-2
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert set(sensitivity_from_pruning(model, loss_of, structure="filter", layers=("conv1",))) == {"conv1"}


def test_sensitivity_of_a_real_loss_is_finite_and_positive() -> None:
    model, (inputs, targets) = seeded(TinyResNet).eval(), patterns(64)
    found = sensitivity_from_pruning(model, lambda m: float(F.cross_entropy(m(inputs), targets)))
    assert set(found) == set(SIZES)
    assert all(0.0 < value < float("inf") for value in found.values())


def test_weights_are_put_back_where_the_loss_fails() -> None:
    model = seeded(TinyResNet)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = iter([1.0, 1.5, float("nan")])
    with pytest.raises(DivergedError, match=r"the loss of stem at sparsity 0.75 is nan"):
        sensitivity_from_pruning(model, lambda _: next(losses))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
