"""Purification: what it removes served nothing, what it leaves serves something, and no layer is left empty."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from admm.compact import compact, mask_removed
from admm.groupmap import Group, GroupMap
from admm.groups import find_groups
from admm.kept import Kept, kept_from_slots, kept_of_json
from admm.kept_masks import add_selected
from admm.plan import PruningPlan
from admm.projector import Masks, Projector, lone_ranges
from admm.purify import (
    NEARLY_DEAD,
    dead_slots,
    effective_after,
    nearly_dead,
    purification_note,
    purify,
)
from admm.shrink import apply_masks
from admm.validate import weight_obstacle
from admm.verify import randomise
from tests.admm.dead import dead_weights
from tests.admm.plans import canonical, groups_of, random_model, random_plan, values_of
from tests.admm.zoo import ZOO, Net, _conv, _head

torch.set_num_threads(1)
RUNNING = [name for name in ZOO if name != "broken"]
#: act(0) = 0 on every way: without bias and shift a slot that nothing fills is zero.
ZERO_STAYS_ZERO = [
    "chain", "residual", "preactivation", "concat", "concat_residual", "dense_concat", "inverted_residual",
    "concat_depthwise", "linear_only", "conv1d", "conv3d", "transposed", "transposed_1d_3d", "unet",
    "flatten_spatial", "used_twice", "prelu", "two_outputs",
]  # fmt: skip


def _weight_names(model: nn.Module, groups: GroupMap) -> dict[str, str]:
    """Layer -> name of the weight, where single weights can be pruned."""
    possible = [layer for layer in groups.layers if weight_obstacle(model, layer, "unstructured") is None]
    return {layer: f"{layer}.weight" for layer in possible}


def _sparse_masks(name: str, model: nn.Module, seed: int) -> Masks:
    """A mixed plan's masks, with single weights removed on top until filters fall apart."""
    groups, rng = groups_of(name), random.Random(seed)
    projector = Projector(model, groups, random_plan(name, rng))
    masks = projector.project(values_of(model, projector))
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(masks.parameters)
    keep = rng.choice((0.03, 0.1, 0.3, 0.6))
    for key in _weight_names(model, groups).values():
        weight = model.get_parameter(key)
        single = torch.rand(weight.shape, generator=generator) < keep
        if rng.random() < 0.5:  # whole filters and channels die more often than chance would have it
            single = single & (torch.rand((1, weight.shape[1], *[1] * (weight.ndim - 2)), generator=generator) < 0.6)
            single = single & (torch.rand((weight.shape[0], *[1] * (weight.ndim - 1)), generator=generator) < 0.6)
        if rng.random() < 0.8:
            parameters[key] = parameters.get(key, torch.tensor(True)).expand(weight.shape) & single
    return Masks(slots=masks.slots, channels=masks.channels, parameters=parameters)


def _kept(groups: GroupMap, masks: Masks) -> Kept:
    return add_selected(kept_from_slots(groups, {n: s.tolist() for n, s in masks.slots.items()}), masks)


