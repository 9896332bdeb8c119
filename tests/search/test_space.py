"""The search space: only aligned plans, within the bounds, with a note for everything that is left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from admm.groups import find_groups
from admm.plan import STRUCTURES, PruningPlan
from admm.projector import Projector
from admm.validate import check_plan
from search.errors import UserError
from search.space import Dimension, Space, build_space
from tests.admm.plans import groups_of
from tests.admm.zoo import ZOO

torch.set_num_threads(1)

BOUNDS = st.tuples(st.sampled_from([0.0, 0.1, 0.3]), st.sampled_from([0.5, 0.75, 0.9, 0.99]))
NAMES = ["wide_chain", "residual", "concat_residual", "inverted_residual", "conv1d", "conv3d", "linear_only", "unet"]


def _space(
    name: str,
    structures: Sequence[str] = ("filter",),
    layers: Sequence[str] | None = None,
    *,
    least: float = 0.0,
    most: float = 0.9,
    step: float = 0.05,
    align: int = 1,
) -> tuple[Space, list[str]]:
    groups = groups_of(name)
    chosen = groups.layers if layers is None else layers
    model = ZOO[name].factory()
    return build_space(model, groups, chosen, structures, least=least, most=most, step=step, align=align)


def _sparsities(space: Space) -> dict[str, tuple[float, ...]]:
    return {d.name: d.sparsities for d in space.dimensions}


@settings(deadline=None, max_examples=80)
@given(
    name=st.sampled_from(NAMES),
    structures=st.lists(st.sampled_from(STRUCTURES), min_size=1, max_size=4, unique=True),
    bounds=BOUNDS,
    align=st.sampled_from([1, 2, 4, 16]),
    step=st.sampled_from([0.05, 0.1, 0.33]),
    data=st.data(),
)
def test_every_plan_drawn_is_aligned_within_bounds_and_comes_back(
    name: str, structures: list[str], bounds: tuple[float, float], align: int, step: float, data: st.DataObject
) -> None:
    least, most = bounds
    try:
        space, _ = _space(name, structures, least=least, most=most, step=step, align=align)
    except UserError:
        assume(False)
    params = {d.name: data.draw(st.integers(0, len(d.sparsities) - 1), label=d.name) for d in space.dimensions}
    plan = space.plan(params)
    assert space.params(plan) == params
    assert space.plan(space.params(plan)) == plan
    # what is asked for is what is done: nothing is rounded, so no two proposals become the same network
    assert Projector(ZOO[name].factory(), groups_of(name), plan, align=align).effective() == plan
    for d in space.dimensions:
        assert list(d.sparsities) == sorted(set(d.sparsities))
        assert all(least - 1e-6 <= s <= most + 1e-6 for s in d.sparsities)
        assert len(d.sparsities) > 1 or d.sparsities[0] > 0.0
    assert Space.from_dict(json.loads(json.dumps(space.to_dict()))) == space


def _counts(name: str, space: Space, params: dict[str, int], align: int) -> dict[str, Any]:
    projector = Projector(ZOO[name].factory(), groups_of(name), space.plan(params), align=align)
    return {"slots": projector._slot_counts, "columns": projector._column_counts}


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_of_a_dimension_never_keep_the_same_counts(name: str) -> None:
    for align in (1, 4):
        space, _ = _space(name, ("filter", "channel", "shape"), align=align)
        for d in space.dimensions:
            seen = []
            for step in range(len(d.sparsities)):
                seen.append(
                    _counts(name, space, {**dict.fromkeys((o.name for o in space.dimensions), 0), d.name: step}, align)
                )
            assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


def test_kept_counts_are_blocks_of_the_device_and_the_full_width() -> None:
    space, notes = _space("wide_chain", align=16, most=0.9)
    assert _sparsities(space) == {"0/filter": (0.0, 0.5), "3/filter": (0.0, 0.333333, 0.666667)}
    assert notes == ["5.2: filters stay: its filters are the network's output"]
    space, _ = _space("wide_chain", align=1)
    assert len(space.dimensions[0].sparsities) == 29  # 32, 31, ... 4 of 32: at most 90 % removed


def test_a_width_that_is_no_multiple_of_the_block() -> None:
    model = nn.Sequential(nn.Linear(9, 40), nn.ReLU(), nn.Linear(40, 10), nn.ReLU(), nn.Linear(10, 3))
    groups = find_groups(model, torch.randn(1, 9))
    space, notes = build_space(model, groups, groups.layers, ("filter",), least=0.0, most=0.9, step=0.05, align=16)
    assert _sparsities(space) == {"0/filter": (0.0, 0.2, 0.6)}  # 40, 32 and 16 of 40
    assert "2: too narrow for filter sparsity within [0, 0.9] in blocks of 16" in notes
    # with a lower bound the full width is no choice
    space, _ = build_space(model, groups, groups.layers, ("filter",), least=0.3, most=0.9, step=0.05, align=16)
    assert _sparsities(space) == {"0/filter": (0.6,)}


def test_bounds_hold_for_what_rounding_makes_of_them() -> None:
    space, _ = _space("chain", ("shape",), least=0.3, most=0.7, align=16)
    assert _sparsities(space)["3/shape"] == (0.333333, 0.555556)  # 48 and 32 of 72 columns
    assert all(s >= 0.3 for s in _sparsities(space)["3/shape"])
    space, _ = _space("chain", ("unstructured",), least=0.2, most=0.4, step=0.1, align=16)
    assert _sparsities(space)["3/unstructured"] == (0.2, 0.3, 0.4)


def test_steps_that_would_keep_the_same_weights_are_one() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    groups = find_groups(model, torch.randn(1, 2))
    space, _ = build_space(model, groups, groups.layers, ("unstructured",), least=0.0, most=0.9, step=0.05, align=1)
    # 6, 5, ... 1 of 6 weights, each by the least sparsity that leads there
    assert _sparsities(space)["0/unstructured"] == (0.0, 0.2, 0.35, 0.5, 0.7, 0.85)


def test_a_concat_is_never_drawn_thinner_than_its_branches_allow() -> None:
    space, _ = _space("concat_residual", most=0.99)
    assert max(_sparsities(space)["a/filter"]) == 0.833333  # 2 of 12: one in each branch


def test_coupled_layers_share_the_dimension_of_the_first() -> None:
    space, notes = _space("residual")
    assert list(_sparsities(space)) == ["stem/filter", "a/filter", "down/filter"]
    assert notes == ["head.2: filters stay: its filters are the network's output"]


@pytest.mark.parametrize("excluded", ["stem", "b"])
def test_what_is_coupled_with_an_excluded_layer_stays_and_that_is_said(excluded: str) -> None:
    layers = [name for name in groups_of("residual").layers if name != excluded]
    space, notes = _space("residual", layers=layers)
    assert list(_sparsities(space)) == ["a/filter", "down/filter"]
    other = "b" if excluded == "stem" else "stem"
    assert f"{other}: filters stay: coupled with {excluded!r}, which the job excludes" in notes


def test_layers_that_are_not_chosen_have_no_dimension() -> None:
    space, notes = _space("residual", STRUCTURES, layers=["a"])
    assert {d.layer for d in space.dimensions} == {"a"}
    assert {d.structure for d in space.dimensions} == set(STRUCTURES)
    assert notes == []


def test_reasons_are_given_for_what_cannot_be_pruned() -> None:
    _, notes = _space("grouped", STRUCTURES)
    assert any(n.startswith("0: filters stay: ") and "grouped convolution" in n for n in notes)
    assert any(n.startswith("2: no channel sparsity: ") and "groups=2" in n for n in notes)
    assert any(n.startswith("2: no shape sparsity: ") for n in notes)
    _, notes = _space("tied_weights", ("unstructured", "channel"))
    assert any(n.startswith("b: no unstructured sparsity: ") and "shared with 'a'" in n for n in notes)
    space, _ = _space("tied_weights", STRUCTURES)
    assert not {d.layer for d in space.dimensions} & {"a", "b"}


def test_on_linear_shape_is_left_to_channel() -> None:
    both, _ = _space("linear_only", ("channel", "shape"))
    assert {d.structure for d in both.dimensions} == {"channel"}
    alone, _ = _space("linear_only", ("shape",))
    assert {d.structure for d in alone.dimensions} == {"shape"}


@pytest.mark.parametrize(
    ("name", "structures", "options", "words"),
    [
        ("broken", ["filter"], {}, ["filter", "cannot be traced"]),
        ("chain", ["filter"], {"align": 16}, ["too narrow", "blocks of 16"]),
        ("chain", ["filter", "shape"], {"most": 0.01}, ["filter, shape", "within [0, 0.01]"]),
        ("chain", ["filter"], {"layers": ["5.2"]}, ["network's output"]),
        ("chain", ["filter"], {"layers": []}, ["in the chosen layers"]),
    ],
)
def test_nothing_left_is_an_error_of_the_user(
    name: str, structures: list[str], options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        _space(name, structures, **options)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "nothing can be pruned with structures" in message
    assert "\n" not in message
    assert all(word in message for word in words), message


@settings(deadline=None)
@given(st.lists(st.floats(0, 0.99), min_size=1, max_size=6, unique=True), st.floats(0, 1))
def test_nearest_never_removes_more(sparsities: list[float], wanted: float) -> None:
    dimension = Dimension(layer="conv", structure="filter", sparsities=tuple(sorted(sparsities)))
    step = dimension.nearest(wanted)
    chosen = dimension.sparsities[step]
    assert chosen <= wanted + 1e-6 or step == 0
    assert all(s <= chosen or s > wanted + 1e-6 for s in dimension.sparsities)


def test_uniform_extreme_and_foreign_plans() -> None:
    space, _ = _space("wide_chain", ("filter", "channel", "unstructured"), align=16)
    names = list(_sparsities(space))
    assert names == [
        "0/filter",
        "0/unstructured",
        "3/filter",
        "3/channel",
        "3/unstructured",
        "5.2/channel",
        "5.2/unstructured",
    ]
    assert space.plan(space.uniform(0.5)).sparsity("0", "filter") == 0.5
    assert space.plan(space.uniform(0.5)).sparsity("3", "filter") == 0.333333
    extreme = space.extreme()
    assert extreme.sparsity("3", "filter") == 0.666667
    assert extreme.sparsity("3", "channel") == 0.5
    assert all(extreme.sparsity(layer, "unstructured") == 0.0 for layer in ("0", "3", "5.2"))
    # another network's plan: what the space does not know is passed over
    foreign = PruningPlan({"3": {"filter": 0.5, "shape": 0.5}, "elsewhere": {"filter": 0.5}})
    assert space.plan(space.params(foreign)).to_dict() == {"3": {"filter": 0.333333}}
    with pytest.raises(KeyError):
        space.plan({})


def test_patterns_are_dense_or_what_hardware_knows() -> None:
    space, notes = _space("wide_chain", ("filter", "n:m"), align=16)
    patterns = {d.layer: d.sparsities for d in space.dimensions if d.structure == "n:m"}
    assert patterns
    assert set(patterns.values()) == {(0.0, 0.25, 0.5, 0.75)}
    bounded, _ = _space("wide_chain", ("n:m",), least=0.3, most=0.6)
    assert {d.sparsities for d in bounded.dimensions} == {(0.5,)}
    with pytest.raises(UserError, match=r"no pattern n:m within \[0, 0.2\]: they remove 0.25, 0.5, 0.75"):
        _space("wide_chain", ("n:m",), most=0.2)
    assert not [note for note in notes if "no pattern" in note]


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(NAMES), data=st.data())
def test_a_drawn_pattern_is_a_plan_that_fits_and_comes_back(name: str, data: st.DataObject) -> None:
    space, _ = _space(name, ("filter", "n:m"), align=4)
    params = {d.name: data.draw(st.integers(0, len(d.sparsities) - 1), label=d.name) for d in space.dimensions}
    plan = space.plan(params)
    check_plan(ZOO[name].factory(), groups_of(name), plan)
    assert space.params(plan) == params
    assert Space.from_dict(json.loads(json.dumps(space.to_dict()))) == space
