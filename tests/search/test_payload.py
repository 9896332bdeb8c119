"""A pruned module as bytes: it comes back to the last bit, and nothing else passes for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from admm.compact import compact, save_pruned
from admm.kept import Kept
from admm.plan import PruningPlan
from evaluators.errors import EvaluationError
from search import payload
from search.payload import Payload, dense_payload

KEPT: Kept = {"0": {"out": [1, 4, 6]}, "1": {"out": [1, 4, 6]}, "3": {"in": [1, 4, 6]}}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()).eval()


SMALL = compact(network(), KEPT)
CONTENT = Payload.of(SMALL, KEPT, {"3": "kept-columns"}).to_bytes()


def same(a: nn.Module, b: nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return list(states[0]) == list(states[1]) and all(torch.equal(v, states[1][n]) for n, v in states[0].items())


def test_a_module_comes_back_to_the_last_bit() -> None:
    read = Payload.from_bytes(CONTENT)
    dense = network(seed=1)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    assert same(read.module(dense), SMALL)
    assert read.choices == {"3": "kept-columns"}
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert read.to_bytes() == CONTENT


def test_a_trial_s_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    plan = PruningPlan({"0": {"filter": 0.625}})
    form = {"torch-cpu": {"precision": "fp32", "lowering": {"3": "kept-columns"}}}
    save_pruned(tmp_path, SMALL, KEPT, plan, plan, extra={"modules": form})
    assert Payload.of_trial(tmp_path, "torch-cpu").to_bytes() == CONTENT
    assert Payload.of_trial(tmp_path, "cuda").choices == {}
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(EvaluationError, match="its weights or plan are gone"):
        Payload.of_trial(tmp_path, "torch-cpu")


@pytest.mark.parametrize(
    "modules", [[], {"torch-cpu": 3}, {"torch-cpu": {"lowering": [1]}}, {"torch-cpu": {"lowering": {"3": 1}}}]
)
def test_a_damaged_plan_is_one_line(tmp_path: Path, modules: object) -> None:
    plan = PruningPlan({})
    save_pruned(tmp_path, SMALL, KEPT, plan, plan, extra={"modules": modules})
    with pytest.raises(EvaluationError, match="is damaged"):
        Payload.of_trial(tmp_path, "torch-cpu")


def test_tied_weights_and_the_dense_network(tmp_path: Path) -> None:
    layer = nn.Linear(4, 4)
    tied = nn.Sequential(layer, nn.ReLU(), layer).eval()
    assert same(Payload.from_bytes(Payload.of(tied, {}).to_bytes()).module(tied), tied)
    (tmp_path / "weights.safetensors").write_bytes(save(dict(network(3).state_dict())))
    dense = Payload.from_bytes(dense_payload(tmp_path / "weights.safetensors"))
    assert same(dense.module(network()), network(3))
    with pytest.raises(EvaluationError, match="cannot be read"):
        dense_payload(tmp_path / "absent")


def test_another_network_is_named(tmp_path: Path) -> None:
    read = Payload.from_bytes(CONTENT)
    wider = nn.Sequential(nn.Conv2d(1, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    for other in (wider, nn.Sequential(nn.Linear(3, 3))):
        with pytest.raises(EvaluationError) as caught:
            read.module(other)
        assert "\n" not in str(caught.value)


def test_a_network_that_is_too_large_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "MOST_BYTES", 100)
    with pytest.raises(EvaluationError, match=r"a rig of modules takes .*: measure this network as an ONNX file"):
        Payload.of(SMALL, KEPT).to_bytes()


@settings(deadline=None, max_examples=200)
@given(content=st.binary(max_size=60) | st.integers(0, len(CONTENT) - 1).map(lambda n: CONTENT[:n]))
def test_what_is_no_payload_is_refused(content: bytes) -> None:
    with pytest.raises(EvaluationError) as caught:
        Payload.from_bytes(content)
    assert str(caught.value).startswith("not a module for a rig: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"prunefront": "not JSON"},
        {"prunefront": "[]"},
        {"prunefront": json.dumps({"schema": 2, "kept": {}, "choices": {}})},
        {"prunefront": json.dumps({"schema": 1, "kept": {}})},
        {"prunefront": json.dumps({"schema": 1, "kept": {}, "choices": {"3": 1}})},
    ],
)
def test_safetensors_of_others_are_refused(metadata: dict[str, str] | None) -> None:
    with pytest.raises(EvaluationError, match="not a module for a rig"):
        Payload.from_bytes(save(load(CONTENT), metadata=metadata))
