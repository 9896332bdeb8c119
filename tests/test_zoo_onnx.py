"""Masked == compacted == ONNX Runtime, for mixed plans on one network of every shape: right, or refused by name."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch

from admm.compact import SelectedInput, compact, load_pruned, mask_removed, save_pruned
from admm.errors import PlanError
from admm.kept import kept_from_slots
from admm.kept_masks import add_selected, zeros_after_compaction
from admm.plan import PruningPlan
from admm.projector import Projector
from admm.shrink import apply_masks
from admm.validate import check_plan
from evaluators import check_parity, compare_modules, export_onnx
from tests.admm.plans import groups_of, random_model, random_plan, values_of
from tests.admm.zoo import ZOO

torch.set_num_threads(1)

SHAPES = (
    "chain",
    "residual",
    "concat_residual",
    "inverted_residual",
    "grouped",
    "linear_only",
    "conv1d",
    "conv3d",
    "transposed",
    "flatten_spatial",
    "group_norm",
    "used_twice",
)
#: What these networks must refuse, beside their last layer: (layer, structure, words of the reason).
REFUSED = {
    "grouped": [("0", "filter", "grouped convolution"), ("2", "filter", "grouped"), ("2", "shape", "groups=2")],
    "group_norm": [("0", "filter", "GroupNorm")],
    "inverted_residual": [("depthwise", "channel", "groups=12")],
}


@pytest.mark.parametrize("name", SHAPES)
def test_masked_compacted_and_onnx_agree(name: str, tmp_path: Path) -> None:
    plan = random_plan(name, random.Random(f"{name}/onnx"))
    model = random_model(name, 1).float().eval()
    projector = Projector(model, groups_of(name), plan)
    masks = projector.project(values_of(model, projector))
    kept = add_selected(
        kept_from_slots(groups_of(name), {group: flags.tolist() for group, flags in masks.slots.items()}), masks
    )
    small = compact(model, kept).eval()
    parameters = dict(small.named_parameters())
    with torch.no_grad():
        for key, mask in zeros_after_compaction(model, small, kept, masks, plan).items():
            parameters[key].mul_(mask)
    masked = copy.deepcopy(model)
    apply_masks(masked, masks)
    mask_removed(masked, kept)

    example = ZOO[name].example_input
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn((batch, *example.shape[1:]), generator=generator) for batch in (1, 5)]
    path = export_onnx(small, example, tmp_path / "model.onnx")
    assert compare_modules(masked, small, inputs).require().ok
    assert check_parity(small, path, inputs).require().ok
    assert check_parity(masked, path, inputs).require().ok
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())

    save_pruned(tmp_path, small, kept, plan, projector.effective())
    assert check_parity(load_pruned(ZOO[name].factory(), tmp_path), path, inputs).require().ok


def test_the_sample_holds_selected_inputs_and_every_structure() -> None:
    plans = {name: random_plan(name, random.Random(f"{name}/onnx")) for name in SHAPES}
    assert {s for plan in plans.values() for layer in plan.values() for s in layer} == {
        "filter",
        "channel",
        "shape",
        "unstructured",
    }
    model = random_model("residual", 1)
    small = compact(model, {"a": {"select": [0, 3]}})
    assert isinstance(small.get_submodule("a"), SelectedInput)
    assert sum(plan.sparsity(layer, "channel") > 0 for plan in plans.values() for layer in plan) >= 5


@pytest.mark.parametrize("name", SHAPES)
def test_what_cannot_be_removed_is_refused_by_name(name: str) -> None:
    model, groups = ZOO[name].factory(), groups_of(name)
    last = groups.layers[-1]
    for layer, structure, words in [(last, "filter", "network's output"), *REFUSED.get(name, [])]:
        with pytest.raises(PlanError) as caught:
            check_plan(model, groups, PruningPlan({layer: {structure: 0.5}}))
        assert f"layer {layer!r}" in str(caught.value)
        assert words in str(caught.value)
