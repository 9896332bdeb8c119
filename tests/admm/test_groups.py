"""Coupled groups: found right, or refused by name; the model and the global random state untouched."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from admm import groups as groups_module
from admm.errors import GroupError
from admm.groupmap import Group, GroupMap, Member
from admm.groups import find_groups
from admm.kept import kept_from_slots
from admm.slicing import prunable_layers
from admm.verify import Prover, random_slots
from tests.admm.zoo import ZOO, Net, _conv, _head

torch.set_num_threads(1)


def _map(name: str, seed: int = 0) -> GroupMap:
    animal = ZOO[name]
    return find_groups(animal.factory(), animal.example_input, seed=seed)


def _owners(groups: GroupMap) -> set[frozenset[str]]:
    return {frozenset(owner.module for owner in group.owners) for group in groups.groups.values()}


@pytest.mark.parametrize("name", ZOO)
def test_every_layer_is_owned_or_refused_as_expected(name: str) -> None:
    groups = _map(name)
    assert set(groups.excluded) == set(ZOO[name].excluded)
    owned = [owner.module for group in groups.groups.values() for owner in group.owners]
    assert sorted([*owned, *groups.excluded]) == sorted(groups.layers)
    assert all("\n" not in reason and len(reason) > 10 for reason in groups.excluded.values())


@pytest.mark.parametrize(
    "name", ["residual", "squeeze_excite_linear", "recurrent", "option_a_shortcut", "chunk_apart", "channel_shuffle"]
)
@pytest.mark.parametrize("seed", range(1, 9))
def test_the_result_does_not_depend_on_the_seed(name: str, seed: int) -> None:
    assert set(_map(name, seed).excluded) == set(ZOO[name].excluded)


@pytest.mark.parametrize(
    ("name", "layer", "words"),
    [
        ("chain", "5.2", "output"),
        ("grouped", "0", "grouped convolution"),
        ("group_norm", "0", "GroupNorm"),
        ("layer_norm", "0", "LayerNorm"),
        ("tied_weights", "a", "shared with 'b'"),
        ("unused_layer", "unused", "unused"),
        ("detached", "a", "detach"),
        ("local_response", "0", "differ by"),
        ("channel_softmax", "a", "differ by"),
        ("channel_shuffle", "a", "does not run"),
        ("layer_scale", "0", "'1.gamma'"),
        ("weight_norm", "2", "parametrization"),
        ("weight_standardization", "2", "not finite"),
        ("attention", "embed", "MultiheadAttention"),
        ("recurrent", "embed", "LSTM"),
        ("one_filter", "0", "too few"),
        ("broken", "0", "cannot be traced"),
    ],
)
def test_the_reason_names_what_stands_in_the_way(name: str, layer: str, words: str) -> None:
    assert words in _map(name).excluded[layer]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chain", [{"0"}, {"3"}]),
        ("residual", [{"stem", "b"}, {"a"}, {"down", "shortcut"}]),
        ("concat", [{"a"}, {"b"}, {"c"}]),
        ("concat_residual", [{"a", "b", "d"}]),
        ("inverted_residual", [{"stem", "project"}, {"expand", "depthwise"}]),
        ("concat_depthwise", [{"a", "b", "dw"}]),
        ("used_twice", [{"stem", "twice"}]),
        ("squeeze_excite", [{"stem", "up"}, {"squeeze"}, {"after"}]),
        ("option_a_shortcut", [{"a"}]),
    ],
)
def test_coupled_layers_stand_in_one_group(name: str, expected: list[set[str]]) -> None:
    assert _owners(_map(name)) == {frozenset(owners) for owners in expected}


def test_slots_of_a_residual_group() -> None:
    groups = _map("residual")
    group = groups.group_of("b")
    assert group is not None
    assert group.name == "stem"
    assert group.slots == 8
    assert {(m.module, m.role) for m in group.members} == {
        ("stem", "out"), ("bn0", "norm"), ("a", "in"), ("b", "out"), ("bn2", "norm"), ("down", "in"),
        ("shortcut", "in"),
    }  # fmt: skip
    assert all(m.index == m.slot == tuple(range(8)) for m in group.members)
    assert groups.group_of("head.2") is None


def test_concat_gives_offsets_and_a_residual_add_couples_the_ranges() -> None:
    groups = _map("concat")
    consumer = {m.module: m for m in groups.groups["b"].members}["c"]
    assert consumer.index == tuple(range(5, 12))
    assert consumer.slot == tuple(range(7))
    assert consumer.width == 12
    coupled = _map("concat_residual").groups["a"]
    assert coupled.slots == 12
    assert {m.module: m.slot for m in coupled.owners} == {
        "a": tuple(range(5)), "b": tuple(range(5, 12)), "d": tuple(range(12)),
    }  # fmt: skip


def test_flatten_gives_several_inputs_a_slot() -> None:
    linear = {m.module: m for m in _map("flatten_spatial").groups["0"].members}["4"]
    assert linear.index == tuple(range(24))
    assert linear.slot == tuple(i // 4 for i in range(24))


def test_a_gate_couples_the_halves_of_one_layer() -> None:
    """torch-pruning's own merge loses this: channel i and i + 8 of one convolution meet in one product."""
    group = _map("chunk_gate").groups["gate"]
    assert group.slots == 8
    assert group.owners[0].slot == (*range(8), *range(8))


