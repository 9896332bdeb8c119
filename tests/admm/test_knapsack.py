"""The multiple-choice knapsack against brute force, and what must hold where costs are not whole numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admm.errors import PlanError
from admm.knapsack import Choices, Knapsack

whole = st.integers(0, 12)
real = st.floats(0.0, 10.0, allow_subnormal=False)
worth = st.floats(0.0, 5.0, allow_subnormal=False)


def problems(costs: st.SearchStrategy[float]) -> st.SearchStrategy[list[Choices]]:
    unit = st.lists(st.tuples(costs, worth), min_size=1, max_size=5)
    return st.lists(unit, min_size=1, max_size=4).map(lambda units: [Choices.of(*zip(*u, strict=True)) for u in units])


def brute_force(units: list[Choices], budget: float) -> float:
    """The largest value of all combinations within the budget."""
    best = -np.inf
    for chosen in itertools.product(*(range(len(u.costs)) for u in units)):
        if spent(units, chosen) <= budget:
            best = max(best, value(units, chosen))
    return float(best)


def spent(units: list[Choices], chosen: object) -> float:
    return sum(float(u.costs[i]) for u, i in zip(units, chosen, strict=True))  # type: ignore[call-overload]


def value(units: list[Choices], chosen: object) -> float:
    return sum(float(u.values[i]) for u, i in zip(units, chosen, strict=True))  # type: ignore[call-overload]


def cheapest(units: list[Choices]) -> float:
    return math.fsum(float(u.costs.min()) for u in units)


def best_choices(units: list[Choices], budget: float, bins: int = 4096) -> list[int]:
    return Knapsack(units, budget, bins).pick(budget)


@settings(max_examples=150, deadline=None)
@given(problems(whole), st.integers(0, 40))
def test_whole_costs_are_solved_exactly(units: list[Choices], spare: int) -> None:
    budget = cheapest(units) + spare
    chosen = best_choices(units, budget)
    assert spent(units, chosen) <= budget
    assert value(units, chosen) == pytest.approx(brute_force(units, budget), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(problems(real), st.floats(0.0, 20.0), st.integers(3, 300))
def test_real_costs_never_break_the_budget(units: list[Choices], spare: float, bins: int) -> None:
    budget = cheapest(units) + spare
    chosen = best_choices(units, budget, bins)
    assert spent(units, chosen) <= budget * (1 + 1e-12)
    # whatever the rounding costs, as much is kept as the exact answer to a budget smaller by a step for each unit
    step = spare / bins * (1 + 1e-6)
    tighter = max(budget - (len(units) + 1) * step, cheapest(units))
    if tighter > cheapest(units):
        assert value(units, chosen) >= brute_force(units, tighter) - 1e-9


@settings(max_examples=60, deadline=None)
@given(problems(whole), st.lists(st.integers(0, 40), min_size=2, max_size=6))
def test_one_table_answers_all_smaller_budgets_and_more_budget_is_never_worse(
    units: list[Choices], spare: list[int]
) -> None:
    budgets = sorted(cheapest(units) + s for s in spare)
    table = Knapsack(units, budgets[-1])
    values = [value(units, table.pick(b)) for b in budgets]
    assert values == sorted(values)
    assert values == pytest.approx([brute_force(units, b) for b in budgets], abs=1e-9)


def test_out_of_reach_names_the_least_cost() -> None:
    units = [Choices.of([3, 5], [0, 1]), Choices.of([2, 4], [0, 1])]
    with pytest.raises(PlanError, match=r"a budget of 4 is out of reach: the least possible cost is 5"):
        best_choices(units, 4)
    assert best_choices(units, 5) == [0, 0]
    with pytest.raises(PlanError, match="nan"):
        best_choices(units, float("nan"))


def test_more_than_enough() -> None:
    units = [Choices.of([1.5, 2.5], [0, 1]), Choices.of([0, 0], [2, 3])]
    for budget in (4.0, 1e30, float("inf")):
        assert best_choices(units, budget) == [1, 1]


def test_choices_are_checked() -> None:
    with pytest.raises(ValueError, match="one array of choices each"):
        Choices.of([1, 2], [1])
    with pytest.raises(ValueError, match="one array of choices each"):
        Choices.of([], [])
    with pytest.raises(ValueError, match="must be finite"):
        Choices.of([1], [np.inf])


def test_the_size_of_a_real_network() -> None:
    """20 units x 256 choices x 8192 bins, concave values: within one step of the relaxed optimum."""
    rng = np.random.default_rng(0)
    units = [
        Choices.of(np.arange(1, 257) * c, v * np.sqrt(np.arange(1, 257)))
        for c, v in zip(rng.uniform(1, 900, 20), rng.uniform(0.1, 9, 20), strict=True)
    ]
    budget = 0.2 * sum(float(u.costs[-1]) for u in units)
    chosen = best_choices(units, budget, 8192)
    assert spent(units, chosen) <= budget
    low, high = 0.0, 1.0
    for _ in range(80):
        price = (low + high) / 2
        relaxed = [int((u.values - price * u.costs).argmax()) for u in units]
        low, high = (price, high) if spent(units, relaxed) > budget else (low, price)
    bound = sum(float((u.values - high * u.costs).max()) for u in units) + high * budget
    assert bound * 0.999 <= value(units, chosen) <= bound * (1 + 1e-12)
