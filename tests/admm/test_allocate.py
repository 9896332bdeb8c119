"""From one number to per-layer sparsities: never over the bound, exact where it can be, never below a uniform plan."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from admm.allocate import Allocation, Allocator, allocate, weighted
from admm.cost import LayerSize, MacCost, layer_sizes, output_positions
from admm.errors import DivergedError, PlanError
from admm.groupmap import GroupMap
from admm.groups import find_groups
from admm.plan import STRUCTURES
from admm.projection import keep_count
from admm.projector import Projector
from admm.target import Target
from tests.admm.plans import groups_of, random_model
from tests.admm.toys import Tiny3d, TinyResNet, seeded
from tests.admm.zoo import ZOO

torch.set_num_threads(1)
USABLE = [name for name in ZOO if groups_of(name).layers and name not in ("broken", "attention")]


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


class Staircase:
    """A cost that is neither linear nor concave: pairs of weights, dearer in one layer."""

    def cost(self, layer: str, size: LayerSize) -> float:
        return float((size.weights + 1) // 2 * (3 if layer == "0" else 2))


def subsets(count: int) -> Iterator[Tensor]:
    for flags in itertools.product((False, True), repeat=count):
        yield torch.tensor(flags)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_additive_costs_against_all_subsets(seed: int, share: float) -> None:
    """Two layers of 6 and 4 weights, every subset of each: the allocation keeps the most that the bound allows."""
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).double(), seed)
    groups, table = find_groups(model, torch.randn(1, 3).double()), Staircase()
    bound = round(share * 13)
    rho = {"0.weight": 1.0, "2.weight": 0.4}
    allocator = Allocator(model, groups, Target(cost=table, at_most=bound))
    found = allocator.allocate(parameters_of(model), rho)
    energies = {n: rho[n] * p.detach().flatten().square() for n, p in model.named_parameters() if n in rho}
    best = 0.0
    options = {
        name: [(int(keep.sum()), float(e[keep].sum())) for keep in subsets(e.numel()) if keep.any()]
        for name, e in energies.items()
    }
    for (a, gain_a), (b, gain_b) in itertools.product(options["0.weight"], options["2.weight"]):
        sizes = {"0": a, "2": b}
        cost = sum(table.cost(n, LayerSize(filters=1, columns=1, weights=w)) for n, w in sizes.items())
        if cost <= bound:
            best = max(best, gain_a + gain_b)
    assert found.cost <= bound
    assert found.energy == pytest.approx(best)


class Blocks:
    """A cost in blocks of weights, as latency at aligned widths is: all of a block or nothing of it is paid for."""

    def __init__(self, price: float) -> None:
        self.price = price
        self.width = {"0": 256, "2": 160, "3": 64}

    def cost(self, layer: str, size: LayerSize) -> float:
        width = self.width[layer]
        return self.price * width * math.ceil(size.weights / width)


@pytest.mark.parametrize("widths", [(64, 60, 30, 20), (400, 300, 100, 10)])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.55, 0.8])
@pytest.mark.parametrize("price", [1.0, 37.0, 0.25])
def test_blocks_of_weights_against_all_blocks(widths: tuple[int, ...], share: float, price: float) -> None:
    """Counts between the last ones of two blocks cost a block and keep less: none of the edges may be missed."""
    model, groups = _of_blocks(widths)
    table, values = Blocks(price), parameters_of(model)
    shapes = {name: values[f"{name}.weight"].numel() for name in table.width}
    bound = share * sum(table.cost(n, LayerSize(1, 1, w)) for n, w in shapes.items())
    found = Allocator(model, groups, Target(cost=table, at_most=bound)).allocate(values)
    cost, best = np.zeros(()), np.zeros(())  # of all combinations: [blocks, blocks, blocks]
    for name, units in shapes.items():
        held = values[f"{name}.weight"].flatten().double().square().sort(descending=True).values.cumsum(0).numpy()
        counts = np.minimum(np.arange(1, math.ceil(units / table.width[name]) + 1) * table.width[name], units)
        cost = np.add.outer(cost, [table.cost(name, LayerSize(1, 1, int(count))) for count in counts])
        best = np.add.outer(best, held[counts - 1])
    assert found.cost <= found.bound
    assert found.energy == pytest.approx(float(best[cost <= bound].max()), rel=1e-6)


@lru_cache
def _of_blocks(widths: tuple[int, ...]) -> tuple[nn.Module, GroupMap]:
    a, b, c, d = widths
    model = seeded(lambda: nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.Linear(c, d)))
    return model, find_groups(model, torch.randn(1, a))


@pytest.mark.parametrize("align", [1, 4])
def test_many_blocks_are_met_by_a_grid(align: int) -> None:
    """More costs than the grid has counts: each count looked at is the last one of its cost."""
    model = seeded(lambda: nn.Sequential(nn.Linear(900, 4, bias=False)))
    groups = find_groups(model, torch.randn(1, 900))

    class Threes:
        def cost(self, layer: str, size: LayerSize) -> float:
            return float(-(-size.columns // 3)) + 0.5

    allocator = Allocator(model, groups, Target(cost=Threes(), at_most=141, structures=("channel",)), align=align)
    solver, counts = allocator._solver, allocator.units.least
    (units,) = allocator.units.sets
    grid = units.grid(1, 900, 50, counts[0])
    moved = solver._last_of_cost(0, grid, counts)
    admissible = {units.admissible(c) for c in range(1, 901)}
    for count, last in zip(grid.tolist(), moved.tolist(), strict=True):
        assert last == max(c for c in admissible if -(-c // 3) <= -(-count // 3))
    assert allocator.allocate(parameters_of(model)).counts == (420,)


def _three_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 30), nn.Linear(30, 3))


@lru_cache
def _groups_of_three() -> GroupMap:
    return find_groups(_three_layers(), torch.randn(1, 40))


@settings(max_examples=25, deadline=None)
@given(st.floats(1.05, 300.0), st.integers(0, 100), st.floats(0.01, 100.0))
def test_single_weights_are_those_of_one_threshold(compression_x: float, seed: int, scale: float) -> None:
    """For a weight count the exact answer is known: the largest rho w^2 of the whole network."""
    model = seeded(_three_layers, seed)
    rho = {f"{i}.weight": r for i, r in ((0, 1.0), (2, scale), (3, 3.0))}
    allocator = Allocator(model, _groups_of_three(), Target(compression_x=compression_x))
    found = allocator.allocate(parameters_of(model), rho)
    bound = int(found.bound)
    assert bound <= 4290 / compression_x * (1 + 1e-12) < bound + 1
    scores = torch.cat(
        [rho[n] * p.detach().double().square().flatten() for n, p in model.named_parameters() if n in rho]
    )
    forced = {n: float(rho[n] * p.detach().square().max()) for n, p in model.named_parameters() if n in rho}
    top = scores.topk(bound).values
    if all(best >= float(top.min()) for best in forced.values()):  # else the clamp keeps one weight of a layer
        assert found.energy == pytest.approx(float(top.sum()), rel=1e-5)
    assert found.energy <= float(top.sum()) * (1 + 1e-9)
    assert found.cost == bound


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(USABLE),
    st.integers(0, 10_000),
    st.sets(st.sampled_from(STRUCTURES), min_size=1, max_size=3),
    st.sampled_from([1, 4, 16]),
    st.floats(0.05, 1.0),
)
def test_any_network_any_structures(name: str, seed: int, structures: set[str], align: int, fraction: float) -> None:
    """Never over the bound, never less energy than the uniform plan, the same again, charged as the masks say."""
    model, groups = random_model(name, seed), groups_of(name)
    positions = output_positions(model, ZOO[name].example_input.double())
    target = Target(mac_fraction=fraction, structures=tuple(structures))
    try:
        allocator = Allocator(model, groups, target, align=align, positions=positions)
    except PlanError as error:
        assert "is out of reach" in str(error)  # noqa: PT017
        return
    rng = random.Random(seed)
    values, rho = parameters_of(model), {n: rng.uniform(0.1, 10.0) for n in allocator.variables}
    found = allocator.allocate(values, rho)
    uniform, threshold = allocator.uniform(values, rho), allocator.by_threshold(values, rho)
    for allocation in (found, uniform, threshold):
        assert allocation.cost <= allocation.bound
        _agrees(allocation, model, name, rho, align)
    better = found.energy >= uniform.energy * (1 - 1e-9)
    assert better or found.log_shares >= uniform.log_shares - 1e-9
    assert allocator.allocate(values, rho).plan == found.plan


def _agrees(found: Allocation, model: nn.Module, name: str, rho: dict[str, float], align: int) -> None:
    """The plan alone, projected by somebody else, costs and keeps what the allocation says."""
    groups, values = groups_of(name), parameters_of(model)
    masks = Projector(model, groups, found.plan, align=align).project(values, rho)
    table = MacCost(output_positions(model, ZOO[name].example_input.double()))
    assert sum(table.cost(n, s) for n, s in layer_sizes(model, groups, masks).items()) == found.cost
    kept = sum(r * float((values[n] * masks.parameters.get(n, 1.0)).square().sum()) for n, r in rho.items())
    assert kept == pytest.approx(found.energy)


def _chain_problem(seed: int) -> tuple[nn.Module, dict[str, Tensor]]:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.ReLU(),
            nn.Linear(4, 2, bias=False),
        ).double()  # fmt: skip

    model = seeded(build, seed)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():  # rows of very different size
        p.data *= torch.rand(p.shape[0], 1, generator=generator, dtype=p.dtype) ** 2
    return model, parameters_of(model)


def test_coupled_filters_against_all_subsets() -> None:
    """Filters of one layer are channels of the next: against all counts and all 2^9 sets."""
    ratios, of_counts = [], []
    for seed, share in itertools.product(range(8), (0.25, 0.5, 0.75)):
        model, values = _chain_problem(seed)
        groups = find_groups(model, torch.randn(1, 3).double())
        bound = round(share * 43)
        target = Target(compression_x=43 / (bound + 0.5), structures=("filter",))
        allocator = Allocator(model, groups, target)
        found = allocator.allocate(values)
        rho = dict.fromkeys(allocator.variables, 1.0)
        every = [allocator._charged(c, values, rho, bound) for c in itertools.product(range(1, 6), range(1, 5))]
        top = max(allocation.log_shares for allocation in every if allocation.cost <= bound)
        of_counts.append(math.exp(found.log_shares - top))
        a, b, c = (values[f"{i}.weight"].square() for i in (0, 2, 4))
        best = 0.0
        for first, second in itertools.product(subsets(5), subsets(4)):
            m, n = int(first.sum()), int(second.sum())
            if m and n and 3 * m + m * n + 2 * n <= bound:
                shares = (a[first].sum() / a.sum(), b[second][:, first].sum() / b.sum(), c[:, second].sum() / c.sum())
                best = max(best, float(math.prod(shares)))
        assert found.cost <= bound
        ratios.append(math.exp(found.log_shares) / best)
    assert max(ratios) <= 1.0 + 1e-9
    assert max(of_counts) <= 1.0 + 1e-9
    assert sum(r > 1.0 - 1e-9 for r in of_counts) >= 0.95 * len(of_counts)
    assert min(of_counts) > 0.65  # of a product of three shares, with rows of very different size
    # which units stay at these counts is the projector's choice, made for the sum of energies
    assert sum(r > 1.0 - 1e-9 for r in ratios) >= 0.5 * len(ratios)
    assert min(ratios) > 0.25


def test_filters_of_a_residual_network_at_blocks_of_16() -> None:
    model = seeded(lambda: TinyResNet(48))
    example = torch.randn(1, 1, 6, 6)
    groups, positions = find_groups(model, example), output_positions(model, example)
    target = Target(mac_fraction=0.5, structures=("filter",))
    allocator = Allocator(model, groups, target, align=16, positions=positions)
    found = allocator.allocate(parameters_of(model))
    assert found.cost <= found.bound
    assert {int(keep.sum()) % 16 for keep in found.masks.slots.values()} == {0}
    assert found.log_shares >= allocator.uniform(parameters_of(model)).log_shares


def test_columns_of_conv3d_cost_at_most_the_bound() -> None:
    model, example = seeded(Tiny3d), torch.randn(1, 1, 4, 4, 4)
    groups, positions = find_groups(model, example), output_positions(model, example)
    target = Target(mac_fraction=0.3, structures=("filter", "shape"))
    found = Allocator(model, groups, target, positions=positions).allocate(parameters_of(model))
    assert 0.9 * found.bound <= found.cost <= found.bound
    assert any("shape" in layer for layer in found.plan.values())


def test_a_smaller_bound_keeps_less() -> None:
    model = seeded(TinyResNet)
    groups = find_groups(model, torch.randn(1, 1, 6, 6))
    allocator = Allocator(model, groups, Target(compression_x=20))
    energies = [allocator.allocate(parameters_of(model), None, bound).energy for bound in (100, 200, 400, 800)]
    assert energies == sorted(energies)
    with pytest.raises(PlanError, match="a bound of 3 is out of reach"):
        allocator.allocate(parameters_of(model), None, 3)


def test_nothing_asked_nothing_removed() -> None:
    model = seeded(TinyResNet)
    groups = find_groups(model, torch.randn(1, 1, 6, 6))
    for structures in (("unstructured",), ("filter", "shape")):
        assert not allocate(model, groups, Target(compression_x=1, structures=structures))


def test_layers_left_alone_count_and_keep_all() -> None:
    model = seeded(TinyResNet)
    groups = find_groups(model, torch.randn(1, 1, 6, 6))
    plan = allocate(model, groups, Target(compression_x=2, layers=lambda name: name != "conv1"))
    assert set(plan) == {"stem", "conv2", "head"}
    kept = sum(keep_count(n, plan.sparsity(layer, "unstructured")) for layer, n in (("stem", 72), ("conv2", 576)))
    assert kept + keep_count(32, plan.sparsity("head", "unstructured")) == (72 + 576 + 32 + 576) // 2 - 576


def test_filters_stay_where_an_owner_is_left_alone() -> None:
    model = seeded(TinyResNet)
    groups = find_groups(model, torch.randn(1, 1, 6, 6))
    target = Target(compression_x=1.5, structures=("filter",), layers=lambda name: name != "conv2")
    assert set(allocate(model, groups, target)) == {"conv1"}


def test_out_of_reach_names_the_furthest() -> None:
    model = seeded(TinyResNet)
    groups = find_groups(model, torch.randn(1, 1, 6, 6))
    target = Target(compression_x=4, layers=("conv1",))
    with pytest.raises(PlanError) as raised:
        allocate(model, groups, target)
    assert str(raised.value).startswith("compression_x=4 is out of reach: with unstructured in the layers allowed ")
    assert "compression_x=1.84 is the furthest, 'conv2' alone then costs 576 of 681" in str(raised.value)
    reachable = Target(compression_x=1.84, layers=("conv1",))
    assert allocate(model, groups, reachable).sparsity("conv1", "unstructured") > 0.9


def test_min_keep_is_a_clamp() -> None:
    model = seeded(TinyResNet)
    groups = find_groups(model, torch.randn(1, 1, 6, 6))
    found = Allocator(model, groups, Target(compression_x=10, min_keep=25)).allocate(
        {n: p * (0.0 if n == "head.weight" else 1.0) for n, p in parameters_of(model).items()}
    )
    assert int(found.masks.parameters["head.weight"].sum()) == 25
    assert found.cost == 125


def test_all_zero_weights_are_allocated_without_harm() -> None:
    model = seeded(TinyResNet)
    groups = find_groups(model, torch.randn(1, 1, 6, 6))
    zero = {n: torch.zeros_like(p) for n, p in parameters_of(model).items()}
    for structures in (("unstructured",), ("filter", "shape")):
        allocator = Allocator(model, groups, Target(compression_x=5, structures=structures))
        for found in (allocator.allocate(zero), allocator.uniform(zero), allocator.by_threshold(zero)):
            assert 0 < found.cost <= found.bound


def test_values_that_are_not_finite() -> None:
    model = seeded(TinyResNet)
    groups = find_groups(model, torch.randn(1, 1, 6, 6))
    values = parameters_of(model)
    values["conv1.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(DivergedError, match=r"conv1.weight holds a NaN or Inf"):
        allocate(model, groups, Target(compression_x=5), values=values)


def test_sensitivity_moves_the_weights_that_stay() -> None:
    model = seeded(TinyResNet)
    groups = find_groups(model, torch.randn(1, 1, 6, 6))
    target = Target(compression_x=4)
    plain = allocate(model, groups, target)
    moved = allocate(model, groups, target, sensitivity={"conv1": 100.0, "conv2": 1.0})
    assert moved.sparsity("conv1", "unstructured") < plain.sparsity("conv1", "unstructured")
    assert moved.sparsity("conv2", "unstructured") > plain.sparsity("conv2", "unstructured")
    assert allocate(model, groups, target, sensitivity=dict.fromkeys(("stem", "conv1"), 7.0)) == plain


def test_unmeasured_parameters_take_the_geometric_mean() -> None:
    assert weighted(("a.weight", "b.weight", "bn.bias"), {"a.weight": 1.0, "b.weight": 2.0, "bn.bias": 3.0}, None) == {
        "a.weight": 1.0, "b.weight": 2.0, "bn.bias": 3.0,
    }  # fmt: skip
    scaled = weighted(("a.weight", "b.weight", "bn.bias"), None, {"a": 4.0, "b": 0.25})
    assert scaled == pytest.approx({"a.weight": 4.0, "b.weight": 0.25, "bn.bias": 1.0})