def _masked(model: nn.Module, groups: GroupMap, masks: Masks, also: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy that computes what the masks leave; of the slots flagged in `also`, nothing is left at all."""
    masked = copy.deepcopy(model)
    apply_masks(masked, masks)
    slots = {name: flags.clone() for name, flags in masks.slots.items()}
    for name, flags in (also or {}).items():
        slots[name] = slots.get(name, torch.ones_like(flags)) & ~flags
    mask_removed(masked, _kept(groups, Masks(slots=slots, channels=masks.channels, parameters={})))
    return masked


def _flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for value in values if value is not None for tensor in _flat(value)]


@torch.no_grad()
def _same(a: nn.Module, b: nn.Module, x: Tensor) -> bool:
    pairs = zip(_flat(a.eval()(x)), _flat(b.eval()(x)), strict=True)
    return all(float((y - z).abs().max()) <= 1e-9 * max(float(z.abs().max()), 1e-6) for y, z in pairs)


def _input(name: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(ZOO[name].example_input.shape, generator=generator, dtype=torch.float64)


def _live(model: nn.Module, masks: Masks, layer: str) -> Tensor:
    """bool [filters, channels]: a weight lives in the kernel between the two."""
    weight = model.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    mask = masks.parameters.get(f"{layer}.weight", torch.tensor(True)).expand(weight.shape)
    mask = canonical(model, layer, mask)
    return mask.reshape(*mask.shape[:2], -1).any(2)


def _verdicts(model: nn.Module, group: Group, masks: Masks) -> tuple[set[int], set[int]]:
    """Kept slots that nobody reads, and those that nothing fills: slot by slot, from the definition."""
    keep = masks.slots.get(group.name, torch.ones(group.slots, dtype=torch.bool))
    unread, constant = set(), set()
    live = {m.module: _live(model, masks, m.module) for m in group.members if m.role in ("in", "out")}
    for slot in range(group.slots):
        if not keep[slot]:
            continue
        for role, found in (("in", unread), ("out", constant)):
            members = [m for m in group.members if m.role == role]
            spans = [(m.module, i) for m in members for i, s in zip(m.index, m.slot, strict=True) if s == slot]
            if spans and not any(live[n][:, i].any() if role == "in" else live[n][i].any() for n, i in spans):
                found.add(slot)
    return unread, constant


def _assert_purified(name: str, seed: int) -> None:
    model, groups, x = random_model(name, seed), groups_of(name), _input(name, seed)
    masks = _sparse_masks(name, model, seed)
    after, dead = purify(model, groups, masks), dead_slots(model, groups, masks)
    kept = _kept(groups, after)
    assert kept_of_json(kept, model) == kept

    # unread slots change nothing; constants are gone as if they had never been there
    purified = _masked(model, groups, after)
    assert _same(purified, _masked(model, groups, masks, dead.constant), x)
    small = compact(purified, kept)
    assert _same(small, purified, x)

    for key, flags in after.parameters.items():
        assert not bool((flags & ~masks.parameters.get(key, torch.tensor(True))).any())
    for group in groups.groups.values():
        keep = after.slots.get(group.name, torch.ones(group.slots, dtype=torch.bool))
        assert all(bool(keep[sorted(own)].any()) for own in lone_ranges(group))
    for layer in _weight_names(model, groups):
        assert bool(_live(model, after, layer).any()) or not bool(_live(model, masks, layer).any())

    again = purify(model, groups, after)
    assert all(torch.equal(again.slots[n], s) for n, s in after.slots.items())
    assert not dead_weights(model, groups, after)
    useless = dead_weights(model, groups, masks)
    freed = sum(int(flags.sum()) for flags in useless.values())
    assert freed == _kept_weights(model, groups, masks) - _kept_weights(model, groups, after)


def _kept_weights(model: nn.Module, groups: GroupMap, masks: Masks) -> int:
    names = _weight_names(model, groups).values()
    return sum(
        int(masks.parameters.get(k, torch.tensor(True)).expand(model.get_parameter(k).shape).sum()) for k in names
    )


@pytest.mark.parametrize("name", RUNNING)
def test_what_goes_served_nothing(name: str) -> None:
    for seed in range(3):
        _assert_purified(name, seed)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(
        ["residual", "concat_residual", "inverted_residual", "unet", "conv3d", "transposed", "chunk_gate", "prelu"]
    ),
    seed=st.integers(0, 2**31),
)
def test_what_goes_served_nothing_for_any_masks(name: str, seed: int) -> None:
    _assert_purified(name, seed)


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(ZERO_STAYS_ZERO), seed=st.integers(0, 2**31))
def test_without_bias_and_shift_the_function_is_exactly_the_same(name: str, seed: int) -> None:
    """A slot that nothing fills then holds zero, and its removal shows nowhere."""
    model, groups = random_model(name, seed), groups_of(name)
    with torch.no_grad():
        for module in model.modules():
            for key in ("bias", "running_mean"):
                value = getattr(module, key, None)
                if isinstance(value, Tensor):
                    value.zero_()
    masks = _sparse_masks(name, model, seed)
    purified = purify(model, groups, masks)
    assert _same(_masked(model, groups, purified), _masked(model, groups, masks), _input(name, seed))


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(RUNNING), seed=st.integers(0, 2**31))
def test_nothing_dead_is_left_but_what_has_to_stay(name: str, seed: int) -> None:
    """Slot by slot from the definition: a dead slot that stays is the last of a range, or keeps a layer alive."""
    model, groups = random_model(name, seed), groups_of(name)
    masks = _sparse_masks(name, model, seed)
    after = purify(model, groups, masks)
    for group in groups.groups.values():
        keep = after.slots.get(group.name, torch.ones(group.slots, dtype=torch.bool))
        for slot in set.union(*_verdicts(model, group, after)):
            less = keep.clone()
            less[slot] = False
            empty = any(not bool(less[sorted(own)].any()) for own in lone_ranges(group))
            cut = _cut(model, group, after, slot)
            silent = any(
                bool(_live(model, after, layer).any()) and not bool(_live(model, cut, layer).any())
                for layer in _weight_names(model, groups)
            )
            unheard = any(
                not _arriving(groups, layer, flags, {**after.slots, group.name: less})
                for layer, flags in after.channels.items()
            )
            assert empty or silent or unheard, (group.name, slot)


def _cut(model: nn.Module, group: Group, masks: Masks, slot: int) -> Masks:
    """`masks` without one slot's filters and columns."""
    parameters = dict(masks.parameters)
    for member in group.members:
        key = f"{member.module}.weight"
        if member.role == "norm" or key not in dict(model.named_parameters()):
            continue
        flags = parameters.get(key, torch.tensor(True)).expand(model.get_parameter(key).shape).clone()
        view = flags if member.role == "depthwise" else canonical(model, member.module, flags)
        for index, own in zip(member.index, member.slot, strict=True):
            if own == slot:
                (view[:, index] if member.role == "in" else view[index]).fill_(False)
        parameters[key] = flags
    return Masks(slots=masks.slots, channels=masks.channels, parameters=parameters)


def _arriving(groups: GroupMap, layer: str, flags: Tensor, slots: Mapping[str, Tensor]) -> bool:
    arrives = flags.clone()
    for group in groups.groups.values():
        keep = slots.get(group.name, torch.ones(group.slots, dtype=torch.bool))
        for member in group.members:
            if member.module == layer and member.role == "in":
                for index, slot in zip(member.index, member.slot, strict=True):
                    arrives[index] &= keep[slot]
    return bool(arrives.any())


def _kept_slots(masks: Masks) -> dict[str, list[int]]:
    return {name: keep.nonzero().flatten().tolist() for name, keep in masks.slots.items()}


def test_removal_goes_on_until_nothing_is_dead_in_both_directions() -> None:
    """Filter 3 of the second layer is read by nobody, so nobody reads filter 2 of the first; filter 4 has no input."""
    model = nn.Sequential(
        nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    groups = find_groups(model, torch.randn(1, 5))
    masks = Masks(slots={}, channels={}, parameters={
        "0.weight": _flags((6, 5), [(0, 0), (1, 1), (2, 2)]),
        "2.weight": _flags((7, 6), [(0, 0), (1, 1), (3, 2), (4, 5)]),
        "4.weight": _flags((8, 7), [(0, 0), (1, 1), (2, 4), (3, 6)]),
        "6.weight": _flags((3, 8), [(0, 0), (1, 1), (2, 2), (2, 3)]),
    })  # fmt: skip
    dead = dead_slots(model, groups, masks)
    after = purify(model, groups, masks)
    assert _kept_slots(after) == {"0": [0, 1], "2": [0, 1], "4": [0, 1]}
    # 5 of the first layer, 4 of the second and 2 of the third hold constants in a row; the others nobody reads
    assert {n: f.nonzero().flatten().tolist() for n, f in dead.constant.items()} == {"0": [5], "2": [4, 6], "4": [2, 3]}
    assert {n: f.nonzero().flatten().tolist() for n, f in dead.unread.items()} == {
        "0": [2, 3, 4], "2": [2, 3, 5], "4": [4, 5, 6, 7],
    }  # fmt: skip
    useless = dead_weights(model, groups, masks)
    assert {n: f.nonzero().tolist() for n, f in useless.items()} == {
        "0.weight": [[2, 2]], "2.weight": [[3, 2], [4, 5]], "4.weight": [[2, 4], [3, 6]], "6.weight": [[2, 2], [2, 3]],
    }  # fmt: skip
    assert purification_note(model, groups, masks, after) == (
        "purified: 15 filters that served nothing are gone, and 7 weights with them "
        "(5 filters without inputs took their constant along)"
    )
    assert purification_note(model, groups, after, after) is None
    assert masks.slots == {}
    assert int(masks.parameters["6.weight"].sum()) == 4


def _flags(shape: tuple[int, ...], live: list[tuple[int, ...]]) -> Tensor:
    flags = torch.zeros(shape, dtype=torch.bool)
    for index in live:
        flags[index] = True
    return flags


def test_a_residual_slot_lives_while_one_filter_fills_it_and_one_consumer_reads_it() -> None:
    model, groups = random_model("residual", 0), groups_of("residual")
    full = {
        k: torch.ones_like(model.get_parameter(k), dtype=torch.bool) for k in ("stem.weight", "b.weight", "a.weight")
    }
    full |= {k: torch.ones_like(model.get_parameter(k), dtype=torch.bool) for k in ("down.weight", "shortcut.weight")}
    full["stem.weight"][[1, 2]] = False  # 1: the block still fills it; 2: nothing does
    full["b.weight"][[2, 3]] = False  # 3: the stem still fills it
    full["a.weight"][:, [4, 5]] = False
    full["down.weight"][:, [4, 5]] = False
    full["shortcut.weight"][:, 5] = False  # 4: the shortcut still reads it; 5: nobody does
    masks = Masks(slots={}, channels={}, parameters=full)
    after = purify(model, groups, masks)
    assert _kept_slots(after) == {"stem": [0, 1, 3, 4, 6, 7]}
    assert after.parameters["bn2.bias"].tolist() == after.parameters["bn0.weight"].tolist()
    assert after.parameters["bn0.bias"].nonzero().flatten().tolist() == [0, 1, 3, 4, 6, 7]


def test_all_columns_of_a_flattened_filter_count() -> None:
    model, groups = random_model("flatten_spatial", 0), groups_of("flatten_spatial")
    flags = torch.ones(10, 24, dtype=torch.bool)
    flags[:, 4:8] = False  # filter 1: all four positions
    flags[:, 8:11] = False  # filter 2: one position is still read
    after = purify(model, groups, Masks(slots={}, channels={}, parameters={"4.weight": flags}))
    assert _kept_slots(after) == {"0": [0, 2, 3, 4, 5]}
    assert not bool(after.parameters["4.weight"][:, 4:8].any())


def test_one_slot_of_each_branch_stays_however_dead() -> None:
    model, groups = random_model("concat", 0), groups_of("concat")
    masks = Masks(slots={}, channels={}, parameters={"c.weight": torch.zeros(6, 12, 3, 3, dtype=torch.bool)})
    after = purify(model, groups, masks)
    assert {name: len(kept) for name, kept in _kept_slots(after).items()} == {"a": 1, "b": 1, "c": 1}
    assert int(after.parameters["a.weight"].expand(5, 3, 3, 3).sum()) == 27  # and it keeps its weights
    assert compact(model, _kept(groups, after)).c.in_channels == 2  # type: ignore[union-attr]


def test_a_channel_that_a_layer_selects_still_arrives() -> None:
    """Its two channels are not filled by anything, and none of its weights lives: one stays all the same."""
    model, groups = random_model("chain", 0), groups_of("chain")
    selected = torch.zeros(8, dtype=torch.bool)
    selected[[2, 5]] = True
    rows = torch.ones(8, 1, 1, 1, dtype=torch.bool)
    rows[[2, 5]] = False
    masks = Masks(
        slots={},
        channels={"3": selected},
        parameters={"0.weight": rows, "3.weight": torch.zeros(1, 8, 1, 1, dtype=torch.bool)},
    )
    after = purify(model, groups, masks)
    kept = _kept(groups, after)
    assert kept_of_json(kept, model) == kept
    assert set(kept["3"]["in"]) & {2, 5}


def test_an_operation_across_channels_is_compacted_right_though_it_is_no_consumer() -> None:
    """Dividing by the norm over all channels reads a channel that no column reads: the one inexact case."""
    model = Net(
        lambda n, x: n.head(torch.relu(n.b(F.normalize(torch.relu(n.a(x)), dim=1)))),
        a=_conv(3, 8),
        b=_conv(8, 6),
        head=_head(6),
    ).double()
    randomise(model, torch.Generator().manual_seed(0))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    groups = find_groups(model, x[:1])
    flags = torch.ones(6, 8, 3, 3, dtype=torch.bool)
    flags[:, 3] = False
    masks = Masks(slots={}, channels={}, parameters={"b.weight": flags})
    after = purify(model, groups, masks)
    assert _kept_slots(after) == {"a": [0, 1, 2, 4, 5, 6, 7]}
    purified = _masked(model, groups, after)
    assert _same(compact(purified, _kept(groups, after)), purified, x)
    assert not _same(purified, _masked(model, groups, masks), x)


def test_nothing_dead_means_nothing_changes() -> None:
    for name in RUNNING:
        model, groups = random_model(name, 0), groups_of(name)
        empty = Masks(slots={}, channels={}, parameters={})
        after = purify(model, groups, empty)
        assert (after.slots, after.channels, after.parameters) == ({}, {}, {})
        assert dead_weights(model, groups, empty) == {}


def _weakened(model: nn.Module, scale: float) -> nn.Module:
    """Of `chain`: what reads filter 1 of the first layer, filter 2 of the second, and what reads its filter 3."""
    with torch.no_grad():
        model.get_parameter("3.weight")[:, 1] *= scale
        model.get_parameter("3.weight")[2] *= scale
        model.get_parameter("5.2.weight")[:, 3] *= scale
        model.get_parameter("0.weight")[4] *= scale  # behind a BatchNorm: no weak filter
    return model


def test_nearly_dead_units_go_from_the_threshold_on() -> None:
    groups, none = groups_of("chain"), Masks(slots={}, channels={}, parameters={})
    model = _weakened(random_model("chain", 0), 1e-3)
    after = nearly_dead(model, groups, none, dict(model.named_parameters()))
    assert _kept_slots(after) == {"0": [0, 2, 3, 4, 5, 6, 7], "3": [0, 1, *range(4, 12)]}
    assert _kept_slots(nearly_dead(model, groups, none, {}, threshold=1e-9)) == {}
    strong = _weakened(random_model("chain", 0), 0.5)
    assert _kept_slots(nearly_dead(strong, groups, none, dict(strong.named_parameters()))) == {}


def test_what_is_nearly_dead_is_decided_by_the_live_weights_alone() -> None:
    """The masked weights of a filter are no energy of it."""
    model, groups = random_model("flatten_spatial", 0), groups_of("flatten_spatial")
    flags = torch.ones(10, 24, dtype=torch.bool)
    flags[3] = False
    flags[3, 7] = True
    with torch.no_grad():
        model.get_parameter("4.weight")[3, 7] = 1e-4
        model.get_parameter("4.weight")[3, :7] = 100.0
    masks = Masks(slots={}, channels={}, parameters={"4.weight": flags})
    assert _kept_slots(nearly_dead(model, groups, masks, {})) == {"4": [0, 1, 2, *range(4, 10)]}


def test_nearly_dead_columns_go_only_where_zeros_stay_zeros() -> None:
    model, groups = random_model("chain", 0), groups_of("chain")
    with torch.no_grad():
        model.get_parameter("3.weight")[:, 2, 1, 1] = 1e-5
    dense = Masks(slots={}, channels={}, parameters={})
    assert nearly_dead(model, groups, dense, {}).parameters == {}
    columns = torch.ones(1, 8, 3, 3, dtype=torch.bool)
    columns[:, 0, 0, 0] = False
    after = nearly_dead(model, groups, Masks(slots={}, channels={}, parameters={"3.weight": columns}), {})
    assert not bool(after.parameters["3.weight"][:, 2, 1, 1].any())
    assert int(after.parameters["3.weight"].expand(12, 8, 3, 3).sum()) == 12 * 70


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(RUNNING), seed=st.integers(0, 2**31), threshold=st.sampled_from([0.0, 1e-3, 0.3, 0.99]))
def test_nearly_dead_leaves_a_network_that_compacts(name: str, seed: int, threshold: float) -> None:
    model, groups = random_model(name, seed), groups_of(name)
    masks = _sparse_masks(name, model, seed)
    after = nearly_dead(model, groups, masks, dict(model.named_parameters()), threshold)
    kept = _kept(groups, after)
    assert kept_of_json(kept, model) == kept
    purified = _masked(model, groups, after)
    assert _same(compact(purified, kept), purified, _input(name, seed))
    for layer in _weight_names(model, groups):
        assert bool(_live(model, after, layer).any()) or not bool(_live(model, masks, layer).any())
    if threshold == 0.0:
        assert _kept_slots(after) == _kept_slots(purify(model, groups, masks))


def test_the_layers_weights_change_by_no_more_than_the_threshold_says() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 5))
    groups = find_groups(model, torch.randn(1, 40))
    with torch.no_grad():
        model[2].weight.mul_(10.0 ** (-4.0 * torch.rand(60, generator=generator)))
    before = model[2].weight.detach()
    after = nearly_dead(model, groups, Masks(slots={}, channels={}, parameters={}), {})
    gone = before * ~after.parameters["2.weight"]
    assert 0 < len(_kept_slots(after)["0"]) < 55
    assert float(gone.norm() / before.norm()) <= NEARLY_DEAD**0.5


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_that_is_no_share_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\), got"):
        nearly_dead(nn.Sequential(), groups_of("chain"), Masks({}, {}, {}), {}, threshold)


def test_the_effective_plan_tells_what_purification_took() -> None:
    groups = groups_of("residual")
    plan = PruningPlan({"a": {"filter": 0.5}, "down": {"unstructured": 0.5}})
    keep = torch.tensor([True] * 6 + [False] * 2)
    masks = Masks(slots={"a": torch.tensor([True] + [False] * 5), "stem": keep}, channels={}, parameters={})
    assert effective_after(plan, groups, masks).to_dict() == {
        "a": {"filter": 0.833333},
        "down": {"unstructured": 0.5},
        "stem": {"filter": 0.25},
    }
