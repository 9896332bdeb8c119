"""The pattern n:m: exact and idempotent beside brute force, over what a network has left, with filters, and refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from admm.errors import PlanError
from admm.groups import find_groups
from admm.pipeline import prune
from admm.plan import PATTERNS, STRUCTURES, LayerPlan, PruningPlan
from admm.projection import pattern_mask, project
from admm.projector import Projector
from admm.settings import AdmmSettings, FinetuneSettings
from admm.structures import along_inner, from_inner
from tests.admm.toys import TinyResNet, epochs_of, patterns, trained

torch.set_num_threads(1)

#: Canonical weights [filters, channels, *kernel] of Linear, Conv1d, Conv2d and Conv3d; inner sizes 8, 6, 12, 18, 4, 12.
SHAPES = [(3, 8), (3, 6), (2, 4, 3), (2, 2, 3, 3), (2, 1, 2, 2), (2, 3, 1, 2, 2)]
SEEDS = st.integers(0, 2**31)
sparsities = pytest.mark.parametrize("sparsity", list(PATTERNS))
relaxed = settings(deadline=None, max_examples=60)


def kept_of_four(sparsity: float) -> int:
    return int(PATTERNS[sparsity][0])


def whole_numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    """Small whole numbers, full of ties."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).double()


def rows_in_order(weight: Tensor) -> list[list[float]]:
    """Rows [inner], channels fastest, written out from the definition."""
    places = list(itertools.product(*map(range, weight.shape[2:])))
    return [
        [float(weight[(a, c, *place)]) for place in places for c in range(weight.shape[1])] for a in range(len(weight))
    ]


def nearest(row: list[float], keep: int) -> float:
    """Least squared distance of any row that keeps at most `keep` of each whole four, by trying all."""
    lost = 0.0
    for start in range(0, len(row) - len(row) % 4, 4):
        four = row[start : start + 4]
        lost += min(
            sum(v * v for i, v in enumerate(four) if i not in chosen)
            for chosen in itertools.combinations(range(4), keep)
        )
    return lost


@sparsities
@relaxed
@given(shape=st.sampled_from(SHAPES), seed=SEEDS)
def test_it_is_the_nearest_point_and_idempotent(sparsity: float, shape: tuple[int, ...], seed: int) -> None:
    weight = whole_numbers(shape, seed)
    before = weight.clone()
    keep = kept_of_four(sparsity)
    once = project(weight, "n:m", sparsity)
    assert torch.equal(weight, before)
    assert float((weight - once).square().sum()) == sum(nearest(row, keep) for row in rows_in_order(weight))
    assert torch.equal(project(once, "n:m", sparsity), once)
    for row, dense in zip(rows_in_order(once), rows_in_order(weight), strict=True):
        whole = len(row) - len(row) % 4
        assert all(sum(v != 0 for v in row[i : i + 4]) <= keep for i in range(0, whole, 4))
        assert row[whole:] == dense[whole:]


@sparsities
def test_ties_stay_in_order_and_a_nan_stays_in_sight(sparsity: float) -> None:
    keep = kept_of_four(sparsity)
    assert pattern_mask(torch.ones(1, 4), keep).tolist() == [[i < keep for i in range(4)]]
    assert bool(pattern_mask(torch.tensor([[1e9, 2.0, 3.0, torch.nan]]), keep)[0, 3])


@relaxed
@given(shape=st.sampled_from(SHAPES), seed=SEEDS, dead=st.sets(st.integers(0, 7), max_size=7))
def test_groups_are_those_of_the_channels_that_are_left(shape: tuple[int, ...], seed: int, dead: set[int]) -> None:
    weight = whole_numbers(shape, seed)
    live = torch.tensor([c not in dead for c in range(shape[1])])
    mask = pattern_mask(weight, 2, live)
    assert not bool(mask[:, ~live].any())
    if bool(live.any()):
        assert torch.equal(mask[:, live], pattern_mask(weight[:, live], 2))


@given(shape=st.sampled_from(SHAPES), seed=SEEDS)
def test_rows_and_back(shape: tuple[int, ...], seed: int) -> None:
    weight = whole_numbers(shape, seed)
    assert along_inner(weight).tolist() == rows_in_order(weight)
    assert torch.equal(from_inner(along_inner(weight), weight.shape), weight)


def test_plans_with_a_pattern() -> None:
    plan = PruningPlan({"fc": {"n:m": 0.5, "filter": 0.25}})
    assert plan.to_dict() == {"fc": {"filter": 0.25, "n:m": 0.5}}
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert "n:m" not in STRUCTURES
    assert dict(LayerPlan({"n:m": 0.0, "shape": 0.5})) == {"shape": 0.5}


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"n:m": 0.6}, r"one of 0.25 \(3:4\), 0.5 \(2:4\), 0.75 \(1:4\), got 0.6"),
        ({"n:m": 1.0}, "must lie in"),
        ({"n:m": 0.5, "shape": 0.5}, "'n:m' goes with 'filter' only, not with 'shape'"),
        ({"n:m": 0.5, "channel": 0.5, "filter": 0.5}, "not with 'channel'"),
        ({"n:m": 0.5, "unstructured": 0.5}, "not with 'unstructured'"),
        ({"2:4": 0.5}, "unknown structure '2:4': use one of filter, channel, shape, unstructured, n:m"),
    ],
)
def test_plans_that_cannot_be(layer: dict[str, float], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        PruningPlan({"fc": layer})


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 8),
        nn.ReLU(),
        nn.Linear(8, 5),
    ).double()


