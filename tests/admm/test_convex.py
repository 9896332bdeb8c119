"""Problems whose constrained optimum is known: driven with plain gradient steps, ADMM must end there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from admm.groups import find_groups
from admm.plan import PruningPlan
from admm.projector import Masks, Projector
from admm.settings import AdmmSettings
from admm.solver import Admm
from tests.admm.toys import TinyResNet, epochs_of, patterns, seeded

torch.set_num_threads(1)
Loss = Callable[[], Tensor]


def _admm(model: nn.Module, plan: Mapping[str, Mapping[str, float]], example: Tensor, **settings: object) -> Admm:
    projector = Projector(model, find_groups(model, example), PruningPlan(plan))
    return Admm(model, projector, AdmmSettings(**settings))  # type: ignore[arg-type]


def _gradient_step(model: nn.Module, loss: Loss, lr: float) -> float:
    model.zero_grad()
    value = loss()
    value.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= lr * parameter.grad  # type: ignore[operator]
    return float(value.detach())


def _solve(model: nn.Module, admm: Admm, loss: Loss, steps: int) -> Masks:
    """All iterations, then the hard prune."""
    lr = admm.settings.lr
    for _ in range(admm.settings.iterations):
        for _ in range(steps):
            value = _gradient_step(model, loss, lr)
            admm.after_step(lr)
        admm.end_iteration(value)
    return admm.hard_prune()


def _linear(channels: int, filters: int, weight: Tensor) -> nn.Module:
    model = nn.Sequential(nn.Linear(channels, filters, bias=False, dtype=torch.float64))
    with torch.no_grad():
        model[0].weight.copy_(weight)
    return model


def _sign(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).double() * 2 - 1


@pytest.mark.parametrize("structure", ["unstructured", "channel"])
@pytest.mark.parametrize("start", ["least squares", "elsewhere"])
@pytest.mark.parametrize("seed", [0, 1])
def test_with_an_orthogonal_design_the_largest_least_squares_weights_remain(
    structure: str, start: str, seed: int
) -> None:
    """½‖XWᵀ − Y‖² with XᵀX = 1: the best sparse W holds the largest entries (or columns) of the dense solution."""
    generator = torch.Generator().manual_seed(seed)
    design, _ = torch.linalg.qr(torch.randn(40, 12, generator=generator, dtype=torch.float64))
    largest = torch.zeros(6, 12, dtype=torch.bool)
    if structure == "channel":
        largest[:, torch.randperm(12, generator=generator)[:3]] = True
    else:
        largest.view(-1)[torch.randperm(72, generator=generator)[:18]] = True
    size = torch.rand(6, 12, generator=generator, dtype=torch.float64)
    dense = _sign((6, 12), generator) * torch.where(largest, 2.0 + size, size)
    target = design @ dense.T
    elsewhere = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    model = _linear(12, 6, dense if start == "least squares" else elsewhere)
    admm = _admm(model, {"0": {structure: 0.75}}, torch.randn(1, 12), iterations=10, lr=0.1)
    _solve(model, admm, lambda: 0.5 * (model(design) - target).square().sum(), steps=50)
    found = model[0].weight.detach()  # type: ignore[index, union-attr]
    assert torch.equal(found != 0, largest)
    assert (found - dense * largest).norm() / (dense * largest).norm() < 1e-3


def test_with_a_correlated_design_the_weights_left_take_over_from_those_removed() -> None:
    """The optimum on the kept columns is their own least-squares fit: cutting the dense solution misses it by far."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(8, dtype=torch.float64) + 0.3 * torch.randn(8, 8, generator=generator, dtype=torch.float64)
    design = torch.randn(60, 8, generator=generator, dtype=torch.float64) @ mixing / 60**0.5
    true = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    true[:, [1, 2, 4, 7]] *= 0.2
    target = design @ true.T
    dense = torch.linalg.lstsq(design, target).solution.T.contiguous()

    def error(weight: Tensor) -> float:
        return float(0.5 * (design @ weight.T - target).square().sum())

    def best_on(columns: tuple[int, ...]) -> Tensor:
        weight = torch.zeros(4, 8, dtype=torch.float64)
        weight[:, list(columns)] = torch.linalg.lstsq(design[:, list(columns)], target).solution.T
        return weight

    best = min(map(best_on, combinations(range(8), 4)), key=error)
    lr = 0.5 / float(torch.linalg.eigvalsh(design.T @ design).max())
    model = _linear(8, 4, dense)
    admm = _admm(model, {"0": {"channel": 0.5}}, torch.randn(1, 8), iterations=12, lr=lr)
    _solve(model, admm, lambda: 0.5 * (model(design) - target).square().sum(), steps=300)
    found = model[0].weight.detach()  # type: ignore[index, union-attr]
    kept = found.any(0)
    assert torch.equal(kept, best.any(0))
    assert error(found) <= 1.05 * error(best)
    assert error(dense * kept) > 1.5 * error(best)


