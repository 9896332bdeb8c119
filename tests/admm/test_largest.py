"""One threshold over all layers by selection: against a full sort, with ties, clamps and zeros."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from admm import largest
from admm.allocate import Allocator
from admm.errors import PlanError
from admm.groupmap import GroupMap
from admm.groups import find_groups
from admm.largest import largest_counts
from admm.target import Target
from tests.admm.toys import TinyResNet, seeded

torch.set_num_threads(1)


def by_sorting(weights: list[Tensor], rho: list[float], least: list[int], keep: int) -> float:
    """The most energy: the largest `least` of each layer, then the largest of what is left."""
    scores = [
        (r * w.double().square()).flatten().sort(descending=True).values for w, r in zip(weights, rho, strict=True)
    ]
    forced = sum(float(s[:n].sum()) for s, n in zip(scores, least, strict=True))
    rest = torch.cat([s[n:] for s, n in zip(scores, least, strict=True)]).sort(descending=True).values
    return forced + float(rest[: keep - sum(least)].sum())


def kept_by(counts: list[int], weights: list[Tensor], rho: list[float]) -> float:
    return sum(
        float((r * w.double().square()).flatten().sort(descending=True).values[:n].sum())
        for w, r, n in zip(weights, rho, counts, strict=True)
    )


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_the_most_energy_of_all_counts(data: st.DataObject) -> None:
    """Layers of very different scale, many equal weights or none, all-zero layers, with and without a sample."""
    seed, layers = data.draw(st.integers(0, 10_000)), data.draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(seed)
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.float16]))
    weights, rho, least = [], [], []
    for _ in range(layers):
        size = data.draw(st.sampled_from([1, 7, 100, 3000, 20_000]))
        values = torch.randn(size, generator=generator) * data.draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
        if data.draw(st.booleans()):
            values = values.round()  # ties, and zeros
        weights.append(values.to(dtype))
        rho.append(data.draw(st.sampled_from([0.0, 1e-4, 1.0, 1.0, 7.3])))
        least.append(data.draw(st.integers(1, min(size, 30))))
    keep = data.draw(st.integers(sum(least), sum(w.numel() for w in weights)))
    counts = largest_counts(weights, rho, least, keep)
    assert sum(counts) <= keep
    assert all(n <= c <= w.numel() for n, c, w in zip(least, counts, weights, strict=True))
    assert kept_by(counts, weights, rho) == pytest.approx(by_sorting(weights, rho, least, keep), rel=1e-12)
    if all(r > 0.0 for r in rho) and all(bool((w != 0).all()) for w in weights):
        assert sum(counts) == keep
    assert largest_counts(weights, rho, least, keep) == counts


@pytest.mark.parametrize("bounds", [(0.0, 1e-12), (50.0, math.inf), (1e-3, 1e-3)])
def test_a_sample_that_misleads_costs_time_only(monkeypatch: pytest.MonkeyPatch, bounds: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(30_000, generator=generator), torch.randn(200, 50, generator=generator)]
    rho = [1.0, 2.0]
    right = largest_counts(weights, rho, [1, 1], 4000)
    monkeypatch.setattr(largest, "_bounds", lambda *_: bounds)
    assert largest_counts(weights, rho, [1, 1], 4000) == right


@lru_cache
def _groups() -> GroupMap:
    return find_groups(seeded(TinyResNet), torch.randn(1, 1, 6, 6))


@settings(max_examples=40, deadline=None)
@given(st.floats(1.0, 60.0), st.integers(0, 1000), st.booleans(), st.integers(1, 20), st.booleans())
def test_the_same_as_by_the_knapsack(
    compression_x: float, seed: int, tied: bool, min_keep: int, leave_one: bool
) -> None:
    """The general way through ranking and knapsack is exact for few weights: neither keeps more than the other."""
    model = seeded(TinyResNet, seed)
    groups = _groups()
    values = {n: (p.detach() * 20).round() if tied else p.detach() for n, p in model.named_parameters()}
    layers = ("stem", "conv1", "head") if leave_one else None
    try:
        allocator = Allocator(model, groups, Target(compression_x=compression_x, min_keep=min_keep, layers=layers))
    except PlanError as error:
        assert "is out of reach" in str(error)  # noqa: PT017
        return
    rho = {n: 1.0 + 3.0 * ((seed + i) % 4) for i, n in enumerate(allocator.variables)}
    for bound in (allocator.bound.most, (allocator.bound.most + allocator.bound.dense) / 2):
        found = allocator.allocate(values, rho, bound)
        rankings = allocator._rankings(allocator.units.squares(values), rho)
        general = allocator._charged(allocator._solver.refined(rankings, bound), values, rho, bound)
        assert found.cost <= bound
        assert found.energy == pytest.approx(general.energy, rel=1e-9)
        if not tied:
            assert found.counts == general.counts
        assert all(kept >= least for kept, least in zip(found.counts, allocator.units.least, strict=True))
