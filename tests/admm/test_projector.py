"""Whole networks projected onto mixed plans: exact counts, coupled slots, rounding to the block."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from admm.errors import PlanError
from admm.groupmap import Group, GroupMap, Member
from admm.groups import find_groups
from admm.kept import kept_from_slots
from admm.plan import STRUCTURES, PruningPlan
from admm.projection import keep_count, project
from admm.projector import Masks, Projector, least_slots, lone_ranges
from tests.admm.plans import canonical, groups_of, random_model, random_plan, values_of
from tests.admm.zoo import ZOO

torch.set_num_threads(1)
SEEDS = st.integers(0, 2**31)
WITH_GROUPS = [name for name in ZOO if groups_of(name).groups]


def _projected(name: str, plan: PruningPlan, seed: int, align: int = 1) -> tuple[nn.Module, Projector, Masks]:
    model = random_model(name, seed)
    projector = Projector(model, groups_of(name), plan, align=align)
    return model, projector, projector.project(values_of(model, projector))


def _assert_obeys(model: nn.Module, groups: GroupMap, plan: PruningPlan, masks: Masks, align: int) -> None:
    """Counted from the masks alone, layer by layer, as the definitions say."""
    for name in plan:
        if plan.sparsity(name, "filter"):
            group = groups.groups[name]
            expected = max(keep_count(group.slots, plan.sparsity(name, "filter"), align), least_slots(group, align))
            assert int(masks.slots[name].sum()) == expected
            _assert_slots_live_and_die_together(model, group, masks)
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        mask = canonical(model, name, masks.parameters.get(f"{name}.weight", torch.tensor(True)).expand(weight.shape))
        columns = mask.any(0)
        channels = columns.reshape(columns.shape[0], -1).any(1)
        channel, shape = plan.sparsity(name, "channel"), plan.sparsity(name, "shape")
        if mask.ndim == 2:
            channel, shape = max(channel, shape), 0.0
        if channel:
            assert int(masks.channels[name].sum()) == keep_count(mask.shape[1], channel, align)
            assert not bool((channels & ~masks.channels[name]).any())
        if shape:
            assert int(columns.sum()) <= keep_count(columns.numel(), shape, align)


def _assert_slots_live_and_die_together(model: nn.Module, group: Group, masks: Masks) -> None:
    keep = masks.slots[group.name].tolist()
    parameters = dict(model.named_parameters())
    for member in group.members:
        for suffix in ("weight", "bias"):
            name = f"{member.module}.{suffix}"
            if name not in parameters or (member.role == "in" and suffix == "bias"):
                continue
            mask = masks.parameters[name].expand(parameters[name].shape)
            if suffix == "weight" and member.role in ("in", "out"):
                mask = canonical(model, member.module, mask)
            for index, slot in zip(member.index, member.slot, strict=True):
                part = mask[:, index] if member.role == "in" else mask[index]
                assert keep[slot] or not bool(part.any()), (member.module, suffix, index)


@settings(deadline=None, max_examples=120)
@given(name=st.sampled_from(sorted(ZOO)), seed=SEEDS, align=st.sampled_from([1, 1, 2, 4]))
def test_masks_obey_any_plan_exactly(name: str, seed: int, align: int) -> None:
    plan = random_plan(name, random.Random(seed))
    model, projector, masks = _projected(name, plan, seed % 7, align)
    _assert_obeys(model, groups_of(name), plan, masks, align)
    assert set(masks.parameters) == set(projector.variables)
    assert all(mask.dtype == torch.bool for mask in masks.parameters.values())
    # and no module is left without filters or inputs
    kept_from_slots(groups_of(name), {n: s.tolist() for n, s in masks.slots.items()})


@pytest.mark.parametrize("name", WITH_GROUPS)
@pytest.mark.parametrize("sparsity", [0.5, 0.999])
def test_every_owner_keeps_a_filter(name: str, sparsity: float) -> None:
    groups = groups_of(name)
    plan = PruningPlan({group: {"filter": sparsity} for group in groups.groups})
    for seed in range(3):
        _, projector, masks = _projected(name, plan, seed)
        for group in groups.groups.values():
            for owner in group.owners:
                assert bool(masks.slots[group.name][list(owner.slot)].any()), owner.module
        clamped = [g for g in groups.groups.values() if keep_count(g.slots, sparsity) < len(lone_ranges(g))]
        said = [note for note in projector.notes if "so that no coupled layer is left empty" in note]
        assert len(said) == len(clamped)


def test_a_concat_needs_a_filter_of_each_branch_but_no_more() -> None:
    group = groups_of("concat_residual").groups["a"]  # a and b side by side, d over both of them
    assert [sorted(r) for r in lone_ranges(group)] == [list(range(5)), list(range(5, 12))]
    assert least_slots(group) == 2
    assert [least_slots(group, align) for align in (2, 8, 16)] == [2, 8, 12]
    model = random_model("concat_residual", 0)
    with torch.no_grad():
        model.get_submodule("b").weight.mul_(1e-3)
        model.get_submodule("d").weight.mul_(1e-3)
        model.get_submodule("d").bias.mul_(1e-3)
        model.get_submodule("b").bias.mul_(1e-3)
        model.get_submodule("head.2").weight.mul_(1e-3)
    projector = Projector(model, groups_of("concat_residual"), PruningPlan({"a": {"filter": 0.99}}))
    keep = projector.project(values_of(model, projector)).slots["a"]
    assert int(keep.sum()) == 2
    assert bool(keep[:5].any())
    assert bool(keep[5:].any())
    assert projector.notes == ["a: 2 filters kept, so that no coupled layer is left empty"]
    assert projector.effective().to_dict() == {"a": {"filter": 0.833333}}


def test_a_residual_removes_the_same_slots_everywhere() -> None:
    model, _, masks = _projected("residual", PruningPlan({"stem": {"filter": 0.5}}), 3)
    keep = masks.slots["stem"]
    assert int(keep.sum()) == 4
    for name, axis in [("stem", 0), ("b", 0), ("a", 1), ("down", 1), ("shortcut", 1)]:
        mask = masks.parameters[f"{name}.weight"].expand(model.get_submodule(name).weight.shape)  # type: ignore[arg-type]
        assert torch.equal(mask.transpose(0, axis).flatten(1).all(1), keep)
        assert torch.equal(mask.transpose(0, axis).flatten(1).any(1), keep)
    for name in ("bn0.weight", "bn0.bias", "bn2.weight", "bn2.bias"):
        assert torch.equal(masks.parameters[name], keep)
    assert set(masks.parameters) == {
        *(f"{n}.weight" for n in ("stem", "b", "a", "down", "shortcut", "bn0", "bn2")),
        "bn0.bias",
        "bn2.bias",
    }


def test_a_depthwise_layer_goes_with_what_it_reads() -> None:
    model, _, masks = _projected("inverted_residual", PruningPlan({"expand": {"filter": 0.75}}), 1)
    keep = masks.slots["expand"]
    assert int(keep.sum()) == 3
    for name in ("expand", "depthwise"):
        assert torch.equal(masks.parameters[f"{name}.weight"].flatten(), keep)
    assert torch.equal(masks.parameters["depthwise.bias"], keep)
    assert torch.equal(masks.parameters["project.weight"].flatten(), keep)
    assert model.get_submodule("project").weight.shape[1] == 12  # type: ignore[index, union-attr]


def _slot_energy_oracle(model: nn.Module, group: Group, rho: dict[str, float]) -> list[float]:
    """By loops over the members' channels, in Python floats: what dies with a slot, weighted by rho."""
    parameters = {name: p.detach().numpy() for name, p in model.named_parameters()}
    energy = [0.0] * group.slots
    for member in group.members:
        for suffix in ("weight", "bias"):
            name = f"{member.module}.{suffix}"
            if name not in parameters or (member.role == "in" and suffix == "bias"):
                continue
            value = parameters[name]
            if suffix == "weight" and member.role in ("in", "out"):
                value = canonical(model, member.module, torch.from_numpy(value)).numpy()
            for index, slot in zip(member.index, member.slot, strict=True):
                part = value[:, index] if member.role == "in" else value[index]
                energy[slot] += rho[name] * sum(float(w) ** 2 for w in np.ravel(part))
    return energy


