"""One number in: which are taken, which are refused, and what each comes to for a network."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from admm.cost import LayerSize, WeightCost, output_positions
from admm.errors import PlanError
from admm.plan import STRUCTURES
from admm.target import Bound, Target
from tests.admm.zoo import ZOO


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "one of compression_x, mac_fraction, or cost with at_most: got none"),
        ({"compression_x": 2.0, "mac_fraction": 0.5}, "got compression_x and mac_fraction"),
        ({"compression_x": 0.5}, "compression_x must be a number at least 1, got 0.5"),
        ({"compression_x": float("nan")}, "compression_x must be a number at least 1, got nan"),
        ({"compression_x": True}, "compression_x must be a number at least 1, got True"),
        ({"mac_fraction": 0.0}, r"mac_fraction must be a number in \(0, 1\], got 0.0"),
        ({"mac_fraction": 1.5}, r"mac_fraction must be a number in \(0, 1\], got 1.5"),
        ({"cost": WeightCost()}, "cost and at_most belong together"),
        ({"at_most": 3.0, "compression_x": 2.0}, "cost and at_most belong together"),
        ({"cost": WeightCost(), "at_most": -1.0}, "at_most must be a number at least 0, got -1.0"),
        ({"compression_x": 2.0, "structures": ()}, "structures is a tuple of filter, channel, shape, unstructured"),
        ({"compression_x": 2.0, "structures": "filter"}, "structures is a tuple"),
        ({"compression_x": 2.0, "structures": ("row",)}, "unknown structure 'row': use some of filter"),
        ({"compression_x": 2.0, "layers": "conv1"}, "layers is a tuple of layer names or a function"),
        ({"compression_x": 2.0, "min_keep": 0}, "min_keep must be a whole number of at least 1, got 0"),
    ],
)
def test_what_is_no_target(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message) as raised:
        Target(**values)
    assert "\n" not in str(raised.value)


def test_structures_have_one_order() -> None:
    target = Target(compression_x=2, structures=("unstructured", "filter", "unstructured"))
    assert target.structures == ("filter", "unstructured")
    assert target == Target(compression_x=2, structures=("filter", "unstructured"))


@pytest.mark.parametrize(
    "target",
    [
        Target(compression_x=71.2),
        Target(mac_fraction=0.5, structures=STRUCTURES, layers=("a", "b"), min_keep=3),
    ],
)
def test_json_round_trip(target: Target) -> None:
    again = Target.from_dict(target.to_dict())
    assert again == target
    assert again.digest() == target.digest()
    assert len(target.digest()) == 16


def test_the_digest_tells_targets_apart() -> None:
    targets = [
        Target(compression_x=2),
        Target(compression_x=3),
        Target(mac_fraction=0.5),
        Target(mac_fraction=0.5, layers=("a",)),
        Target(mac_fraction=0.5, min_keep=2),
        Target(mac_fraction=0.5, structures=("filter",)),
    ]
    assert len({target.digest() for target in targets}) == len(targets)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "a target maps names to values, got list"),
        ({"compression": 2}, "a target has no 'compression': did you mean 'compression_x'?"),
        ({"compression_x": "2"}, "compression_x must be a number at least 1, got '2'"),
        ({"compression_x": 2, "layers": "conv"}, "layers of a target is a list of names, got 'conv'"),
        ({"compression_x": 2, "structures": [1]}, r"structures of a target is a list of names, got \[1\]"),
    ],
)
def test_json_that_is_no_target(content: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Target.from_dict(content)


def test_what_json_cannot_hold() -> None:
    with pytest.raises(PlanError, match="cannot be written as JSON because of its cost table"):
        Target(cost=WeightCost(), at_most=5).to_dict()
    with pytest.raises(PlanError, match="because of its function of layer names"):
        Target(compression_x=2, layers=lambda name: name != "fc").digest()


def test_which_layers_are_allowed() -> None:
    assert Target(compression_x=2).allows("any")
    assert [Target(compression_x=2, layers=("a",)).allows(n) for n in "ab"] == [True, False]
    assert [Target(compression_x=2, layers=lambda n: n > "a").allows(n) for n in "ab"] == [False, True]


def test_bounds_of_a_network() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    positions = {"0": 36, "2": 1}
    dense = 36 + 288
    assert Bound.of(Target(compression_x=10), model).most == dense // 10
    assert Bound.of(Target(compression_x=1), model).most == dense
    macs = Bound.of(Target(mac_fraction=0.25), model, positions)
    assert (macs.most, macs.dense) == (0.25 * (36 * 36 + 288), 36 * 36 + 288)

    class Filters:
        def cost(self, layer: str, size: LayerSize) -> float:
            return float(size.filters)

    own = Bound.of(Target(cost=Filters(), at_most=5), model)
    assert (own.most, own.dense) == (5, 6.0)


def test_a_bound_on_the_way_is_geometric() -> None:
    budget = Bound.of(Target(compression_x=100), nn.Sequential(nn.Linear(100, 100)))
    assert budget.at(1.0) == 100
    assert budget.at(0.5) == pytest.approx(1000)
    assert Bound.of(Target(compression_x=1), nn.Sequential(nn.Linear(10, 10))).at(0.5) == 100


def test_macs_need_positions() -> None:
    model, example = ZOO["chain"].factory(), ZOO["chain"].example_input
    with pytest.raises(PlanError, match=r"mac_fraction=0.5 needs to know how often a weight is used: give positions="):
        Bound.of(Target(mac_fraction=0.5), model)
    positions = output_positions(model, example)
    dense = sum(model.get_submodule(name).weight.numel() * count for name, count in positions.items())  # type: ignore[operator, union-attr]
    assert Bound.of(Target(mac_fraction=0.5), model, positions).most == 0.5 * dense


def test_layers_that_are_not_there() -> None:
    with pytest.raises(PlanError, match="the network has no prunable layer '9'"):
        Bound.of(Target(compression_x=2, layers=("0", "9")), ZOO["chain"].factory())
    with pytest.raises(PlanError, match="the network has no prunable layer: convolutions"):
        Bound.of(Target(compression_x=2), nn.Sequential(nn.ReLU()))
