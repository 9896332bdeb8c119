"""Sizes and costs: read off masks, agreeing with dense counts, refusing what is no cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from admm.cost import LayerSize, Ledger, MacCost, WeightCost, layer_shapes, layer_sizes, output_positions
from admm.errors import PlanError
from admm.plan import PruningPlan
from admm.projector import Masks, Projector
from admm.slicing import prunable_layers
from evaluators import count_macs
from tests.admm.plans import groups_of, random_model, values_of
from tests.admm.zoo import ZOO


@pytest.mark.parametrize("name", [n for n in ZOO if n not in ("broken", "attention", "two_outputs")])
def test_dense_macs_are_what_the_counter_counts(name: str) -> None:
    """(Attention uses its output layer's weights without calling it; the counter wants one tensor out.)"""
    model, example = ZOO[name].factory(), ZOO[name].example_input
    cost = MacCost(output_positions(model, example))
    dense = sum(cost.cost(layer, shape.size) for layer, shape in layer_shapes(model).items())
    assert dense == count_macs(model, example)


def test_a_layer_called_twice_counts_both_and_one_never_called_nothing() -> None:
    twice = output_positions(ZOO["used_twice"].factory(), ZOO["used_twice"].example_input)
    assert twice["twice"] == 2 * twice["stem"]
    assert output_positions(ZOO["unused_layer"].factory(), ZOO["unused_layer"].example_input)["unused"] == 0


def test_positions_are_of_one_sample_and_leave_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 2)).train()
    state = torch.random.get_rng_state()
    assert output_positions(model, torch.zeros(5, 3, 8, 8)) == {"0": 36, "3": 1}
    assert model.training
    assert model[1].training
    assert not model[0]._forward_hooks
    assert torch.equal(state, torch.random.get_rng_state())


def test_sizes_are_what_masks_leave() -> None:
    model, groups = random_model("residual", 0), groups_of("residual")
    plan = PruningPlan({"stem": {"filter": 0.5}, "a": {"shape": 0.5, "unstructured": 0.5}, "head.2": {"channel": 0.5}})
    projector = Projector(model, groups, plan)
    masks = projector.project(values_of(model, projector))
    sizes = layer_sizes(model, groups, masks)
    assert sizes["stem"] == LayerSize(filters=4, columns=27, weights=4 * 27)
    assert sizes["a"] == LayerSize(filters=6, columns=36, weights=6 * 36 // 2)
    assert sizes["down"] == LayerSize(filters=12, columns=4 * 9, weights=12 * 4 * 9)
    assert sizes["head.2"] == LayerSize(filters=3, columns=6, weights=18)
    for name, module in prunable_layers(model).items():
        mask = masks.parameters.get(f"{name}.weight", torch.ones(()))
        assert sizes[name].weights == int(mask.expand(module.weight.shape).sum())


@pytest.mark.parametrize("name", ["transposed", "inverted_residual", "grouped", "conv3d", "flatten_spatial"])
def test_no_masks_leave_everything(name: str) -> None:
    model = ZOO[name].factory()
    sizes = layer_sizes(model, groups_of(name), Masks(slots={}, channels={}, parameters={}))
    assert {n: WeightCost().cost(n, s) for n, s in sizes.items()} == {
        n: m.weight.numel() for n, m in prunable_layers(model).items()
    }


def test_a_table_is_asked_once_and_not_believed_blindly() -> None:
    asked: list[str] = []

    class Odd:
        def cost(self, layer: str, size: LayerSize) -> float:
            asked.append(layer)
            return float("nan") if layer == "bad" else 1.5 * size.weights

    ledger, size = Ledger(Odd()), LayerSize(filters=1, columns=2, weights=2)
    assert ledger.total({"a": size, "b": size}) + ledger.cost("a", size) == 9.0
    assert asked == ["a", "b"]
    with pytest.raises(PlanError, match=r"says nan for layer 'bad'.*finite and >= 0"):
        ledger.cost("bad", size)


def test_macs_of_an_unknown_layer() -> None:
    with pytest.raises(PlanError, match=r"no positions for layer 'conv2' \(did you mean 'conv1'\?\): count them"):
        MacCost({"conv1": 4}).cost("conv2", LayerSize(filters=1, columns=1, weights=1))
