"""Projections onto one structure: exact against brute force and a slow NumPy oracle, ties, rounding and NaN."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from admm.plan import STRUCTURES
from admm.projection import effective_sparsity, keep_count, project, select
from admm.structures import UNITS, unit_count, unit_energy, unit_mask, unit_shape

torch.set_num_threads(1)

#: Canonical weights [filters, channels, *kernel] of Linear, Conv1d, Conv2d and Conv3d.
SHAPES = [(5, 4), (4, 3, 3), (3, 2, 2, 3), (2, 3, 1, 2, 2)]
TINY = [(3, 4), (2, 3, 2), (2, 2, 1, 3), (2, 2, 1, 2, 1)]
SEEDS = st.integers(0, 2**31)
structures = pytest.mark.parametrize("structure", STRUCTURES)
relaxed = settings(deadline=None, max_examples=60)


def _whole_numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    """Small whole numbers: their energies are exact in float32, and ties are everywhere."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-3, 4, shape)).float()


def _units(shape: tuple[int, ...], structure: str) -> list[tuple[int | slice, ...]]:
    """Where each unit lies in V, in index order; written out from the definitions, not from the code."""
    everything = slice(None)
    if structure == "filter":
        return [(a,) for a in range(shape[0])]
    if structure == "channel":
        return [(everything, b) for b in range(shape[1])]
    if structure == "shape":
        return [(everything, *column) for column in itertools.product(*map(range, shape[1:]))]
    return list(itertools.product(*map(range, shape)))


def _oracle(weight: NDArray[np.float64], structure: str, keep: int) -> NDArray[np.float64]:
    """Slow and plain: energies by loops in float64, a stable sort, the rest set to zero."""
    units = _units(weight.shape, structure)
    energies = [sum(float(w) ** 2 for w in np.ravel(weight[unit])) for unit in units]
    order = sorted(range(len(units)), key=lambda i: (-energies[i], i))
    kept = np.zeros_like(weight)
    for i in order[:keep]:
        kept[units[i]] = weight[units[i]]
    return kept


@structures
@relaxed
@given(shape=st.sampled_from(SHAPES), seed=SEEDS, sparsity=st.floats(0, 0.999), align=st.sampled_from([1, 2, 3]))
def test_equals_the_slow_oracle_and_breaks_ties_by_index(
    structure: str, shape: tuple[int, ...], seed: int, sparsity: float, align: int
) -> None:
    weight = _whole_numbers(shape, seed)
    keep = keep_count(len(_units(shape, structure)), sparsity, align)
    expected = _oracle(weight.numpy().astype(np.float64), structure, keep)
    assert np.array_equal(project(weight, structure, sparsity, align).numpy(), expected)


@structures
@relaxed
@given(shape=st.sampled_from(SHAPES), seed=SEEDS, sparsity=st.floats(0, 0.999))
def test_is_idempotent_and_leaves_its_argument_alone(
    structure: str, shape: tuple[int, ...], seed: int, sparsity: float
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    before = weight.clone()
    once = project(weight, structure, sparsity)
    assert torch.equal(weight, before)
    assert torch.equal(project(once, structure, sparsity), once)
    assert torch.equal(once[once != 0], weight[once != 0])


@structures
@relaxed
@given(shape=st.sampled_from(SHAPES), seed=SEEDS, sparsity=st.floats(0, 0.999))
def test_keeps_exactly_the_count_asked_for(structure: str, shape: tuple[int, ...], seed: int, sparsity: float) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 2.0 * torch.ones(shape)
    projected = project(weight, structure, sparsity)
    alive = [bool((projected[unit] != 0).any()) for unit in _units(shape, structure)]
    assert sum(alive) == keep_count(unit_count(shape, structure), sparsity)
    units = _units(shape, structure)
    assert all(torch.equal(projected[unit], weight[unit]) for unit, a in zip(units, alive, strict=True) if a)


@structures
@pytest.mark.parametrize("shape", TINY)
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.7])
def test_no_other_feasible_point_is_nearer(structure: str, shape: tuple[int, ...], sparsity: float) -> None:
    units = _units(shape, structure)
    keep = keep_count(len(units), sparsity)
    for seed in range(4):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        distance = float((weight - project(weight, structure, sparsity)).square().sum())
        for chosen in itertools.combinations(units, keep):
            other = torch.zeros_like(weight)
            for unit in chosen:
                other[unit] = weight[unit]  # on its support, the weight itself is the nearest point
            assert distance <= float((weight - other).square().sum()) + 1e-12


@pytest.mark.parametrize("shape", SHAPES)
@structures
def test_units_energies_and_masks_agree_with_the_definition(structure: str, shape: tuple[int, ...]) -> None:
    weight = _whole_numbers(shape, 1)
    units = _units(shape, structure)
    assert unit_count(shape, structure) == len(units) == math.prod(unit_shape(shape, structure))
    assert unit_energy(weight, structure).tolist() == [float(weight[unit].square().sum()) for unit in units]
    for i, unit in enumerate(units):
        mask = unit_mask(torch.arange(len(units)) == i, structure, shape)
        marked = torch.zeros(shape, dtype=torch.bool)
        marked[unit] = True
        assert torch.equal(mask.expand(shape), marked)
    assert set(UNITS) == set(STRUCTURES)