@pytest.mark.parametrize("name", WITH_GROUPS)
def test_slots_are_ranked_by_the_rho_weighted_energy_of_all_that_dies_with_them(name: str) -> None:
    groups, rng = groups_of(name), random.Random(0)
    for group in groups.groups.values():
        model = random_model(name, 5)
        projector = Projector(model, groups, PruningPlan({group.name: {"filter": 0.5}}))
        rho = {n: 10.0 ** rng.uniform(-2, 2) for n in projector.variables}
        keep = projector.project(values_of(model, projector), rho).slots[group.name]
        energy = _slot_energy_oracle(model, group, rho)
        must = {max(own, key=lambda slot: (energy[slot], -slot)) for own in lone_ranges(group)}
        rest = sorted((s for s in range(group.slots) if s not in must), key=lambda s: (-energy[s], s))
        expected = must | set(rest[: max(keep_count(group.slots, 0.5), len(must)) - len(must)])
        assert set(keep.nonzero().flatten().tolist()) == expected


def test_rho_decides_which_parameter_speaks() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    groups = find_groups(model, torch.randn(1, 3))
    projector = Projector(model, groups, PruningPlan({"0": {"filter": 0.5}}))
    values = {
        "0.weight": torch.tensor([[2.0, 0, 0], [1.0, 0, 0]]),
        "0.bias": torch.zeros(2),
        "2.weight": torch.tensor([[1.0, 2.0]]),
    }
    assert projector.project(values, {"0.weight": 2.0, "0.bias": 1.0, "2.weight": 1.0}).slots["0"].tolist() == [
        True,
        False,
    ]
    assert projector.project(values, {"0.weight": 1.0, "0.bias": 1.0, "2.weight": 2.0}).slots["0"].tolist() == [
        False,
        True,
    ]


