"""The comparison with other methods runs and is fair in what can be counted; its accuracies are not judged here."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.search.real_data import real_data

FOLDER = Path(__file__).parents[2] / "benchmarks"
SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The script as a module: its imports are those of a script in its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("side_by_side")


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / "side_by_side.py"), *options],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.slow
@pytest.mark.data
def test_all_sides_are_as_small_as_asked_and_spend_the_same_epochs() -> None:
    real_data("mnist", SOURCE)
    done = run("--quick", "--seeds", "0")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"claim", "figure", "unit", "bar", "holds", "details"}
    assert result["holds"] is False  # a reduced form decides nothing
    rows = {name: row for name, row in result["details"].items() if isinstance(row, dict)}
    assert set(rows) == {"single-weights", "filters"}
    assert result["figure"] == min(row["advantage_pp"] for row in rows.values())
    for row in rows.values():
        assert all(row["within"].values())
        assert row["best_other"] != "ADMM"
        means = row["val_mean"]
        assert row["advantage_pp"] == pytest.approx(100 * (means["ADMM"] - means[row["best_other"]]), abs=1e-3)
        assert means[row["best_other"]] == max(mean for side, mean in means.items() if side != "ADMM")
        assert {outcome["epochs"] for found in row["sides"].values() for outcome in found} == {4.0}
    weights = rows["single-weights"]["sides"]
    assert len(weights) == 3
    for (outcome,) in weights.values():
        assert 60.0 <= outcome["compression_x"] < 60.2
        kept = sum(outcome["kept"].values()) + outcome["idle"]
        assert kept == round(266_200 / outcome["compression_x"])
    assert weights["ADMM"][0]["idle"] == 0
    for (outcome,) in rows["filters"]["sides"].values():
        assert 0.13 < outcome["mac_fraction"] <= 0.15


@pytest.mark.slow
def test_without_the_data_it_says_where_they_are_from(tmp_path: Path) -> None:
    done = run("--quick", PRUNEFRONT_DATA=str(tmp_path))
    assert done.returncode == 2
    assert "skipped:" in done.stdout
    assert SOURCE in done.stdout


@pytest.mark.slow
def test_reduced_figures_are_not_recorded() -> None:
    done = run("--quick", "--record")
    assert done.returncode == 2
    assert "full benchmark only" in done.stderr


@settings(max_examples=40, deadline=None)
@given(scores=st.lists(st.floats(0, 10, width=32), min_size=1, max_size=30), share=st.floats(0.0, 1.0))
def test_largest_keeps_so_many_and_none_below_one_it_removes(bench: Any, scores: list[float], share: float) -> None:
    values = torch.tensor(scores)
    flags = bench.largest(values, share)
    assert int(flags.sum()) == max(int(len(scores) * share + 1e-9), 1)
    if not bool(flags.all()):
        assert float(values[flags].min()) >= float(values[~flags].max())


@pytest.mark.parametrize("uniform", [True, False])
def test_gradual_masks_follow_the_cubic_and_end_at_what_was_asked(bench: Any, uniform: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 10))
    masks = bench.GradualMasks(model, 20.0, steps=400, uniform=uniform)
    kept = {}
    for step in range(1, 401):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.001 * torch.randn_like(p))
        masks.after_step()
        kept[step] = sum(int(layer.weight.count_nonzero()) for layer in model)
    assert kept[99] == 2500
    for step in (100, 200, 300):
        sparsity = 0.95 * (1.0 - (1.0 - step / 400) ** 3)  # Zhu and Gupta 2017, equation 1
        assert abs(kept[step] - 2500 * (1.0 - sparsity)) <= 2
        assert kept[step + 50] == kept[step]
    assert kept[400] == 125
    assert {name: int(keep.sum()) for name, keep in masks.keep.items()} == {
        name: int(layer.weight.count_nonzero()) for name, layer in model.named_children()
    }
    if uniform:
        assert [int(keep.sum()) for keep in masks.keep.values()] == [100, 25]


def test_a_masked_weight_comes_back_with_its_last_value(bench: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    weight = model[0].weight
    with torch.no_grad():
        weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    masks = bench.GradualMasks(model, 2.0, steps=300, uniform=True)  # two of four stay at steps 200 and 300
    for _ in range(200):
        masks.after_step()
    assert weight.tolist() == [[4.0, 3.0, 0.0, 0.0]]
    with torch.no_grad():
        weight.copy_(torch.tensor([[4.0, 0.5, 0.0, 0.0]]))
    for _ in range(100):
        masks.after_step()
    assert weight.tolist() == [[4.0, 0.0, 2.0, 0.0]]


def test_uniform_l1_takes_the_weakest_filters_and_no_more_than_needed(bench: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 40, 3), nn.ReLU(), nn.Conv2d(40, 60, 3), nn.Flatten(), nn.Linear(960, 5))
    example = torch.zeros(1, 1, 8, 8)
    dense = bench.ideal_macs(model, example)
    small = bench.without_filters(model, example, 0.15)
    found = bench.ideal_macs(small, example)
    assert 0.13 * dense < found <= 0.15 * dense
    widths: list[int] = [layer.weight.shape[0] for layer in bench.prunable_layers(small).values()]
    assert widths[-1] == 5
    assert abs(widths[0] / 40 - widths[1] / 60) <= 1 / 40
    first, kept = next(iter(bench.prunable_layers(model).values())), next(iter(bench.prunable_layers(small).values()))
    strongest = first.weight.abs().flatten(1).sum(1).topk(widths[0]).indices.sort().values
    assert torch.equal(first.weight[strongest], kept.weight)
    with pytest.raises(ValueError, match="out of reach of uniform"):
        bench.without_filters(model, example, 1e-9)
