"""The ladder on made-up spaces: never over budget, never worse for asking less, near the best of all plans."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.ladder import EXPONENT, Problem, ladder
from search.sensitivity import Damage, Sensitivity
from search.space import Dimension, Space


@dataclass(frozen=True)
class Chain:
    """A chain of layers: each costs what it keeps of its own filters times what stays of those before it."""

    names: tuple[str, ...]
    widths: Mapping[str, tuple[float, ...]]
    weights: tuple[float, ...]
    margin: float = 0.05
    fixed: float = 0.1

    def relative(self, params: Mapping[str, Any]) -> float:
        kept = [1.0, *(self.widths[n][int(params[n])] for n in self.names)]
        work = [w * a * b for w, (a, b) in zip(self.weights, pairwise(kept), strict=True)]
        return self.fixed + (1.0 - self.fixed) * sum(work) / sum(self.weights)


def made_up(
    layers: int, steps: int, seed: int, *, margin: float = 0.05, block: int = 1
) -> tuple[Space, Sensitivity, Chain]:
    """A space of one filter dimension a layer, a rising damage for each, and a coupled latency in whole blocks."""
    rng = random.Random(seed)
    dimensions, points, widths = [], {}, {}
    for i in range(layers):
        count = rng.randint(2, steps)
        sparsities = tuple(round(0.9 * s / count, 6) for s in range(count + 1))
        d = Dimension(layer=f"l{i}", structure="filter", sparsities=sparsities)
        scale, power = 10.0 ** rng.uniform(-2, 1), rng.uniform(0.7, 4.0)
        points[d.name] = tuple(
            Damage(step=s, sparsity=sparsities[s], loss=0.1 + scale * sparsities[s] ** power, accuracy=0.5)
            for s in range(1, count + 1)
        )
        widths[d.name] = tuple(math.ceil((1.0 - s) * 32 / block) * block / 32 for s in sparsities)
        dimensions.append(d)
    table = Sensitivity(loss=0.1, accuracy=0.9, samples=1, epochs=0.0, points=points)
    chain = Chain(tuple(widths), widths, tuple(10.0 ** rng.uniform(-1, 1) for _ in range(layers)), margin)
    return Space(tuple(dimensions)), table, chain


BUDGETS = st.lists(st.floats(0.5, 30.0), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(
    layers=st.integers(1, 7),
    seed=st.integers(0, 10_000),
    budgets=BUDGETS,
    block=st.sampled_from([1, 8]),
    margin=st.sampled_from([0.0, 0.1]),
)
def test_never_over_budget_and_never_worse_for_asking_less(
    layers: int, seed: int, budgets: list[float], block: int, margin: float
) -> None:
    space, table, chain = made_up(layers, 6, seed, margin=margin, block=block)
    found = ladder(space, table, chain, budgets)
    assert len(found.plans) + len(found.unreachable) == len(budgets)
    fastest = 1.0 / chain.relative({d.name: len(d.sparsities) - 1 for d in space.dimensions})
    assert [p.asked for p in found.plans] == [b for b in budgets if b <= fastest / (1.0 + margin) * (1 + 1e-9)]
    for plan in found.plans:
        # by the forecast itself, not by what the plan says
        assert 1.0 / chain.relative(plan.params) >= plan.asked * (1.0 + margin) * (1.0 - 1e-6)
        assert plan.safe_speedup == pytest.approx(1.0 / chain.relative(plan.params) / (1.0 + margin))
        assert set(plan.params) == {d.name for d in space.dimensions}
        space.plan(plan.params)
        by_hand = sum(table.curve(d)[plan.params[d.name]] ** EXPONENT for d in space.dimensions)
        assert plan.damage == pytest.approx(by_hand)
    ordered = sorted(found.plans, key=lambda p: p.asked)
    assert all(a.damage <= b.damage for a, b in pairwise(ordered))


def test_near_the_best_of_all_plans() -> None:
    """Two hundred coupled problems against all their plans."""
    excess = []
    for seed in range(200):
        space, table, chain = made_up(4, 6, seed, block=1 if seed % 2 else 4)
        problem = Problem(space, table, chain, EXPONENT)
        every = [(problem.cost(s), problem.damage(s)) for s in product(*(range(k + 1) for k in problem.last))]
        limit = 1.0 / problem.cost(problem.last)
        budgets = [limit**share for share in (0.25, 0.5, 0.8)]
        for plan in ladder(space, table, chain, budgets).plans:
            best = min(damage for cost, damage in every if cost <= 1.0 / plan.asked)
            excess.append(plan.damage / max(best, 1e-9) - 1.0)
    assert min(excess) >= -1e-9
    assert sum(excess) / len(excess) < 0.005
    assert sorted(excess)[int(0.98 * len(excess))] < 0.03


def test_what_saves_no_time_is_left_alone() -> None:
    space, table, chain = made_up(3, 5, 1)
    idle = Dimension(layer="l0", structure="unstructured", sparsities=(0.0, 0.3, 0.6))
    points = {**table.points, idle.name: (Damage(step=2, sparsity=0.6, loss=0.1001, accuracy=0.5),)}
    both = Sensitivity(loss=0.1, accuracy=0.9, samples=1, epochs=0.0, points=points)
    found = ladder(Space((*space.dimensions, idle)), both, chain, [1.2, 1.5])
    assert [plan.params[idle.name] for plan in found.plans] == [0, 0]


def test_dense_is_the_plan_of_no_budget() -> None:
    space, table, chain = made_up(3, 5, 2, margin=0.0)
    (plan,) = ladder(space, table, chain, [1.0]).plans
    assert set(plan.params.values()) == {0}
    assert plan.damage == 0.0


def test_a_budget_out_of_reach_is_said_with_the_fastest() -> None:
    space, table, chain = made_up(3, 5, 3)
    found = ladder(space, table, chain, [100.0])
    assert found.plans == ()
    (line,) = found.unreachable
    assert line.startswith("no plan of the space is forecast to be 100x as fast: the fastest one is ")
    assert "less a margin of 5.0%" in line


@pytest.mark.parametrize("budget", [0.0, -1.0, math.inf, math.nan])
def test_a_budget_that_is_none_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="a budget is a speed-up, positive and finite"):
        ladder(*made_up(2, 3, 0), [budget])
    with pytest.raises(ValueError, match="exponent must be positive and finite"):
        ladder(*made_up(2, 3, 0), [1.0], exponent=budget)