@pytest.mark.parametrize("structure", ["channel", "shape", "unstructured"])
@pytest.mark.parametrize("name", ["chain", "conv1d", "conv3d", "transposed", "transposed_1d_3d", "linear_only", "unet"])
def test_one_structure_on_one_layer_is_the_exact_projection(name: str, structure: str) -> None:
    """On the canonical view, so that transposed convolutions agree as well."""
    for layer in groups_of(name).layers:
        if getattr(ZOO[name].factory().get_submodule(layer), "groups", 1) != 1 and structure != "unstructured":
            continue
        model, _, masks = _projected(name, PruningPlan({layer: {structure: 0.6}}), 2)
        weight = model.get_submodule(layer).weight
        assert isinstance(weight, Tensor)
        masked = canonical(model, layer, weight.detach() * masks.parameters[f"{layer}.weight"])
        assert torch.equal(masked, project(canonical(model, layer, weight.detach()), structure, 0.6))


def test_a_lone_filter_projection_of_a_transposed_convolution() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 6, 2, bias=False), nn.ReLU(), nn.ConvTranspose2d(6, 2, 2, bias=False))
    groups = find_groups(model, torch.randn(1, 3, 4, 4))
    projector = Projector(model, groups, PruningPlan({"0": {"filter": 0.5}}))
    values = values_of(model, projector)
    masks = projector.project(values, {"0.weight": 1.0, "2.weight": 0.0})
    weight = values["0.weight"]
    assert torch.equal(
        (weight * masks.parameters["0.weight"]).transpose(0, 1), project(weight.transpose(0, 1), "filter", 0.5)
    )
    assert masks.parameters["2.weight"].shape == (6, 1, 1, 1)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(["chain", "residual", "conv3d", "unet", "linear_only", "inverted_residual"]),
    seed=SEEDS,
    sparsity=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_unstructured_is_a_fraction_of_what_the_others_leave(name: str, seed: int, sparsity: float) -> None:
    coarse = random_plan(name, random.Random(seed), STRUCTURES[:3]).to_dict()
    layers = groups_of(name).layers
    plan = PruningPlan({layer: {**coarse.get(layer, {}), "unstructured": sparsity} for layer in layers})
    model, _, fine = _projected(name, plan, seed % 5)
    _, before, left = _projected(name, PruningPlan(coarse), seed % 5)
    for layer in layers:
        weight = model.get_submodule(layer).weight
        assert isinstance(weight, Tensor)
        key = f"{layer}.weight"
        remains = left.parameters.get(key, torch.tensor(True)).expand(weight.shape)
        mask = fine.parameters[key].expand(weight.shape)
        assert not bool((mask & ~remains).any())
        assert int(mask.sum()) == keep_count(int(remains.sum()), sparsity)
        lost = weight.detach()[remains & ~mask].abs()
        assert lost.numel() == 0 or lost.max() <= weight.detach()[mask].abs().min()
    assert len(before.variables) <= len(layers) * 4