EXAMPLE = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def projected(plan: dict[str, dict[str, float]], align: int = 1) -> tuple[nn.Sequential, Projector, dict[str, Tensor]]:
    model = network()
    projector = Projector(model, find_groups(model, EXAMPLE), PruningPlan(plan), align=align)
    values = {name: p.detach() for name, p in model.named_parameters() if name in projector.variables}
    return model, projector, dict(projector.project(values).parameters)


def test_a_network_with_patterns_alone_is_projected_exactly() -> None:
    model, projector, masks = projected({"2": {"n:m": 0.5}, "6": {"n:m": 0.75}})
    for layer, sparsity in (("2", 0.5), ("6", 0.75)):
        weight = model.get_submodule(layer).weight
        assert isinstance(weight, Tensor)
        assert torch.equal(weight * masks[f"{layer}.weight"], project(weight, "n:m", sparsity))
    assert projector.effective().to_dict() == {"2": {"n:m": 0.5}, "6": {"n:m": 0.75}}
    assert projector.notes == []


def test_filters_of_the_layer_and_of_the_one_before() -> None:
    """2:4 holds in what is left: of 8 inputs 5 stay, so that groups cross what was apart, and one input stays dense."""
    model, _, masks = projected({"0": {"filter": 0.375}, "2": {"filter": 0.5, "n:m": 0.5}})
    mask = masks["2.weight"]
    rows, channels = mask.flatten(1).any(1), mask.any(0).flatten(1).any(1)
    assert (int(rows.sum()), int(channels.sum())) == (6, 5)
    left = along_inner(mask[rows][:, channels])
    assert left.shape == (6, 45)
    assert set(left[:, :44].reshape(-1, 4).sum(1).tolist()) == {2}
    assert bool(left[:, 44].all())
    weight = model.get_submodule("2").weight
    assert isinstance(weight, Tensor)
    assert torch.equal(mask[rows][:, channels], pattern_mask(weight[rows][:, channels], 2))


def test_a_filter_is_worth_what_the_pattern_leaves_of_it() -> None:
    """A row of equal weights has more energy than one of two large ones, until 2:4 takes half of it."""
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.2, 1.2, 0.0, 0.0]]))
        model[2].weight.zero_()
    plan = PruningPlan({"0": {"filter": 0.5, "n:m": 0.5}})
    projector = Projector(model, find_groups(model, torch.randn(2, 4, dtype=torch.float64)), plan)
    values = {name: p.detach() for name, p in model.named_parameters() if name in projector.variables}
    assert projector.project(values).slots["0"].tolist() == [False, True]


def test_less_is_asked_while_it_is_relaxed() -> None:
    _, projector, _ = projected({"6": {"n:m": 0.75}})
    projector.relax(0.5)
    assert projector.effective().to_dict() == {"6": {"n:m": 0.5}}
    projector.relax(0.05)
    assert projector.effective().to_dict() == {}
    projector.relax(1.0)
    assert projector.effective().to_dict() == {"6": {"n:m": 0.75}}


def test_what_stays_dense_is_said() -> None:
    _, projector, _ = projected({"0": {"n:m": 0.5}})
    assert projector.notes == ["0: the last 3 of the 27 weights of a filter stay dense: they fill no group of 4"]


def test_layers_that_have_no_group_of_four_and_grouped_ones_are_refused() -> None:
    for layer, words in (
        (nn.Linear(3, 4), "3 weights, fewer than one group of 4"),
        (nn.Conv2d(3, 6, 3, groups=3), "groups=3 has columns of its own"),
    ):
        model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
        example = torch.randn(2, 3) if isinstance(layer, nn.Linear) else torch.randn(2, 3, 5, 5)
        model(example)
        with pytest.raises(PlanError, match=words):
            Projector(model, find_groups(model, example), PruningPlan({"0": {"n:m": 0.5}}))


def test_a_pruned_network_keeps_the_pattern_through_retraining() -> None:
    data = patterns()
    plan = PruningPlan({"stem": {"filter": 0.25}, "conv2": {"n:m": 0.5}, "head": {"n:m": 0.5}})
    small = prune(
        trained(TinyResNet, data),
        plan,
        train_batches=epochs_of(data),
        example_input=data[0][:1],
        admm=AdmmSettings(iterations=2, lr=0.02),
        finetune=FinetuneSettings(epochs=1, lr=0.02),
        steps_per_epoch=4,
    ).model
    for layer in ("conv2", "head"):
        weight = small.get_submodule(layer).weight
        assert isinstance(weight, Tensor)
        rows = along_inner(weight.detach())
        whole = rows.shape[1] - rows.shape[1] % 4
        assert int((rows[:, :whole].reshape(-1, 4) != 0).sum(1).max()) == 2
