"""A pruned network back in the dense one's shape: the same outputs, and nothing where something was removed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm.compact import compact, mask_removed, save_pruned
from admm.errors import GroupError
from admm.groups import find_groups
from admm.inflate import inflate
from admm.outcome import PruneResult
from admm.pipeline import prune
from admm.plan import PruningPlan
from admm.settings import AdmmSettings, FinetuneSettings
from admm.verify import randomise
from tests.admm.test_compact import PRUNABLE, _assert_same, _input, _model, _random_kept

torch.set_num_threads(1)


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(PRUNABLE), seed=st.integers(0, 50), select=st.booleans())
def test_it_computes_what_the_pruned_network_computes(
    name: str, seed: int, select: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pruned")
    kept = _random_kept(name, seed, select=select)
    small = compact(_model(name, seed), kept)
    randomise(small, torch.Generator().manual_seed(seed + 1))  # retrained: none of its weights is the dense one's
    save_pruned(folder, small, kept, PruningPlan(), PruningPlan())
    dense = _model(name, seed + 2)
    before = {n: t.clone() for n, t in dense.state_dict().items()}
    large = inflate(dense, folder)
    assert {n: t.shape for n, t in large.state_dict().items()} == {n: t.shape for n, t in before.items()}
    _assert_same(large, small, _input(name, seed))
    # what compaction removes again is all that was added
    again = compact(large, kept).state_dict()
    assert all(torch.equal(again[n], t) for n, t in small.state_dict().items())
    masked = inflate(dense, folder)
    mask_removed(masked, kept)
    assert all(torch.equal(masked.state_dict()[n], t) for n, t in large.state_dict().items())
    assert all(torch.equal(dense.state_dict()[n], t) for n, t in before.items())


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def _pruned(model: nn.Module, sparsity: float) -> PruneResult:
    x, y = torch.randn(24, 1, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 3
    return prune(
        model,
        PruningPlan({"0": {"filter": sparsity}, "3": {"filter": sparsity}}),
        train_batches=lambda epoch: [(x[:12], y[:12]), (x[12:], y[12:])],
        groups=find_groups(_network(), x[:1]),
        admm=AdmmSettings(iterations=2),
        finetune=FinetuneSettings(epochs=1),
    )


def test_pruned_further_it_loses_what_was_lost_already(tmp_path: Path) -> None:
    """Filters without weights hold the least energy: the second plan removes them first, and some more."""
    first = _pruned(_network(), 0.25)
    save_pruned(tmp_path, first.model, first.kept, first.requested, first.effective)
    second = _pruned(inflate(_network(), tmp_path), 0.5)
    for layer in ("0", "3"):
        assert set(second.kept[layer]["out"]) < set(first.kept[layer]["out"])


def test_another_network_is_refused(tmp_path: Path) -> None:
    result = _pruned(_network(), 0.5)
    save_pruned(tmp_path, result.model, result.kept, result.requested, result.effective)
    with pytest.raises(GroupError):
        inflate(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(128, 3)), tmp_path)