def test_at_the_end_the_dual_is_the_gradient_that_the_constraint_holds_back() -> None:
    """Stationarity (Boyd et al. 2011, section 3.3): grad f(W) + rho U = 0, and U = 0 where W lives."""
    generator = torch.Generator().manual_seed(3)
    curvature = 1.0 + torch.rand(6, 8, generator=generator, dtype=torch.float64)
    largest = torch.rand(6, 8, generator=generator) < 0.3
    size = torch.rand(6, 8, generator=generator, dtype=torch.float64)
    target = _sign((6, 8), generator) * torch.where(largest, 4.0 + size, size)
    model = _linear(8, 6, target)
    sparsity = 1.0 - int(largest.sum()) / 48
    admm = _admm(model, {"0": {"unstructured": sparsity}}, torch.randn(1, 8), iterations=6, lr=0.05)

    def loss() -> Tensor:
        return 0.5 * (curvature * (model[0].weight - target).square()).sum()  # type: ignore[index, union-attr]

    for _ in range(6):
        for _ in range(400):
            _gradient_step(model, loss, 0.05)
            admm.after_step(0.05)
        admm.end_iteration(0.0)
    dual = admm.rho["0.weight"] * admm.state()[0]["u.0.weight"]
    (gradient,) = torch.autograd.grad(loss(), model[0].weight)  # type: ignore[index, union-attr]
    assert torch.allclose(gradient, -dual, atol=1e-3)
    assert float(dual[largest].abs().max()) < 1e-3
    assert float(dual[~largest].abs().max()) > 0.1


