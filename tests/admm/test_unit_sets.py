"""Counts that a projection can keep, and the sizes of layers that follow from them."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from admm.cost import layer_sizes
from admm.plan import STRUCTURES
from admm.projection import keep_count
from admm.projector import Projector
from admm.target import Target
from admm.unit_sets import UnitSet, UnitSets, sparsity_keeping
from tests.admm.plans import groups_of, random_model, values_of
from tests.admm.zoo import ZOO

torch.set_num_threads(1)


@given(st.integers(1, 40_000_000), st.floats(0.0, 1.0))
def test_the_sparsity_that_keeps_a_count_never_keeps_more(units: int, share: float) -> None:
    count = max(1, int(share * units))
    kept = keep_count(units, sparsity_keeping(units, count))
    assert count - 1.5e-6 * units <= kept <= count
    if units <= 1_000_000:
        assert kept == count


@given(st.data())
def test_a_grid_holds_admissible_counts_and_the_present_one(data: st.DataObject) -> None:
    units, align = data.draw(st.integers(1, 10**6)), data.draw(st.sampled_from([1, 4, 16]))
    some = UnitSet("a", "filter", units, data.draw(st.integers(1, units)), align, ("a",))
    low, high = sorted(data.draw(st.tuples(st.floats(0, 2 * units), st.floats(0, 2 * units))))
    keep = some.admissible(data.draw(st.integers(0, units)))
    grid = some.grid(low, high, 50, keep)
    assert list(grid) == sorted(set(grid))
    assert len(grid) <= 52
    assert {keep, some.admissible(low), some.admissible(high)} <= set(grid.tolist())
    assert all(some.admissible(int(count)) == count for count in grid)
    first, last = some.zoom(grid, data.draw(st.integers(0, len(grid) - 1)))
    assert some.admissible(0) <= first <= last <= units


def test_all_counts_where_they_are_few() -> None:
    some = UnitSet("a", "filter", 40, 2, 16, ("a",))
    assert some.grid(1, 40, 50, 40).tolist() == [16, 32, 40]
    assert UnitSet("a", "shape", 5, 1, 1, ("a",)).grid(2, 9, 50, 1).tolist() == [1, 2, 3, 4, 5]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["chain", "residual", "inverted_residual", "flatten_spatial", "conv3d", "transposed", "grouped"]),
    st.integers(0, 10_000),
    st.sets(st.sampled_from(STRUCTURES), min_size=1),
)
def test_sizes_foretell_what_a_projection_keeps(name: str, seed: int, structures: set[str]) -> None:
    """Where every layer owns all slots of its groups, counts alone say what each layer will weigh."""
    rng, model, groups = random.Random(seed), random_model(name, seed), groups_of(name)
    units = UnitSets(model, groups, Target(compression_x=1, structures=tuple(structures)))
    counts = [u.admissible(rng.randint(1, u.units)) for u in units.sets]
    projector = Projector(model, groups, units.plan(counts))
    sizes = layer_sizes(model, groups, projector.project(values_of(model, projector)))
    foretold = units.sizes(counts)
    assert {n: s.weights for n, s in sizes.items()} == {n: s.weights for n, s in foretold.items()}
    for layer, size in sizes.items():
        assert size.filters == foretold[layer].filters
        assert size.columns <= foretold[layer].columns


@pytest.mark.parametrize("name", list(ZOO))
def test_the_variables_are_what_a_full_plan_constrains(name: str) -> None:
    model, groups = ZOO[name].factory(), groups_of(name)
    for structures in (("filter",), ("shape", "unstructured"), STRUCTURES):
        units = UnitSets(model, groups, Target(compression_x=1, structures=structures))
        half = [u.admissible(1) for u in units.sets]
        if any(count < u.units for count, u in zip(half, units.sets, strict=True)):
            assert set(Projector(model, groups, units.plan(half)).variables) <= set(units.variables)
        assert set(units.variables) <= {n for n, _ in model.named_parameters()}
