"""Masked == compacted on the whole zoo, `select`, saving and loading, and hostile plans."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from admm.compact import SelectedInput, compact, load_pruned, mask_removed, save_pruned
from admm.errors import GroupError
from admm.groupmap import GroupMap
from admm.groups import find_groups
from admm.kept import Kept, kept_from_slots, kept_of_json
from admm.plan import PruningPlan
from admm.slicing import channel_axis, filter_axis, prunable_layers, select_obstacle, width_of
from admm.verify import random_slots, randomise
from tests.admm.zoo import ZOO

torch.set_num_threads(1)
PRUNABLE = [name for name in ZOO if name not in ("attention", "recurrent", "broken", "flatten_after_concat")]


@lru_cache
def _groups(name: str) -> GroupMap:
    return find_groups(ZOO[name].factory(), ZOO[name].example_input)


def _model(name: str, seed: int = 0) -> nn.Module:
    model = ZOO[name].factory().double()
    randomise(model, torch.Generator().manual_seed(seed))
    return model


def _random_kept(name: str, seed: int, *, select: bool = False) -> Kept:
    """Random slots of every group; with `select`, random input channels of some ungrouped consumers as well."""
    groups, generator = _groups(name), torch.Generator().manual_seed(seed)
    flags = {
        group.name: random_slots(group, generator, keep=0.3 + 0.1 * (seed % 6)) for group in groups.groups.values()
    }
    kept = kept_from_slots(groups, {key: value for key, value in flags.items() if value is not None})
    if select:
        for layer, module in prunable_layers(ZOO[name].factory()).items():
            width = width_of(module, "in")
            if width > 2 and select_obstacle(module) is None:
                arriving = kept.get(layer, {}).get("in", list(range(width)))
                chosen = sorted({arriving[0], *(c for c in arriving if torch.rand((), generator=generator) < 0.6)})
                kept.setdefault(layer, {})["select"] = chosen
    return kept_of_json(kept, ZOO[name].factory())


def _flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for value in values for tensor in _flat(value)]


def _outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return _flat(copy.deepcopy(model).eval()(x))


def _assert_same(a: nn.Module, b: nn.Module, x: Tensor, tolerance: float = 1e-9) -> None:
    for left, right in zip(_outputs(a, x), _outputs(b, x), strict=True):
        assert left.shape == right.shape
        assert torch.isfinite(right).all()
        assert (left - right).abs().max() <= tolerance * right.abs().max()


def _input(name: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(ZOO[name].example_input.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", PRUNABLE)
@pytest.mark.parametrize("select", [False, True])
def test_masked_equals_compacted(name: str, select: bool) -> None:
    for seed in range(4):
        model, kept = _model(name, seed), _random_kept(name, seed, select=select and name != "tied_weights")
        masked = copy.deepcopy(model)
        mask_removed(masked, kept)
        small = compact(model, kept)
        _assert_same(small, masked, _input(name, seed))
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["residual", "concat_residual", "inverted_residual", "unet", "chunk_gate", "transposed"]),
    seed=st.integers(0, 2**31),
    select=st.booleans(),
)
def test_masked_equals_compacted_for_any_keep(name: str, seed: int, select: bool) -> None:
    model, kept = _model(name, seed), _random_kept(name, seed, select=select)
    masked = copy.deepcopy(model)
    mask_removed(masked, kept)
    _assert_same(compact(model, kept), masked, _input(name, seed))
    before = copy.deepcopy(masked.state_dict())
    mask_removed(masked, kept)
    assert all(torch.equal(value, before[key]) for key, value in masked.state_dict().items())
    _assert_same(compact(masked, kept), masked, _input(name, seed))


def test_the_masked_network_really_lost_something_and_its_batch_norm_too() -> None:
    model = _model("residual")
    groups = _groups("residual")
    kept = kept_from_slots(groups, {"stem": [True] * 5 + [False] * 3})
    dense = copy.deepcopy(model)
    mask_removed(model, kept)
    bn = model.get_submodule("bn0")
    assert all(bool((getattr(bn, key)[5:] == 0).all()) for key in ("weight", "bias", "running_mean"))
    assert bool((bn.running_var[5:] == 1).all())  # type: ignore[index]
    assert bool((model.get_submodule("a").weight[:, 5:] == 0).all())  # type: ignore[index]
    difference = _outputs(model, _input("residual", 0))[0] - _outputs(dense, _input("residual", 0))[0]
    assert difference.abs().max() > 1e-6


def test_the_small_model_is_plain_and_its_attributes_follow() -> None:
    model = ZOO["inverted_residual"].factory().train()
    model.get_submodule("expand").requires_grad_(False)
    kept = kept_from_slots(_groups("inverted_residual"), {"expand": [i % 3 != 0 for i in range(12)]})
    small = compact(model, kept)
    depthwise = small.get_submodule("depthwise")
    assert isinstance(depthwise, nn.Conv2d)
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (8, 8, 8)
    assert small.get_submodule("bn1").num_features == 8
    assert small.get_submodule("project").in_channels == 8
    assert all(module.training for module in small.modules())
    assert not small.get_submodule("expand").weight.requires_grad
    assert depthwise.weight.requires_grad
    assert depthwise.weight.is_leaf
    assert all(p.is_contiguous() for p in small.parameters())
    assert {type(m) for m in small.modules()} == {type(m) for m in model.modules()}
    assert model.get_submodule("expand").out_channels == 12
    loss = small(torch.randn(2, 3, 8, 8)).sum()
    loss.backward()
    assert depthwise.weight.grad is not None


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(6, 4, 3), (2, 6, 9)),
        (nn.Conv2d(6, 4, 3, stride=2, padding=1), (2, 6, 8, 8)),
        (nn.Conv2d(6, 4, 3), (6, 8, 8)),
        (nn.Conv3d(6, 4, 2), (2, 6, 4, 4, 4)),
        (nn.ConvTranspose1d(6, 4, 3), (2, 6, 9)),
        (nn.ConvTranspose2d(6, 4, 3, stride=2), (2, 6, 5, 5)),
        (nn.ConvTranspose3d(6, 4, 2), (2, 6, 3, 3, 3)),
        (nn.Linear(6, 4), (2, 6)),
        (nn.Linear(6, 4), (2, 5, 6)),
    ],
)
def test_select_indexes_the_input_and_slices_the_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(layer).double()
    kept: Kept = {"0": {"select": [0, 2, 5], "out": [1, 3]}}
    masked = copy.deepcopy(model)
    mask_removed(masked, kept)
    small = compact(model, kept)
    wrapper = small[0]  # type: ignore[index]
    assert isinstance(wrapper, SelectedInput)
    assert wrapper.layer.weight.shape[channel_axis(layer)] == 3
    assert wrapper.layer.weight.shape[filter_axis(layer)] == 2
    x = torch.randn(shape, dtype=torch.float64)
    channels = shape.index(6) - len(shape) if not isinstance(layer, nn.Linear) else -1
    filters = 1 - layer.weight.ndim if not isinstance(layer, nn.Linear) else -1  # type: ignore[operator, union-attr]
    assert channels == filters or shape.count(6) > 1
    kept_filters = masked(x).index_select(filters, torch.tensor([1, 3]))
    assert torch.allclose(small(x), kept_filters, rtol=0, atol=1e-12)


def test_select_is_relative_to_what_arrives_and_needs_no_index_when_all_of_it_is_kept() -> None:
    groups = _groups("chain")
    kept = kept_from_slots(groups, {"0": [False, True, True, True, False, True, True, True]})
    kept["3"]["select"] = [0, 2, 5, 6]
    small = compact(_model("chain"), kept)
    wrapper = small.get_submodule("3")
    assert isinstance(wrapper, SelectedInput)
    assert wrapper.index.tolist() == [1, 3, 4]
    assert "3.index" not in small.state_dict()
    kept["3"]["select"] = kept["3"]["in"]
    assert isinstance(compact(_model("chain"), kept).get_submodule("3"), nn.Conv2d)


def test_a_layer_used_under_two_names_is_replaced_under_both() -> None:
    conv = nn.Conv2d(6, 6, 1)
    model = nn.Sequential(conv, nn.ReLU(), conv).double()
    kept: Kept = {"0": {"select": [1, 4]}}
    masked = copy.deepcopy(model)
    mask_removed(masked, kept)
    small = compact(model, kept)
    assert small[0] is small[2]  # type: ignore[index]
    _assert_same(small, masked, torch.randn(1, 6, 4, 4, dtype=torch.float64))


def test_select_on_a_model_that_is_one_layer() -> None:
    small = compact(nn.Linear(4, 3), {"": {"select": [0, 3]}})
    assert isinstance(small, SelectedInput)
    assert small(torch.randn(2, 4)).shape == (2, 3)


def test_kept_from_slots_refuses_what_cannot_be() -> None:
    groups = _groups("residual")
    with pytest.raises(GroupError, match="'stem' would lose all its 8 filters"):
        kept_from_slots(groups, {"stem": [False] * 8})
    with pytest.raises(GroupError, match="8 slots, got 3"):
        kept_from_slots(groups, {"stem": [True] * 3})
    with pytest.raises(GroupError, match="did you mean 'stem'"):
        kept_from_slots(groups, {"stemm": [True] * 8})
    with pytest.raises(GroupError, match="network's output"):
        kept_from_slots(groups, {"head.2": [True] * 3})
    assert kept_from_slots(groups, {"stem": [True] * 8}) == {}
    assert kept_from_slots(groups, {}) == {}


def test_a_concat_group_may_not_empty_one_of_its_owners() -> None:
    flags = [False] * 5 + [True] * 7
    with pytest.raises(GroupError, match="'a' would lose all its 5 filters"):
        kept_from_slots(_groups("concat_residual"), {"a": flags})


@pytest.mark.parametrize(
    ("hostile", "words"),
    [
        ([], "maps module names"),
        ({"nowhere": {"out": [0]}}, "'nowhere'"),
        ({7: {"out": [0]}}, "names 7"),
        ({"stem": [0, 1]}, "maps sides"),
        ({"stem": {"left": [0]}}, "'left'"),
        ({"stem": {"out": "01"}}, "list of indices"),
        ({"stem": {"out": []}}, "keep at least one"),
        ({"stem": {"out": [0, 8]}}, r"outside \[0, 8\)"),
        ({"stem": {"out": [-1, 3]}}, r"outside \[0, 8\)"),
        ({"stem": {"out": [0, 10**400]}}, "outside"),
        ({"stem": {"out": [1, 0]}}, "ascend"),
        ({"stem": {"out": [1, 1]}}, "ascend"),
        ({"stem": {"out": [True, 3]}}, "whole number"),
        ({"stem": {"out": [0.0]}}, "whole number"),
        ({"stem": {"out": [None]}}, "whole number"),
        ({"bn0": {"in": [0]}}, "'in'"),
        ({"head.0": {"out": [0]}}, "nothing of it can be removed"),
        ({"a": {"in": [0, 1], "select": [2, 3]}}, "none of the channels"),
    ],
)
def test_a_hostile_kept_is_refused_by_name(hostile: Any, words: str) -> None:
    model = ZOO["residual"].factory()
    for act in (kept_of_json, lambda kept, model: compact(model, kept), lambda kept, model: mask_removed(model, kept)):
        with pytest.raises(GroupError, match=words) as caught:
            act(hostile, model)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "kept", "words"),
    [
        ("grouped", {"2": {"select": [0]}}, "grouped"),
        ("grouped", {"2": {"out": [0, 1]}}, "grouped"),
        ("inverted_residual", {"depthwise": {"select": [0]}}, "depthwise"),
        ("tied_weights", {"a": {"out": [0]}}, "shared with 'b'"),
        ("tied_weights", {"b": {"select": [0]}}, "shared with 'a'"),
        ("weight_norm", {"2": {"out": [0]}}, "parametrization"),
        ("weight_standardization", {"2": {"select": [0]}}, "no plain layer"),
        ("prelu", {"3": {"out": [0]}}, "nothing of it"),
    ],
)
def test_what_cannot_be_sliced_is_refused(name: str, kept: Kept, words: str) -> None:
    with pytest.raises(GroupError, match=words):
        compact(ZOO[name].factory(), kept)


PLAN = PruningPlan({"0": {"filter": 0.5}})


def _saved(folder: Path, name: str = "chain", seed: int = 0) -> tuple[nn.Module, Kept]:
    kept = _random_kept(name, seed, select=name != "tied_weights")
    torch.manual_seed(seed)
    small = compact(ZOO[name].factory(), kept)
    save_pruned(folder, small, kept, PLAN, PLAN, {"accuracy": 0.5})
    return small.eval(), kept


@pytest.mark.parametrize("name", ["chain", "residual", "tied_weights", "unet", "instance_norm", "prelu"])
def test_save_and_load_give_the_same_network(name: str, tmp_path: Path) -> None:
    small, kept = _saved(tmp_path / "deep" / "er", name)
    loaded = load_pruned(ZOO[name].factory(), tmp_path / "deep" / "er")
    assert not loaded.training
    x = _input(name, 0).float()
    assert torch.equal(_outputs(loaded, x)[0], _outputs(small, x)[0])
    content = json.loads((tmp_path / "deep" / "er" / "plan.json").read_text())
    assert content["kept"] == kept
    assert content["digest"] == PLAN.digest()
    assert content["schema"] == 1
    assert content["accuracy"] == 0.5
    assert PruningPlan.from_json(json.dumps(content)) == PLAN
    assert sorted(p.name for p in (tmp_path / "deep" / "er").iterdir()) == ["plan.json", "weights.safetensors"]


def _edit(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**content, **changes}))


def test_a_damaged_or_foreign_folder_is_one_clear_line(tmp_path: Path) -> None:
    def refused(words: str, model: nn.Module | None = None) -> None:
        with pytest.raises(GroupError, match=words) as caught:
            load_pruned(model or ZOO["chain"].factory(), tmp_path)
        assert "\n" not in str(caught.value)

    refused("No such file")
    _saved(tmp_path)
    refused("which the model has not|has no|lack|hold", ZOO["residual"].factory())
    other_head = ZOO["chain"].factory()
    other_head.get_submodule("5").add_module("2", nn.Linear(12, 5))
    refused("build the same dense model", other_head)
    refused("float64", ZOO["chain"].factory().double())
    _edit(tmp_path, kept={"0": {"out": [0, 99]}})
    refused("outside")
    _edit(tmp_path, kept={})
    refused("build the same dense model")
    _edit(tmp_path, schema=2)
    refused("no plan of a pruned network")
    (tmp_path / "plan.json").write_text("[" * 100_000)
    refused("damaged")
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe{")
    refused("damaged")
    (tmp_path / "plan.json").write_text("[]")
    refused("no plan")
    _saved(tmp_path)
    weights = (tmp_path / "weights.safetensors").read_bytes()
    for torn in (b"", weights[:5], weights[:-7], b"\xff" * 64):
        (tmp_path / "weights.safetensors").write_bytes(torn)
        refused("damaged")


def test_extra_may_not_overwrite_the_plan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'kept'"):
        save_pruned(tmp_path, nn.Linear(2, 2), {}, PLAN, PLAN, {"kept": {}})
    assert not list(tmp_path.iterdir())
