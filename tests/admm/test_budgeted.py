"""The budget as ADMM's constraint set: it takes the plain projector's place, and never breaks the bound."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from admm.budgeted import BudgetProjector
from admm.cost import WeightCost, layer_sizes, output_positions
from admm.errors import DivergedError, PlanError
from admm.groupmap import GroupMap
from admm.groups import find_groups
from admm.projector import Masks, Projector
from admm.purify import purify
from admm.settings import AdmmSettings
from admm.shrink import shrink
from admm.slicing import prunable_layers
from admm.solver import Admm
from admm.target import Target
from tests.admm.dead import dead_weights
from tests.admm.toys import Tiny3d, TinyResNet, epochs_of, patterns, seeded

DENSE = 72 + 576 + 576 + 32


@pytest.fixture(scope="module")
def groups() -> GroupMap:
    return find_groups(seeded(TinyResNet), torch.randn(1, 1, 6, 6))


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def cost_of(model: nn.Module, groups: GroupMap, masks: Masks) -> float:
    return sum(WeightCost().cost(n, s) for n, s in layer_sizes(model, groups, masks).items())


@pytest.mark.parametrize("structures", [("unstructured",), ("filter", "shape")])
def test_admm_runs_on_a_budget_that_tightens(groups: GroupMap, structures: tuple[str, ...]) -> None:
    """In `Admm` as it is: every iteration within its bound, at last exactly as sparse as asked, the loss finite."""
    model = seeded(TinyResNet)
    projector = BudgetProjector(model, groups, Target(compression_x=6, structures=structures))
    settings = AdmmSettings(iterations=5, lr=0.05, progressive=0.8)
    admm = Admm(model, projector, settings, steps_per_iteration=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=0.9)
    batches = epochs_of(patterns(128))
    costs, plans = [], []
    for iteration in range(settings.iterations):
        loss = torch.zeros(())
        for inputs, targets in batches(iteration):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            admm.after_step(settings.lr)
        admm.end_iteration(loss.item())
        assert projector.cost <= projector.bound
        assert cost_of(model, groups, admm.masks) == projector.cost
        costs.append(projector.cost)
        plans.append(projector.plan)
    assert costs == sorted(costs, reverse=True)
    assert len(set(plans)) > 2
    masks = admm.hard_prune()
    kept = sum(int(module.weight.count_nonzero()) for module in prunable_layers(model).values())
    assert 0.9 * (DENSE // 6) <= kept <= DENSE // 6
    small = shrink(model, groups, masks, plan=projector.plan, effective=projector.effective())
    assert torch.isfinite(small.model(torch.randn(2, 1, 6, 6))).all()


def test_it_has_what_the_plain_projector_has(groups: GroupMap) -> None:
    model = seeded(TinyResNet)
    projector = BudgetProjector(model, groups, Target(compression_x=3, structures=("filter",)), align=4)
    masks = projector.project(parameters_of(model))
    plain = Projector(model, groups, projector.plan, align=4)
    assert projector.effective() == plain.effective()
    assert projector.align == 4
    again = plain.project(parameters_of(model))
    assert masks.slots.keys() == again.slots.keys()
    for name, mask in again.parameters.items():
        assert torch.equal(masks.parameters[name], mask)
    assert projector.notes[-1].startswith("compression_x=3: keeps ")


def test_every_variable_has_a_mask_that_fits(groups: GroupMap) -> None:
    model = seeded(TinyResNet)
    projector = BudgetProjector(model, groups, Target(compression_x=1, structures=("filter", "unstructured")))
    masks = projector.project(parameters_of(model))
    assert set(masks.parameters) == set(projector.variables)
    assert not projector.plan
    for name, value in parameters_of(model).items():
        if name in masks.parameters:
            assert torch.equal(value * masks.parameters[name], value)


def test_rho_and_sensitivity_decide_where_the_budget_goes(groups: GroupMap) -> None:
    model = seeded(TinyResNet)
    target = Target(compression_x=4)
    kept = {}
    plain, sensitive = (
        BudgetProjector(model, groups, target),
        BudgetProjector(model, groups, target, sensitivity={"conv1": 9.0, "conv2": 1.0, "stem": 3.0, "head": 3.0}),
    )
    even = dict.fromkeys(plain.variables, 1.0)
    kept["even"] = plain.project(parameters_of(model), even)
    kept["rho"] = plain.project(parameters_of(model), {**even, "conv1.weight": 3.0, "conv2.weight": 1 / 3})
    kept["sensitivity"] = sensitive.project(parameters_of(model), even)
    counts = {how: int(masks.parameters["conv1.weight"].sum()) for how, masks in kept.items()}
    assert counts["rho"] == counts["sensitivity"] > counts["even"]


def test_relax_is_geometric_and_what_is_asked_comes_back(groups: GroupMap) -> None:
    model = seeded(TinyResNet)
    projector = BudgetProjector(model, groups, Target(compression_x=16))
    costs = {}
    for share in (0.25, 0.5, 1.0):
        projector.relax(share)
        projector.project(parameters_of(model))
        costs[share] = projector.cost
    bound = DENSE // 16
    assert costs == {share: int(DENSE ** (1 - share) * bound**share) for share in costs}
    for share in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
            projector.relax(share)


def test_a_projection_remembers_nothing(groups: GroupMap) -> None:
    """A run continued from a checkpoint has a fresh projector: the same values must give the same masks."""
    model = seeded(TinyResNet)
    target = Target(compression_x=5, structures=("filter", "shape", "unstructured"))
    used, fresh = BudgetProjector(model, groups, target), BudgetProjector(model, groups, target)
    used.project(parameters_of(seeded(TinyResNet, 1)))
    a, b = used.project(parameters_of(model)), fresh.project(parameters_of(model))
    assert used.plan == fresh.plan
    assert all(torch.equal(mask, b.parameters[name]) for name, mask in a.parameters.items())


def test_what_serves_nothing_gives_its_budget_away(groups: GroupMap) -> None:
    model = seeded(TinyResNet)
    with torch.no_grad():  # filters that nobody will want to read
        model.get_submodule("conv2").weight[:, 4:] *= 1e-4  # type: ignore[index, operator]
        model.get_submodule("conv1").weight[4:] *= 10.0  # type: ignore[index, operator]
    target = Target(compression_x=4)
    plain = BudgetProjector(model, groups, target)
    clean = BudgetProjector(model, groups, target, dead=partial(purify, model, groups))
    left = {}
    for name, projector in (("plain", plain), ("clean", clean)):
        masks = projector.project(parameters_of(model))
        assert projector.cost == DENSE // 4
        left[name] = sum(int(d.sum()) for d in dead_weights(model, groups, masks).values())
    assert left["plain"] > 100
    assert left["clean"] == 0


def test_conv3d_by_macs() -> None:
    model, example = seeded(Tiny3d), torch.randn(1, 1, 4, 4, 4)
    found, positions = find_groups(model, example), output_positions(model, example)
    target = Target(mac_fraction=0.25, structures=("filter", "shape"))
    projector = BudgetProjector(model, found, target, positions=positions)
    masks = projector.project(parameters_of(model))
    macs = sum(size.weights * positions[n] for n, size in layer_sizes(model, found, masks).items())
    assert macs == projector.cost <= projector.bound
    with pytest.raises(PlanError, match=r"mac_fraction=0.25 needs to know how often a weight is used"):
        BudgetProjector(model, found, target)


def test_out_of_reach_is_said_before_any_training(groups: GroupMap) -> None:
    with pytest.raises(PlanError, match="compression_x=1000 is out of reach"):
        BudgetProjector(seeded(TinyResNet), groups, Target(compression_x=1000))


def test_nan_values(groups: GroupMap) -> None:
    projector = BudgetProjector(seeded(TinyResNet), groups, Target(compression_x=4))
    values = parameters_of(seeded(TinyResNet))
    values["stem.weight"] = values["stem.weight"] * float("nan")
    with pytest.raises(DivergedError, match=r"stem.weight holds a NaN or Inf"):
        projector.project(values)
