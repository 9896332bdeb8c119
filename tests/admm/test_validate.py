"""Does a plan fit a network: each refusal by name, with the reason and the mend, before anything is trained."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from admm.errors import PlanError
from admm.groupmap import GroupMap
from admm.groups import find_groups
from admm.plan import STRUCTURES, PruningPlan
from admm.projector import Projector
from admm.validate import check_plan, weight_obstacle
from tests.admm.plans import groups_of, random_plan
from tests.admm.zoo import ZOO

torch.set_num_threads(1)


def _refusal(name: str, plan: dict[str, dict[str, float]]) -> str:
    with pytest.raises(PlanError) as caught:
        check_plan(ZOO[name].factory(), groups_of(name), PruningPlan(plan))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "plan", "words"),
    [
        ("residual", {"stemm": {"filter": 0.5}}, ["no prunable layer 'stemm'", "did you mean 'stem'?"]),
        ("residual", {"xyz": {"filter": 0.5}}, ["'xyz'", "prunable layers: stem, a, b, down, shortcut, head.2"]),
        ("residual", {"bn0": {"filter": 0.5}}, ["no prunable layer 'bn0'"]),
        ("residual", {"": {"filter": 0.5}}, ["no prunable layer ''"]),
        ("residual", {"b": {"filter": 0.5}}, ["'b'", "coupled with those of 'stem'", "put the filter sparsity there"]),
        ("residual", {"head.2": {"filter": 0.5}}, ["'head.2'", "cannot be removed", "network's output"]),
        ("grouped", {"2": {"filter": 0.5}}, ["'2'", "grouped convolution"]),
        ("grouped", {"2": {"channel": 0.5}}, ["'2'", "no 'channel'", "groups=2", "use filter or unstructured"]),
        ("grouped", {"2": {"shape": 0.5}}, ["'2'", "no 'shape'", "groups=2"]),
        ("inverted_residual", {"depthwise": {"shape": 0.5}}, ["'depthwise'", "no 'shape'", "groups=12"]),
        ("group_norm", {"0": {"filter": 0.5}}, ["'0'", "GroupNorm"]),
        ("tied_weights", {"a": {"channel": 0.5}}, ["'a'", "no 'channel'", "shared with 'b'"]),
        ("tied_weights", {"b": {"shape": 0.5}}, ["'b'", "no 'shape'", "shared with 'a'"]),
        ("tied_weights", {"b": {"unstructured": 0.5}}, ["'b'", "no 'unstructured'", "shared with 'a'"]),
        ("weight_norm", {"2": {"unstructured": 0.5}}, ["'2'", "no 'unstructured'", "parametrization"]),
        ("weight_norm", {"2": {"shape": 0.5}}, ["'2'", "no 'shape'", "parametrization"]),
        ("weight_standardization", {"2": {"channel": 0.5}}, ["'2'", "no 'channel'", "no plain layer of torch.nn"]),
        ("weight_standardization", {"2": {"shape": 0.5}}, ["'2'", "StandardizedConv", "zeros in another way"]),
        ("weight_standardization", {"2": {"unstructured": 0.5}}, ["'2'", "no 'unstructured'", "StandardizedConv"]),
        ("broken", {"0": {"filter": 0.5}}, ["'0'", "cannot be traced"]),
    ],
)
def test_each_refusal_names_the_layer_the_reason_and_the_mend(
    name: str, plan: dict[str, dict[str, float]], words: list[str]
) -> None:
    message = _refusal(name, plan)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", ZOO)
def test_every_layer_takes_a_structure_or_refuses_it_by_name(name: str) -> None:
    """Of every structure of every layer: a plan is either refused in one line or can be projected."""
    model, groups = ZOO[name].factory(), groups_of(name)
    for layer in groups.layers:
        for structure in STRUCTURES:
            plan = PruningPlan({layer: {structure: 0.5}})
            if structure == "filter":
                possible = layer in groups.groups
            else:
                possible = weight_obstacle(model, layer, structure) is None
            if not possible:
                assert layer in _refusal(name, plan.to_dict())
                continue
            check_plan(model, groups, plan)
            projector = Projector(model, groups, plan)
            masks = projector.project({n: p for n, p in model.named_parameters() if n in projector.variables})
            assert f"{layer}.weight" in masks.parameters
    excluded = sorted(groups.excluded)
    assert all(groups.excluded[layer] in _refusal(name, {layer: {"filter": 0.5}}) for layer in excluded)


def test_plans_made_of_what_is_possible_pass() -> None:
    for name in ZOO:
        for seed in range(3):
            plan = random_plan(name, random.Random(seed))
            check_plan(ZOO[name].factory(), groups_of(name), plan)
            assert set(plan) <= set(groups_of(name).layers)


def test_a_network_of_one_bare_layer_is_refused_with_the_mend() -> None:
    model = nn.Linear(4, 3)
    groups = find_groups(model, torch.randn(1, 4))
    for structure in ("channel", "unstructured"):
        with pytest.raises(PlanError, match=r"put it into an nn\.Sequential"):
            check_plan(model, groups, PruningPlan({"": {structure: 0.5}}))


def test_many_layers_are_not_all_listed() -> None:
    layers = tuple(f"block{i}.conv" for i in range(40))
    with pytest.raises(PlanError) as caught:
        check_plan(nn.Sequential(), GroupMap({}, {}, layers), PruningPlan({"stem": {"filter": 0.5}}))
    assert str(caught.value).endswith("block7.conv, ...")
    with pytest.raises(PlanError, match="it belongs to no group"):
        check_plan(nn.Sequential(), GroupMap({}, {}, layers), PruningPlan({"block1.conv": {"filter": 0.5}}))
