"""Widths told without pruning: those of the network that the hard prune would give."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from admm.compact import SelectedInput
from admm.errors import PlanError
from admm.plan import PruningPlan
from admm.shapes import shaped_by_magnitude
from admm.slicing import channel_axis, filter_axis, prunable_layers
from admm.validate import weight_obstacle
from admm.widths import Widths
from tests.admm.plans import groups_of, random_model
from tests.admm.zoo import ZOO

torch.set_num_threads(1)

SPARSITIES = (0.0, 0.25, 0.5, 0.75, 0.95)
#: Groups whose members span all slots: filters alone are exact.
EXACT = [
    "wide_chain", "residual", "preactivation", "inverted_residual", "linear_only", "linear_on_tokens", "conv1d",
    "conv3d", "transposed", "flatten_spatial", "grouped", "used_twice", "squeeze_excite", "tied_weights",
]  # fmt: skip


def decisions(name: str, structures: tuple[str, ...]) -> list[tuple[str, str, tuple[float, ...]]]:
    model, groups = ZOO[name].factory(), groups_of(name)
    found = []
    for layer in groups.layers:
        for structure in structures:
            possible = layer in groups.groups if structure == "filter" else not weight_obstacle(model, layer, structure)
            if possible:
                found.append((layer, structure, SPARSITIES))
    return found


def plan_of(chosen: list[tuple[str, str, tuple[float, ...]]], steps: list[int]) -> PruningPlan:
    layers: dict[str, dict[str, float]] = {}
    for (layer, structure, sparsities), step in zip(chosen, steps, strict=True):
        layers.setdefault(layer, {})[structure] = sparsities[step]
    return PruningPlan(layers)


def shaped(name: str, model: nn.Module, plan: PruningPlan, align: int) -> dict[str, tuple[int, int, int]]:
    """Layer -> (filters, channels, live columns) of the network that the hard prune gives."""
    small = shaped_by_magnitude(model, groups_of(name), plan, align=align)
    found = {}
    for layer, module in prunable_layers(small).items():
        weight: Any = module.weight
        columns = weight.detach().movedim(filter_axis(module), 0).flatten(1).ne(0).any(0).sum()
        found[layer.removesuffix(".layer")] = (
            weight.shape[filter_axis(module)],
            weight.shape[channel_axis(module)],
            int(columns),
        )
    assert all(not isinstance(m, SelectedInput) for m in prunable_layers(small).values())
    return found


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(EXACT), seed=st.integers(0, 9), align=st.sampled_from([1, 2, 4]))
def test_filters_alone_are_exact(name: str, seed: int, align: int) -> None:
    model, chosen, rng = random_model(name, seed), decisions(name, ("filter",)), random.Random(seed)
    widths = Widths(model, groups_of(name), chosen, align=align)
    for _ in range(3):
        steps = [rng.randrange(len(SPARSITIES)) for _ in chosen]
        real = shaped(name, model, plan_of(chosen, steps), align)
        for layer, (filters, channels, columns) in real.items():
            width = widths.width(layer, steps)
            assert (width.filters, width.channels, width.columns) == (filters, channels, columns), layer
            assert width.live == width.channels


@pytest.mark.parametrize("name", ["concat", "concat_residual", "dense_concat", "concat_depthwise", "unet"])
def test_a_concatenation_is_exact_in_sum_and_near_in_its_branches(name: str) -> None:
    chosen = decisions(name, ("filter",))
    wrong = total = 0
    for seed in range(10):
        model, rng = random_model(name, seed), random.Random(seed)
        widths = Widths(model, groups_of(name), chosen)
        steps = [rng.randrange(len(SPARSITIES)) for _ in chosen]
        real = shaped(name, model, plan_of(chosen, steps), 1)
        for layer, (filters, _, _) in real.items():
            width = widths.width(layer, steps)
            assert abs(width.filters - filters) <= 2
            wrong += abs(width.filters - filters)
            total += filters
        for group in groups_of(name).groups.values():
            ranges = {m.module: m for m in group.owners}
            if sum(len(m.slot) for m in ranges.values()) == group.slots:
                assert sum(widths.width(m, steps).filters for m in ranges) == sum(real[m][0] for m in ranges)
    assert wrong <= 0.05 * total


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(["wide_chain", "residual", "conv1d", "linear_only"]), seed=st.integers(0, 20))
def test_mixed_structures_are_near(name: str, seed: int) -> None:
    model, chosen, rng = random_model(name, seed), decisions(name, ("filter", "channel", "shape")), random.Random(seed)
    widths = Widths(model, groups_of(name), chosen)
    steps = [rng.randrange(4) for _ in chosen]
    real = shaped(name, model, plan_of(chosen, steps), 1)
    wrong = sum(
        abs(widths.width(layer, steps).filters - f) + abs(widths.width(layer, steps).channels - c)
        for layer, (f, c, _) in real.items()
    )
    assert wrong <= 0.15 * sum(f + c for f, c, _ in real.values())


def test_a_layer_depends_on_the_decisions_it_names_alone() -> None:
    chosen, rng = decisions("residual", ("filter", "channel", "shape")), random.Random(0)
    widths = Widths(random_model("residual", 0), groups_of("residual"), chosen)
    for layer, depends in widths.depends.items():
        for _ in range(20):
            steps = [rng.randrange(5) for _ in chosen]
            others = [s if i in depends else rng.randrange(5) for i, s in enumerate(steps)]
            assert widths.width(layer, steps) == widths.width(layer, others)


def test_a_channel_that_nobody_reads_takes_its_filter_along() -> None:
    model, groups = random_model("wide_chain", 0), groups_of("wide_chain")
    widths = Widths(model, groups, [("3", "channel", (0.0, 0.5))], align=1)
    assert widths.width("0", [0]).filters == 32
    assert widths.width("0", [1]).filters == 16


def test_a_decision_of_another_network_is_refused() -> None:
    with pytest.raises(PlanError, match="'conv9' has no filter to remove"):
        Widths(random_model("chain", 0), groups_of("chain"), [("conv9", "filter", (0.0, 0.5))])
