"""Plans next to the front: always plans of the space, never a seen one, near their parents, and chosen as told."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.dominance import Figures
from search.neighbours import Known, Neighbourhood, parents
from search.space import Dimension, Space

MIXED = Space(
    tuple(
        Dimension(layer=f"l{i}", structure=structure, sparsities=sparsities)
        for i in range(3)
        for structure, sparsities in (("filter", (0.0, 0.25, 0.5, 0.75)), ("shape", (0.0, 0.2, 0.4, 0.5, 0.6, 0.8)))
    )
)
NAMES = [d.name for d in MIXED.dimensions]
TOPS = {d.name: len(d.sparsities) - 1 for d in MIXED.dimensions}
PLANS = st.fixed_dictionaries({name: st.integers(0, top) for name, top in TOPS.items()})
SEEDS = st.integers(0, 2**32)


def known(accuracy: float, speedup: float, excess: float | None = None, stderr: float = 0.0) -> Known:
    figures = Figures(accuracy=accuracy, speedup=speedup, accuracy_stderr=stderr)
    return Known(steps=dict.fromkeys(NAMES, 1), figures=figures, excess=excess)


def legal(steps: Mapping[str, int]) -> bool:
    return set(steps) == set(NAMES) and all(0 <= steps[name] <= TOPS[name] for name in NAMES)


@given(PLANS, SEEDS)
def test_a_mutation_is_another_plan_of_the_space(steps: dict[str, int], seed: int) -> None:
    before = dict(steps)
    changed = Neighbourhood(MIXED).mutate(steps, random.Random(seed))
    assert legal(changed)
    assert changed != steps
    assert steps == before


def test_mutations_are_mostly_small() -> None:
    rng, middle = random.Random(0), {name: top // 2 for name, top in TOPS.items()}
    changes = [Neighbourhood(MIXED).mutate(middle, rng) for _ in range(2000)]
    moved = [sum(c[n] != middle[n] for n in NAMES) for c in changes]
    sizes = [abs(c[n] - middle[n]) for c in changes for n in NAMES if c[n] != middle[n]]
    assert 0.3 < sum(m == 1 for m in moved) / len(moved) < 0.5
    assert sum(s == 1 for s in sizes) / len(sizes) > 0.6
    assert max(sizes) > 1


@given(PLANS, SEEDS)
def test_a_swap_moves_one_layer_s_sparsity_to_its_other_structure(steps: dict[str, int], seed: int) -> None:
    swapped = Neighbourhood(MIXED).swap(steps, random.Random(seed))
    assert legal(swapped)
    touched = {name.partition("/")[0] for name in NAMES if swapped[name] != steps[name]}
    assert len(touched) <= 1
    for layer in touched:
        assert 0 in (swapped[f"{layer}/filter"], swapped[f"{layer}/shape"])


def test_a_swap_keeps_what_the_layer_keeps_as_nearly_as_it_can() -> None:
    """Half the filters are half the columns; with a forecast of the caller's, its nearest step."""
    steps = dict.fromkeys(NAMES, 0) | {"l1/filter": 2}
    rng = random.Random(1)
    found = [s for s in (Neighbourhood(MIXED).swap(steps, rng) for _ in range(40)) if s != steps]
    assert found
    assert all(s == dict.fromkeys(NAMES, 0) | {"l1/shape": 3} for s in found)
    costly = Neighbourhood(MIXED, cost=lambda s: -s["l1/filter"] - 0.4 * s["l1/shape"])
    found = [s for s in (costly.swap(steps, rng) for _ in range(40)) if s != steps]
    assert all(s == dict.fromkeys(NAMES, 0) | {"l1/shape": 5} for s in found)


@given(PLANS, PLANS, SEEDS)
def test_a_crossing_takes_each_layer_whole_from_one_of_the_two(
    one: dict[str, int], other: dict[str, int], seed: int
) -> None:
    child = Neighbourhood(MIXED).cross(one, other, random.Random(seed))
    for i in range(3):
        pair = (f"l{i}/filter", f"l{i}/shape")
        assert [child[n] for n in pair] in ([one[n] for n in pair], [other[n] for n in pair])