def _two_layers(seed: int, curvature: Mapping[str, float]) -> tuple[nn.Module, dict[str, Tensor], Loss]:
    """½ Σ_t h_t ‖W_t − A_t‖² over two layers: model, A and the loss. The better filters are small but much curved."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(5, 8, dtype=torch.float64), nn.ReLU(), nn.Linear(8, 3, bias=False, dtype=torch.float64)
    )
    best = torch.randperm(8, generator=generator)[:4]
    target = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in model.named_parameters()}
    target["0.weight"] = 1.5 * target["0.weight"] / target["0.weight"].norm(dim=1, keepdim=True)
    target["0.bias"].zero_()
    target["2.weight"] = 0.4 * target["2.weight"] / target["2.weight"].norm(dim=0)
    target["0.weight"][best] /= 2.0
    target["2.weight"][:, best] *= 2.5
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def loss() -> Tensor:
        parts = [curvature[n] / 2 * (p - target[n]).square().sum() for n, p in model.named_parameters()]
        return torch.stack(parts).sum()

    return model, target, loss


CURVATURE = {"0.weight": 1.0, "0.bias": 1.0, "2.weight": 9.0}


def _best_filters(target: Mapping[str, Tensor], curvature: Mapping[str, float]) -> Tensor:
    """By trying all: the 4 of 8 filters whose removal of the others costs the least."""
    cost = curvature["0.weight"] * target["0.weight"].square().sum(1) + curvature["0.bias"] * target["0.bias"].square()
    cost = cost + curvature["2.weight"] * target["2.weight"].square().sum(0)
    kept = max(combinations(range(8), 4), key=lambda kept: float(cost[list(kept)].sum()))
    return torch.zeros(8, dtype=torch.bool).index_fill(0, torch.tensor(kept), True)


@pytest.mark.parametrize("seed", range(6))
def test_with_a_diagonal_hessian_the_projection_weighted_by_it_is_the_optimum(seed: int) -> None:
    model, target, _ = _two_layers(seed, CURVATURE)
    projector = Projector(model, find_groups(model, torch.randn(1, 5).double()), PruningPlan({"0": {"filter": 0.5}}))
    best = _best_filters(target, CURVATURE)
    assert torch.equal(projector.project(target, CURVATURE).slots["0"], best)
    equal = dict.fromkeys(CURVATURE, 1.0)
    assert torch.equal(projector.project(target, equal).slots["0"], _best_filters(target, equal))
    assert not torch.equal(projector.project(target, equal).slots["0"], best)


@pytest.mark.parametrize("seed", range(6))
def test_rho_follows_the_curvature_to_the_optimum(seed: int) -> None:
    """rho in units of each tensor's gradient scale ranks filters as the Hessian does; their plain norms mislead."""
    model, target, loss = _two_layers(seed, CURVATURE)
    admm = _admm(model, {"0": {"filter": 0.5}}, torch.randn(1, 5).double(), iterations=20, lr=0.02)
    masks = _solve(model, admm, loss, steps=100)
    assert torch.equal(masks.slots["0"], _best_filters(target, CURVATURE))
    for name, parameter in model.named_parameters():
        kept = target[name] * masks.parameters[name]  # which the last, large rho keeps it from reaching quite
        assert (parameter.detach() - kept).norm() < 0.1 * max(float(kept.norm()), 1.0), name


def test_the_step_minimises_the_penalty_of_every_tensor_of_a_network() -> None:
    """rho_t/2‖W − Z + U‖² + 1/(2 lr)‖W − W_before‖² has no gradient left (autograd, float64), each with its own rho."""
    data = patterns(samples=96)
    model = seeded(TinyResNet).double().train()
    plan = {"stem": {"filter": 0.5}, "conv1": {"filter": 0.5, "shape": 0.4}, "head": {"unstructured": 0.5}}
    lr = 0.05
    admm = _admm(model, plan, data[0][:1].double(), iterations=4, lr=lr, rho_start=1.0)
    batches = [(x.double(), y) for x, y in epochs_of(data)(0)]
    for _ in range(2):
        for x, y in batches * 8:
            _gradient_step(model, lambda x=x, y=y: nn.functional.cross_entropy(model(x), y), lr)  # type: ignore[misc]
            admm.after_step(lr)
        admm.end_iteration(0.0)
    rho, tensors = admm.rho, admm.state()[0]
    assert len({rho[name] for name in admm.names}) > 3
    for x, y in batches:
        _gradient_step(model, lambda x=x, y=y: nn.functional.cross_entropy(model(x), y), lr)  # type: ignore[misc]
        before = copy.deepcopy(dict(model.named_parameters()))
        admm.after_step(lr)
        for name, parameter in model.named_parameters():
            if name not in admm.names:
                assert torch.equal(parameter, before[name]), name
                continue
            after = parameter.detach().clone().requires_grad_()
            objective = rho[name] / 2 * (after - tensors[f"t.{name}"]).square().sum()
            objective = objective + (after - before[name]).square().sum() / (2 * lr)
            (gradient,) = torch.autograd.grad(objective, after)
            assert float(gradient.abs().max()) < 1e-9, name