def test_channel_and_shape_together_on_one_layer() -> None:
    plan = PruningPlan({"3": {"channel": 0.5, "shape": 0.75}})
    model, _, masks = _projected("chain", plan, 4)
    columns = masks.parameters["3.weight"]
    assert columns.shape == (1, 8, 3, 3)
    assert int(columns.sum()) == keep_count(72, 0.75) == 18
    assert int(masks.channels["3"].sum()) == 4
    assert torch.equal(columns[0].flatten(1).any(1), masks.channels["3"])
    weight = model.get_submodule("3").weight.detach()  # type: ignore[union-attr]
    by_channels = project(weight, "channel", 0.5)  # type: ignore[arg-type]
    assert torch.equal(weight * columns, project(by_channels, "shape", 0.75))  # type: ignore[operator]


def test_channels_that_no_longer_arrive_are_given_up_first() -> None:
    plan = PruningPlan({"0": {"filter": 0.5}, "3": {"channel": 0.5, "shape": 0.5}})
    for seed in range(5):
        _, _, masks = _projected("chain", plan, seed)
        assert torch.equal(masks.channels["3"], masks.slots["0"])
        alive = masks.parameters["3.weight"].expand(12, 8, 3, 3)[:, masks.slots["0"]]
        assert int(alive.any(0).sum()) == 36  # all of the 36 columns that may stay lie where something arrives


def test_on_linear_a_shape_is_a_channel() -> None:
    model = random_model("linear_only", 0)
    results = []
    for asked in ({"channel": 0.5}, {"shape": 0.5}, {"channel": 0.25, "shape": 0.5}, {"channel": 0.5, "shape": 0.1}):
        projector = Projector(model, groups_of("linear_only"), PruningPlan({"3": asked}))
        results.append(projector.project(values_of(model, projector)))
        assert projector.effective().to_dict() == {"3": dict.fromkeys(asked, 0.5)}
    for masks in results:
        assert torch.equal(masks.parameters["3.weight"], results[0].parameters["3.weight"])
        assert torch.equal(masks.channels["3"], results[0].channels["3"])
        assert int(masks.channels["3"].sum()) == 6


@settings(deadline=None, max_examples=120)
@given(name=st.sampled_from(sorted(ZOO)), seed=SEEDS, align=st.sampled_from([1, 2, 3, 4, 16]))
def test_the_effective_plan_asks_for_itself(name: str, seed: int, align: int) -> None:
    plan = random_plan(name, random.Random(seed))
    model = ZOO[name].factory()
    effective = Projector(model, groups_of(name), plan, align=align).effective()
    again = Projector(model, groups_of(name), effective, align=align)
    assert again.effective() == effective
    assert not [note for note in again.notes if "asked for" in note or "left empty" in note]
    for layer, structure in [(name, s) for name in plan for s in plan[name]]:
        linear = isinstance(model.get_submodule(layer), nn.Linear) and structure in ("channel", "shape")
        assert (
            effective.sparsity(layer, structure)
            <= max(plan.sparsity(layer, s) for s in (("channel", "shape") if linear else (structure,))) + 1e-6
        )


def test_effective_and_requested_give_the_same_masks() -> None:
    for name, seed in itertools.product(["residual", "unet", "conv3d", "concat_depthwise"], range(4)):
        plan = random_plan(name, random.Random(seed))
        model, projector, masks = _projected(name, plan, seed, align=4)
        again = Projector(model, groups_of(name), projector.effective(), align=4)
        other = again.project(values_of(model, again))
        for key, value in values_of(model, again).items():
            assert torch.equal(value * other.parameters[key], value * masks.parameters[key])
        assert all(bool(m.all()) for key, m in masks.parameters.items() if key not in other.parameters)


