"""Selection from a sample's bounds against a stable sort: ties, NaN, Inf, forced units, bounds that miss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import admm.threshold as threshold_module
from admm.projection import _select_on_device, keep_count, project, select
from admm.structures import BLOCK, energy_along, unit_energy
from admm.threshold import SMALL, threshold

UNITS = 3 * SMALL + 17


def _oracle(values: Tensor, keep: int) -> Tensor:
    """Flags by a stable descending sort in float64: NaN first, equal values in index order."""
    numbers = values.double().numpy()
    rank = np.where(np.isnan(numbers), np.inf, numbers)
    order = np.lexsort((np.arange(len(rank)), -rank, ~np.isnan(numbers)))
    flags = np.zeros(len(rank), dtype=bool)
    flags[order[:keep]] = True
    return torch.from_numpy(flags)


def _periodic(rng: np.random.Generator, units: int) -> np.ndarray:
    """Large at every 31st index only: a sample can miss all of it."""
    return np.where(np.arange(units) % 31 == 5, 100.0, 0.0) + rng.standard_normal(units)


KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "energies": lambda rng, n: rng.standard_normal(n) ** 2,
    "few values": lambda rng, n: rng.integers(0, 4, n),
    "mostly zero": lambda rng, n: rng.standard_normal(n) * (rng.random(n) < 0.05),
    "all equal": lambda rng, n: np.ones(n),
    "sorted": lambda rng, n: np.sort(rng.standard_normal(n)),
    "periodic": _periodic,
    "with NaN": lambda rng, n: np.where(rng.random(n) < 1e-3, np.nan, rng.standard_normal(n)),
    "with Inf": lambda rng, n: np.where(rng.random(n) < 1e-3, np.inf, rng.standard_normal(n)),
    "tiny": lambda rng, n: rng.standard_normal(n) * 1e-42,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_selections_are_exact(kind: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    values = torch.from_numpy(KINDS[kind](rng, UNITS)).to(dtype)
    nan = int(values.isnan().sum())
    for keep in (1, 2, 500, UNITS // 2, UNITS - SMALL, UNITS - 1):
        if nan <= keep:
            assert torch.equal(select(values, keep), _oracle(values, keep)), keep
            assert torch.equal(_select_on_device(values, keep), _oracle(values, keep)), keep
        else:
            assert torch.equal(select(values, keep), values.isnan())
        assert torch.equal(select(values, keep, magnitude=True), select(values.abs(), keep)), keep


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_that_misses_costs_time_only(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.from_numpy(KINDS[kind](np.random.default_rng(1), UNITS)).float()
    expected = select(values, UNITS // 3)
    for low, high in ((1e30, np.inf), (-np.inf, -1e30), (0.1, 0.1)):
        bounds = np.float32(low), np.float32(high)
        monkeypatch.setattr(threshold_module, "_bounds", lambda *_, bounds=bounds: bounds)
        assert torch.equal(select(values, UNITS // 3), expected)


@settings(max_examples=40, deadline=None)
@given(
    units=st.integers(SMALL + 1, SMALL + 5000),
    share=st.floats(0, 1),
    levels=st.integers(1, 3000),
    seed=st.integers(0, 2**31),
    forced=st.integers(0, 20),
)
def test_any_mix_of_ties_and_forced_units(units: int, share: float, levels: int, seed: int, forced: int) -> None:
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.integers(0, levels, units)).float()
    flags = torch.zeros(units, dtype=torch.bool)
    flags[rng.integers(0, units, forced)] = True
    keep = max(int(share * units), int(flags.sum()), 1)
    expected = _oracle(values.masked_fill(flags, torch.inf), keep)
    assert torch.equal(select(values, keep, flags), expected)
    assert int(expected.sum()) == keep


def test_the_argument_is_left_alone_and_nothing_or_everything_can_be_kept() -> None:
    values = torch.randn(UNITS, generator=torch.Generator().manual_seed(0))
    before = values.clone()
    for keep in (0, 1, UNITS // 2, UNITS):
        assert int(select(values, keep, magnitude=True).sum()) == keep
        assert torch.equal(values, before)
    found = threshold(values.numpy(), 7)
    assert found.sharp
    assert found.value == values.sort(descending=True).values[6]


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["normal", "mostly zero", "few values", "all equal", "with NaN"])
def test_single_weights_of_a_large_layer(kind: str, sparsity: float) -> None:
    shape = (64, 96, 3, 3)
    weight = torch.from_numpy(KINDS[kind](np.random.default_rng(2), 64 * 96 * 9)).float().reshape(shape) - 0.5
    keep = keep_count(weight.numel(), sparsity)
    kept = weight.isnan() if int(weight.isnan().sum()) > keep else _oracle(weight.abs().flatten(), keep).reshape(shape)
    projected = project(weight, "unstructured", sparsity)
    assert torch.equal(projected.nan_to_num(nan=7e7), torch.where(kept, weight, 0.0).nan_to_num(nan=7e7))
    last = weight.to(memory_format=torch.channels_last)
    assert torch.equal(project(last, "unstructured", sparsity).nan_to_num(), projected.nan_to_num())
    assert not project(weight.requires_grad_(), "unstructured", sparsity).requires_grad


@pytest.mark.parametrize("shape", [(5 * BLOCK + 3, 300), (3 * BLOCK + 1, 40, 3, 3), (BLOCK, 7, 2, 2, 3), (1, 5), (9,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energies_are_as_near_to_the_truth_as_a_plain_sum(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
    layouts = [weight, weight.transpose(0, -1).contiguous().transpose(0, -1)]
    every = range(len(shape))
    for dims in ({0}, {1}, set(range(1, len(shape))), {0, 1}, {0, len(shape) - 1}, set(every)):
        kept = tuple(sorted(d for d in dims if d < len(shape)))
        inner = tuple(d for d in every if d not in kept)
        truth = weight.double().square().sum(dim=inner) if inner else weight.double().square()
        plain = weight.square().sum(dim=inner) if inner else weight.square()
        bound = max(float((plain.double() - truth).abs().max()), 4 * torch.finfo(dtype).eps * float(truth.max()))
        for layout in layouts if kept else []:
            energy = energy_along(layout, kept)
            assert energy.shape == truth.shape
            assert energy.dtype == dtype
            assert float((energy.double() - truth).abs().max()) <= bound
            assert torch.equal(energy, energy_along(layout, kept))


def test_half_precision_is_squared_in_single() -> None:
    weight = torch.full((4, 6, 3), 1e-4)
    for structure in ("filter", "channel", "shape", "unstructured"):
        energy = unit_energy(weight.half(), structure)
        assert energy.dtype == torch.float32
        assert torch.allclose(energy, unit_energy(weight.half().float(), structure))
        assert torch.all(unit_energy(weight.bfloat16(), structure) > 0)