@pytest.mark.parametrize("name", ["in_train_mode", "frozen_layers", "residual", "prelu", "tied_weights"])
def test_the_model_and_the_random_state_are_left_alone(name: str) -> None:
    model = ZOO[name].factory()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    grads = [parameter.requires_grad for parameter in model.parameters()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with torch.no_grad():
        groups = find_groups(model, ZOO[name].example_input)
    assert set(groups.excluded) == set(ZOO[name].excluded)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())


def test_inside_inference_mode_and_autocast_with_half_precision_weights() -> None:
    model = ZOO["chain"].factory().bfloat16()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        groups = find_groups(model, ZOO["chain"].example_input.bfloat16())
    assert set(groups.groups) == {"0", "3"}


def test_json_round_trip() -> None:
    groups = _map("concat_residual")
    assert GroupMap.from_dict(json.loads(json.dumps(groups.to_dict()))) == groups
    assert pickle.loads(pickle.dumps(groups)) == groups
    assert copy.deepcopy(groups) == groups


@pytest.mark.parametrize(
    "break_it",
    [
        lambda d: d.pop("layers"),
        lambda d: d["groups"][0]["members"][0].update(role="sideways"),
        lambda d: d["groups"][0]["members"][0].update(slot=[99] * 8),
        lambda d: d["groups"][0]["members"][0].update(index=[0]),
        lambda d: d["groups"][0].update(slots="many"),
        lambda d: d.update(groups=7),
    ],
)
def test_a_foreign_group_map_is_refused(break_it: Callable[[dict[str, object]], object]) -> None:
    content = _map("chain").to_dict()
    break_it(content)
    with pytest.raises(GroupError, match="not a group map"):
        GroupMap.from_dict(content)


def _lying_couple(omit: str) -> Callable[[nn.Module, Tensor], object]:
    real = groups_module.couple

    def couple(model: nn.Module, example: Tensor) -> object:
        coupling = real(model, example)
        lost = {node for node, name in coupling.names.items() if name == omit}
        coupling.components = [[c for c in part if c.node not in lost] for part in coupling.components]
        return coupling

    return couple


@pytest.mark.parametrize("omit", ["bn0", "a", "shortcut", "bn2"])
def test_a_dependency_that_the_tracer_missed_is_caught(omit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "couple", _lying_couple(omit))
    assert "stem" in _map("residual").excluded


def test_two_groups_that_only_hold_alone_are_told_apart_by_the_joint_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each branch alone may lose filters here, both together may not: what is kept must then be proved together."""

    def forward(net: Net, x: Tensor) -> object:
        a, b = net.a(x), net.b(x)
        both_smaller = a.shape[1] < 8 and b.shape[1] < 8
        return net.head(torch.cat([net.c(a), net.d(b)], 1)) * (2.0 if both_smaller else 1.0)

    model = Net(forward, a=_conv(3, 8), b=_conv(3, 8), c=_conv(8, 3), d=_conv(8, 3), head=_head(6))
    groups = find_groups(model, torch.zeros(1, 3, 8, 8))
    assert "a" in groups.groups
    assert groups.excluded["b"].startswith("together with other groups")
    slots = {name: _flags(group) for name, group in groups.groups.items()}
    assert Prover(model, torch.zeros(1, 3, 8, 8)).compare(kept_from_slots(groups, slots)).reason is None


def _flags(group: Group) -> tuple[bool, ...]:
    flags = random_slots(group, torch.Generator().manual_seed(0))
    assert flags is not None
    return flags


def test_random_slots_leave_no_member_empty() -> None:
    owner = Member("a", "out", tuple(range(6)), tuple(range(6)), 6)
    consumer = Member("c", "in", (0, 1), (4, 5), 2)
    group = Group("a", 6, (owner, consumer))
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        flags = random_slots(group, generator, keep=0.2)
        assert flags is not None
        assert not all(flags)
        assert flags[4] or flags[5]
    assert random_slots(Group("a", 1, (Member("a", "out", (0,), (0,), 1),)), generator) is None


def test_layers_are_listed_in_model_order() -> None:
    model = ZOO["residual"].factory()
    assert _map("residual").layers == tuple(prunable_layers(model)) == (
        "stem", "a", "b", "down", "shortcut", "head.2",
    )  # fmt: skip


def test_a_bare_linear_layer_and_a_model_without_layers() -> None:
    assert dict(find_groups(nn.Linear(4, 3), torch.zeros(1, 4)).excluded) == {
        "": "its filters are the network's output"
    }
    empty = find_groups(nn.ReLU(), torch.zeros(1, 4))
    assert empty.layers == ()
    assert not empty.groups
