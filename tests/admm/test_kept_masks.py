"""Masked == compacted for mixed plans over the whole zoo, in float64: nothing is lost between masks and layers."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from admm.compact import SelectedInput, compact, mask_removed
from admm.kept import Kept, kept_from_slots, kept_of_json
from admm.kept_masks import add_selected, zeros_after_compaction
from admm.plan import STRUCTURES, PruningPlan
from admm.projector import Masks, Projector
from admm.shrink import apply_masks
from admm.slicing import channel_axis, filter_axis
from tests.admm.plans import groups_of, random_model, random_plan, values_of
from tests.admm.toys import kept_by_magnitude
from tests.admm.zoo import ZOO

torch.set_num_threads(1)
RUNNING = [name for name in ZOO if name != "broken"]


def _kept_of(name: str, masks: Masks) -> Kept:
    kept = kept_from_slots(groups_of(name), {group: flags.tolist() for group, flags in masks.slots.items()})
    return add_selected(kept, masks)


def _flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for value in values if value is not None for tensor in _flat(value)]


@torch.no_grad()
def _outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    return _flat(copy.deepcopy(model).eval()(x))


def _assert_masked_equals_compacted(name: str, seed: int, structures: tuple[str, ...] = STRUCTURES) -> None:
    plan = random_plan(name, random.Random(seed), structures)
    model = random_model(name, seed)
    projector = Projector(model, groups_of(name), plan)
    masks = projector.project(values_of(model, projector))
    kept = _kept_of(name, masks)
    assert kept_of_json(kept, model) == kept  # in the form that is saved and believed again

    # from the dense weights, so that what compaction and zeros fail to remove is seen
    small = compact(model, kept)
    zeros = zeros_after_compaction(model, small, kept, masks, plan)
    parameters = dict(small.named_parameters())
    with torch.no_grad():
        for key, mask in zeros.items():
            assert mask.dtype == torch.bool
            assert mask.shape == parameters[key].shape
            assert not bool(mask.all())
            parameters[key].mul_(mask)
    masked = copy.deepcopy(model)
    apply_masks(masked, masks)
    mask_removed(masked, kept)

    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(ZOO[name].example_input.shape, generator=generator, dtype=torch.float64)
    for left, right in zip(_outputs(small, x), _outputs(masked, x), strict=True):
        assert left.shape == right.shape
        assert bool(torch.isfinite(right).all())
        assert float((left - right).abs().max()) <= 1e-9 * max(float(right.abs().max()), 1e-6)
    _assert_sizes(model, small, masks, kept)


def _assert_sizes(model: nn.Module, small: nn.Module, masks: Masks, kept: Kept) -> None:
    """The small layers are as wide as the masks say, and no weight that lives was cut off."""
    for name, sides in kept.items():
        inner = small.get_submodule(name)
        layer = inner.layer if isinstance(inner, SelectedInput) else inner
        if "out" in sides and layer.weight is not None:
            assert layer.weight.shape[filter_axis(layer)] == len(sides["out"])  # type: ignore[union-attr, index]
        if "in" in sides or "select" in sides:
            width = model.get_submodule(name).weight.shape[channel_axis(layer)]  # type: ignore[union-attr, index]
            chosen = set(sides.get("in", range(width))) & set(sides.get("select", range(width)))
            assert layer.weight.shape[channel_axis(layer)] == len(chosen)  # type: ignore[union-attr, index]
    alive = 0
    for key, mask in masks.parameters.items():
        alive += int(mask.expand(dict(model.named_parameters())[key].shape).sum())
    untouched = sum(p.numel() for n, p in model.named_parameters() if n not in masks.parameters)
    assert alive + untouched <= sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in small.parameters()) >= alive


@pytest.mark.parametrize("name", RUNNING)
def test_masked_equals_compacted_for_mixed_plans(name: str) -> None:
    for seed in range(4):
        _assert_masked_equals_compacted(name, seed)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_masked_equals_compacted_for_each_structure_alone(structure: str) -> None:
    for seed, name in enumerate(RUNNING):
        _assert_masked_equals_compacted(name, seed, (structure,))


@settings(deadline=None, max_examples=80)
@given(
    name=st.sampled_from(
        ["concat_residual", "inverted_residual", "unet", "flatten_spatial", "transposed", "chunk_gate"]
    ),
    seed=st.integers(0, 2**31),
)
def test_masked_equals_compacted_for_any_mixed_plan(name: str, seed: int) -> None:
    _assert_masked_equals_compacted(name, seed)


def test_zeros_are_told_by_the_names_of_the_small_network() -> None:
    plan = PruningPlan(
        {"0": {"filter": 0.5}, "3": {"filter": 0.5, "channel": 0.75, "shape": 0.9}, "5.2": {"unstructured": 0.5}}
    )
    model = random_model("chain", 0)
    projector = Projector(model, groups_of("chain"), plan)
    masks = projector.project(values_of(model, projector))
    kept = _kept_of("chain", masks)
    small = compact(model, kept)
    zeros = zeros_after_compaction(model, small, kept, masks, plan)
    assert isinstance(small.get_submodule("3"), SelectedInput)
    assert {name: tuple(mask.shape) for name, mask in zeros.items()} == {
        "3.layer.weight": (6, 2, 3, 3),
        "5.2.weight": (3, 6),
    }
    assert int(zeros["3.layer.weight"].any(0).sum()) == 8  # of 72 dense columns, a tenth, rounded up
    assert int(zeros["5.2.weight"].sum()) == 9


def test_what_leaves_no_zeros_has_no_mask() -> None:
    plan = PruningPlan({"0": {"filter": 0.5, "channel": 0.5}, "3": {"channel": 0.5}, "5.2": {"shape": 0.5}})
    model = random_model("chain", 0)
    projector = Projector(model, groups_of("chain"), plan)
    masks = projector.project(values_of(model, projector))
    kept = _kept_of("chain", masks)
    assert zeros_after_compaction(model, compact(model, kept), kept, masks, plan) == {}
    assert set(kept) == {"0", "1", "3", "5.2"}


def test_a_channel_choice_that_keeps_all_is_left_out() -> None:
    masks = Masks(
        slots={}, channels={"3": torch.ones(8, dtype=torch.bool), "0": torch.tensor([True, False, True])}, parameters={}
    )
    assert add_selected({}, masks) == {"0": {"select": [0, 2]}}
    assert add_selected({"0": {"out": [1]}}, masks) == {"0": {"out": [1], "select": [0, 2]}}


@pytest.mark.parametrize("name", ["chain", "residual", "inverted_residual", "conv3d", "transposed", "linear_only"])
@pytest.mark.parametrize("align", [1, 4])
def test_shapes_known_before_training_are_those_after_it(name: str, align: int) -> None:
    """Widths follow from the plan alone, whatever the weights become."""
    for seed in range(5):
        plan = random_plan(name, random.Random(seed))
        before, after = random_model(name, seed), random_model(name, seed + 100)
        small = compact(before, kept_by_magnitude(before, groups_of(name), plan, align=align))
        projector = Projector(after, groups_of(name), plan, align=align)
        masks = projector.project(values_of(after, projector))
        trained = compact(after, _kept_of(name, masks))
        assert [(n, tuple(p.shape)) for n, p in small.named_parameters()] == [
            (n, tuple(p.shape)) for n, p in trained.named_parameters()
        ]


def test_magnitudes_are_compared_relative_to_each_tensor_and_nothing_is_changed() -> None:
    model = random_model("chain", 0)
    before = copy.deepcopy(model.state_dict())
    assert kept_by_magnitude(model, groups_of("chain"), PruningPlan()) == {}
    kept = kept_by_magnitude(model, groups_of("chain"), PruningPlan({"0": {"filter": 0.5}}))
    with torch.no_grad():
        model.get_submodule("3").weight.mul_(1000.0)  # type: ignore[operator, union-attr]
    assert kept_by_magnitude(model, groups_of("chain"), PruningPlan({"0": {"filter": 0.5}})) == kept
    with torch.no_grad():
        model.get_submodule("3").weight.div_(1000.0)  # type: ignore[operator, union-attr]
    assert set(kept) == {"0", "1", "3"}
    assert all(torch.allclose(value, before[key]) for key, value in model.state_dict().items())