def test_aligned_counts_are_multiples_of_the_block_or_dense() -> None:
    plan = PruningPlan(
        {"0": {"filter": 0.5}, "3": {"filter": 0.9, "channel": 0.4, "shape": 0.5}, "5.2": {"channel": 0.9}}
    )
    _, projector, masks = _projected("wide_chain", plan, 0, align=16)
    assert int(masks.slots["0"].sum()) == 16
    assert int(masks.slots["3"].sum()) == 16  # 5 asked for
    assert int(masks.channels["3"].sum()) == 32  # 20 asked for: the next block is the full width
    assert int(masks.channels["5.2"].sum()) == 16
    assert projector.effective().to_dict() == {
        "0": {"filter": 0.5},
        "3": {"filter": 0.666667, "shape": 0.5},
        "5.2": {"channel": 0.666667},
    }
    assert projector.notes == [
        "3: 16 of 48 filters kept, 5 asked for (rounded up to a multiple of 16)",
        "3: 32 of 32 input channels kept, 20 asked for (rounded up to a multiple of 16)",
        "5.2: 16 of 48 input channels kept, 5 asked for (rounded up to a multiple of 16)",
    ]


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(WITH_GROUPS), seed=SEEDS)
def test_the_same_weights_give_the_same_masks_and_nothing_is_changed(name: str, seed: int) -> None:
    plan = random_plan(name, random.Random(seed))
    model, projector, first = _projected(name, plan, 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    second = projector.project(values_of(model, projector))
    third = Projector(model, groups_of(name), plan).project(values_of(model, projector))
    for kind in ("slots", "channels", "parameters"):
        for other in (second, third):
            assert getattr(other, kind).keys() == getattr(first, kind).keys()
            assert all(torch.equal(v, getattr(first, kind)[k]) for k, v in getattr(other, kind).items())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(WITH_GROUPS), seed=SEEDS)
def test_projecting_twice_changes_nothing(name: str, seed: int) -> None:
    plan = random_plan(name, random.Random(seed), ("filter", "channel", "unstructured"))
    model, projector, masks = _projected(name, plan, 2)
    once = {n: v * masks.parameters[n] for n, v in values_of(model, projector).items()}
    again = projector.project(once)
    assert all(torch.equal(v, v * again.parameters[n]) for n, v in once.items())


def test_a_nan_does_not_hide() -> None:
    model = random_model("chain", 0)
    with torch.no_grad():
        model.get_submodule("0").weight[5, 0, 0, 0] = float("nan")  # type: ignore[index]
    for plan in ({"0": {"filter": 0.5}}, {"0": {"channel": 0.5}}, {"0": {"shape": 0.5}}, {"0": {"unstructured": 0.5}}):
        projector = Projector(model, groups_of("chain"), PruningPlan(plan))
        values = values_of(model, projector)
        masks = projector.project(values)
        assert (values["0.weight"] * masks.parameters["0.weight"]).isnan().any()


def test_all_zero_weights_still_leave_a_network() -> None:
    model = random_model("residual", 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    plan = random_plan("residual", random.Random(1))
    projector = Projector(model, groups_of("residual"), plan)
    masks = projector.project(values_of(model, projector))
    _assert_obeys(model, groups_of("residual"), plan, masks, 1)


def test_the_empty_plan_touches_nothing() -> None:
    model = random_model("chain", 0)
    projector = Projector(model, groups_of("chain"), PruningPlan())
    masks = projector.project({})
    assert projector.variables == ()
    assert (dict(masks.slots), dict(masks.channels), dict(masks.parameters)) == ({}, {}, {})
    assert projector.effective() == PruningPlan()


def test_a_plan_that_does_not_fit_is_refused_before_anything_else() -> None:
    with pytest.raises(PlanError, match="did you mean"):
        Projector(random_model("residual", 0), groups_of("residual"), PruningPlan({"stemm": {"filter": 0.5}}))


def test_ranges_of_members_that_own_only_a_part() -> None:
    members = (
        Member("a", "out", (0, 1), (0, 1), 2),
        Member("b", "out", (0, 1, 2), (2, 3, 4), 3),
        Member("all", "norm", (0, 1, 2, 3, 4), (0, 1, 2, 3, 4), 5),
        Member("part", "in", (3, 4), (0, 1), 9),  # reads other channels as well: may lose these
        Member("reads_b", "in", (0, 1, 2), (2, 3, 4), 3),
    )
    assert lone_ranges(Group("a", 5, members)) == [{0, 1}, {2, 3, 4}]
    assert lone_ranges(Group("a", 5, members[2:4])) == [{0, 1, 2, 3, 4}]