def test_on_linear_a_shape_is_a_channel() -> None:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(project(weight, "shape", 0.4), project(weight, "channel", 0.4))


@structures
def test_works_on_views_and_on_half_precision(structure: str) -> None:
    weight = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    turned = weight.transpose(0, 1)
    assert torch.equal(project(turned, structure, 0.5), project(turned.contiguous(), structure, 0.5))
    # squared in float16, weights of this size would all be zero and tie
    small = (weight * 1e-4).half()
    kept = project(small, structure, 0.5)
    assert kept.dtype == torch.float16
    assert torch.equal(kept, project(small.float(), structure, 0.5).half())


@relaxed
@given(units=st.integers(1, 1_000_000), data=st.data())
@example(units=999_983, data=None)
def test_effective_sparsity_asks_for_what_was_kept(units: int, data: st.DataObject | None) -> None:
    counts = [data.draw(st.integers(1, units))] if data else range(1, units + 1, 97)
    for kept in counts:
        sparsity = effective_sparsity(units, kept)
        assert keep_count(units, sparsity) == kept
        assert 0.0 <= sparsity <= 1.0


def test_every_count_of_every_narrow_layer_comes_back() -> None:
    for units in (*range(1, 80), 512, 1000):
        kept = range(1, units + 1)
        assert [keep_count(units, effective_sparsity(units, k)) for k in kept] == list(kept)


@relaxed
@given(units=st.integers(1, 10**8), sparsity=st.floats(0, 0.999999), align=st.integers(1, 64))
@example(units=10**8, sparsity=0.0, align=1)
@example(units=37_748_736, sparsity=0.5, align=1)
@example(units=17, sparsity=0.1, align=16)
def test_rounding_is_towards_keeping_to_the_block_and_capped_at_dense(units: int, sparsity: float, align: int) -> None:
    plain, aligned = keep_count(units, sparsity), keep_count(units, sparsity, align)
    assert 1 <= plain <= aligned <= units
    assert aligned == units or aligned % align == 0
    assert aligned < plain + align
    # never fewer than asked for, but for what six decimals cannot say
    assert plain >= (1.0 - sparsity) * units - min(0.5e-6 * units, 0.5) - 1e-6
    assert plain <= max(1.0, (1.0 - sparsity) * units + 1.0)


@relaxed
@given(units=st.integers(1, 5000), a=st.floats(0, 0.999), b=st.floats(0, 0.999), align=st.integers(1, 32))
def test_more_sparsity_never_keeps_more(units: int, a: float, b: float, align: int) -> None:
    less, more = sorted((a, b))
    assert keep_count(units, more, align) <= keep_count(units, less, align)
    assert keep_count(units, 0.0, align) == units


def test_one_unit_always_stays() -> None:
    assert keep_count(1, 0.999) == keep_count(7, 0.999999) == 1
    assert project(torch.ones(1, 1), "filter", 0.9).tolist() == [[1.0]]


@relaxed
@given(
    energy=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    keep=st.integers(1, 12),
    forced=st.sets(st.integers(0, 11), max_size=3),
)
def test_select_keeps_the_largest_and_what_is_forced(energy: list[int], keep: int, forced: set[int]) -> None:
    forced = {i for i in forced if i < len(energy)}
    keep = min(max(keep, len(forced)), len(energy))
    flags = torch.zeros(len(energy), dtype=torch.bool)
    flags[list(forced)] = True
    chosen = select(torch.tensor(energy, dtype=torch.float64), keep, flags)
    rest = sorted((i for i in range(len(energy)) if i not in forced), key=lambda i: (-energy[i], i))
    assert set(chosen.nonzero().flatten().tolist()) == forced | set(rest[: keep - len(forced)])


def test_equal_energies_are_kept_in_index_order() -> None:
    assert select(torch.zeros(5), 2).tolist() == [True, True, False, False, False]
    assert select(torch.tensor([1.0, 2.0, 1.0, 1.0, 2.0]), 3).tolist() == [True, True, False, False, True]


@structures
def test_a_nan_is_kept_in_sight(structure: str) -> None:
    weight = torch.ones(4, 3, 2)
    weight[2, 1, 1] = math.nan
    projected = project(weight * 1e-3, structure, 0.7)
    assert projected.isnan().any()
    assert select(torch.tensor([3.0, math.nan, 2.0, 1.0]), 2).tolist() == [True, True, False, False]
    assert select(torch.tensor([math.nan, 1.0, math.nan]), 1)[[0, 2]].all()


@structures
def test_an_all_zero_weight_keeps_its_first_units(structure: str) -> None:
    assert torch.equal(project(torch.zeros(4, 3, 2), structure, 0.5), torch.zeros(4, 3, 2))
    assert select(unit_energy(torch.zeros(4, 3, 2), structure), 1).nonzero().tolist() == [[0]]
