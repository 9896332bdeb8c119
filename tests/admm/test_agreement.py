"""The gate between the masked and the compacted network."""

from __future__ import annotations

import copy

import pytest
import torch

from admm.agreement import require_agreement
from admm.compact import compact, mask_removed
from admm.errors import PruneError
from admm.groups import find_groups
from admm.plan import PruningPlan
from tests.admm.toys import TinyResNet, kept_by_magnitude, patterns, trained

X, _ = DATA = patterns(64)
PLAN = PruningPlan({"stem": {"filter": 0.5}, "conv1": {"filter": 0.25}})


def test_what_was_compacted_rightly_passes_and_keeps_its_modes() -> None:
    model = trained(TinyResNet, DATA)
    kept = kept_by_magnitude(model, find_groups(model, X[:1]), PLAN)
    mask_removed(model, kept)
    small = compact(model, kept)
    model.train()
    assert require_agreement(model, small, X) < 1e-5
    assert model.training
    assert model.bn.training
    assert not small.training


def test_a_removed_filters_batchnorm_that_stayed_is_found() -> None:
    """The classic mistake: the filter is zero, its BatchNorm still adds a constant."""
    model = trained(TinyResNet, DATA)
    kept = kept_by_magnitude(model, find_groups(model, X[:1]), PLAN)
    masked = copy.deepcopy(model)
    mask_removed(masked, kept)
    lost = [i for i in range(8) if i not in kept["bn"]["out"]]
    masked.bn.bias.data[lost] = 1.0
    masked.head.weight.data[:, lost] = 1.0
    with pytest.raises(PruneError, match=r"the masked and the compacted network differ by .* \(at most 1e-05\)"):
        require_agreement(masked, compact(model, kept), X)


def test_a_nan_is_no_agreement() -> None:
    model = trained(TinyResNet, DATA)
    broken = copy.deepcopy(model)
    broken.head.bias.data[0] = torch.nan
    with pytest.raises(PruneError, match="are not finite"):
        require_agreement(model, broken, X)