@given(st.lists(PLANS, min_size=1, max_size=5), SEEDS)
def test_the_same_seed_draws_the_same_unseen_plan(plans: list[dict[str, int]], seed: int) -> None:
    figures = Figures(accuracy=0.9, speedup=2.0)
    chosen = [(Known(steps=p, figures=figures), 1.0) for p in plans]

    def seen(steps: Mapping[str, int]) -> bool:
        return steps in plans

    drawn = [Neighbourhood(MIXED).draw(chosen, seen, random.Random(seed)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] is not None
    assert legal(drawn[0])
    assert drawn[0] not in plans


def test_where_all_is_seen_nothing_is_drawn() -> None:
    rng, chosen = random.Random(0), [(known(0.9, 2.0), 1.0)]
    neighbourhood = Neighbourhood(MIXED)
    assert neighbourhood.draw(chosen, lambda steps: True, rng) is None
    assert neighbourhood.draw([], lambda steps: False, rng) is None
    assert neighbourhood.best(chosen, lambda steps: True, rng, lambda plans: [1.0] * len(plans)) is None
    assert neighbourhood.best(chosen, lambda steps: False, rng, lambda plans: [0.0] * len(plans)) is None
    single = Space((Dimension(layer="l", structure="filter", sparsities=(0.5,)),))
    plan = {"l/filter": 0}
    assert (
        Neighbourhood(single).draw(
            [(Known(steps=plan, figures=Figures(accuracy=1.0, speedup=1.0)), 1.0)], lambda steps: steps == plan, rng
        )
        is None
    )


def test_the_best_by_the_scores_is_found_some_steps_away() -> None:
    goal = dict(TOPS)

    def scores(plans: Sequence[Mapping[str, int]]) -> list[float]:
        return [1.0 / (1.0 + sum(abs(p[n] - goal[n]) for n in NAMES)) for p in plans]

    start = known(0.9, 2.0)
    found = Neighbourhood(MIXED).best([(start, 1.0)], lambda steps: False, random.Random(2), scores)
    assert found is not None
    assert scores([found])[0] > 2.0 * scores([start.steps])[0]


def test_parents_are_those_that_nobody_surely_beats() -> None:
    trials = [known(0.9, 2.0), known(0.8, 3.0), known(0.7, 2.5), known(0.899, 2.0, stderr=0.01)]
    chosen = parents(trials)
    assert [k for k, _ in chosen] == [trials[0], trials[1], trials[3]]
    weights = {id(k): w for k, w in chosen}
    assert weights[id(trials[3])] < weights[id(trials[0])] == weights[id(trials[1])]
    assert parents([]) == []


def test_parents_just_under_the_budget_weigh_more_and_infeasible_ones_do_not_count() -> None:
    trials = [known(0.95, 1.0, excess=2.0), known(0.9, 3.1, excess=-0.03), known(0.8, 6.0, excess=-0.5)]
    chosen = parents(trials)
    assert [k for k, _ in chosen] == trials[1:]
    assert chosen[0][1] > 50.0 * chosen[1][1] > 0.0


def test_without_a_feasible_plan_the_nearest_to_it_lead_the_way() -> None:
    trials = [known(0.9, 1.0 + i / 10, excess=2.0 - i / 10) for i in range(10)] + [known(0.9, 1.0, excess=math.inf)]
    assert [k for k, _ in parents(trials)] == trials[9:5:-1]


@pytest.mark.parametrize("floor", [0.95, 0.5, -math.inf])
def test_plans_below_what_counts_weigh_less_the_lower(floor: float) -> None:
    trials = [known(0.9 - i / 20, 1.0 + i) for i in range(5)]
    weights = [w for _, w in parents(trials, floor=floor)]
    assert all(w > 0.0 for w in weights)
    assert weights == sorted(weights, reverse=True)
    assert (weights[0] > weights[-1]) == (floor > 0.7)


@given(PLANS, SEEDS)
def test_a_deeper_plan_gives_nothing_back(steps: dict[str, int], seed: int) -> None:
    deeper = Neighbourhood(MIXED, deepen=True).mutate(steps, random.Random(seed), only_up=True)
    assert legal(deeper)
    assert all(deeper[name] >= steps[name] for name in NAMES)
    assert (deeper == steps) == (steps == TOPS)


def test_half_of_the_changes_only_remove_more_where_weights_are_inherited() -> None:
    rng, middle = random.Random(0), {name: top // 2 for name, top in TOPS.items()}

    def share(deepen: bool) -> float:
        near = Neighbourhood(MIXED, deepen=deepen)
        drawn = [near.change([middle], [1.0], rng) for _ in range(1000)]
        return sum(all(d[n] >= middle[n] for n in NAMES) for d in drawn) / len(drawn)

    assert share(deepen=True) > share(deepen=False) + 0.25
