"""Run states on disk: read back bit by bit, whole or not at all, and optimisers that go on as if never stopped."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from admm import checkpoint
from admm.checkpoint import pack_optimizer, read_state, save_state, unpack_optimizer
from admm.errors import PruneError
from admm.training import make_optimizer

torch.set_num_threads(1)


def _tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    return {
        "model.weight": base,
        "transposed": base.t(),
        "alias": base[1],
        "double": torch.randn(3, generator=generator, dtype=torch.float64),
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "mask": base > 0,
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
    }


def _same_bits(a: Tensor, b: Tensor) -> bool:
    same = a.dtype == b.dtype and a.shape == b.shape
    return same and a.contiguous().flatten().view(torch.uint8).equal(b.contiguous().flatten().view(torch.uint8))


def test_a_state_comes_back_bit_by_bit(tmp_path: Path) -> None:
    values = {"phase": "admm", "list": [1, 2.5, None, True], "kept": {"a": {"out": [0, 3]}}, "tiny": 5e-324, "ü": "ß"}
    tensors = _tensors()
    save_state(tmp_path / "state", tensors, values)
    read, again = read_state(tmp_path / "state")
    assert again == values
    assert set(read) == set(tensors)
    assert all(_same_bits(read[name], tensor) for name, tensor in tensors.items())
    assert os.listdir(tmp_path) == ["state"]


def test_a_state_may_hold_no_tensor(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {}, {"phase": "done"})
    assert read_state(tmp_path / "state") == ({}, {"phase": "done"})


def test_parameters_are_saved_without_their_graph(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(2))
    save_state(tmp_path / "state", {"p": parameter, "view": parameter * 2}, {})
    read, _ = read_state(tmp_path / "state")
    assert not read["p"].requires_grad
    assert read["view"].tolist() == [2.0, 2.0]


def test_what_cannot_be_written_leaves_the_old_state_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(tmp_path / "state", {"a": torch.ones(1)}, {"step": 1})
    with pytest.raises(TypeError):
        save_state(tmp_path / "state", {"a": torch.zeros(1)}, {"step": object()})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_state(tmp_path / "state", {"a": torch.zeros(1)}, {"step": 2})
    assert os.listdir(tmp_path) == ["state"]
    assert read_state(tmp_path / "state")[1] == {"step": 1}


def _foreign(path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"a": torch.ones(1)}, path, metadata=metadata)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a state at all"),
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        lambda path: path.write_bytes(b"\xff" * 200),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: _foreign(path, None),
        lambda path: _foreign(path, {"format": "pt"}),
        lambda path: _foreign(path, {"values": "{"}),
        lambda path: _foreign(path, {"values": "[]"}),
        lambda path: _foreign(path, {"values": "[" * 100_000}),
        lambda path: _foreign(path, {"values": "9" * 5000}),
    ],
)
def test_a_torn_or_foreign_file_is_one_line(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    path = tmp_path / "state"
    save_state(path, {"a": torch.ones(4)}, {"step": 1})
    damage(path)
    with pytest.raises(PruneError) as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3},
    "plain sgd": {"kind": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0},
    "adamw": {"kind": "adamw", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-2},
}


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).requires_grad_()


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, steps: int) -> None:
    for step in range(first, first + steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 3])
def test_an_optimiser_goes_on_bit_equal_through_the_file(name: str, before: int, tmp_path: Path) -> None:
    straight = _network()
    optimizer = make_optimizer(straight.parameters(), **OPTIMIZERS[name])
    _train(straight, optimizer, 0, before)
    optimizer.param_groups[0]["lr"] = 0.03  # a schedule moved it
    tensors, values = pack_optimizer(optimizer)
    save_state(tmp_path / "state", tensors, {"optimizer": values})
    resumed = copy.deepcopy(straight)
    _train(straight, optimizer, before, 4)

    tensors, content = read_state(tmp_path / "state")
    fresh = make_optimizer(resumed.parameters(), **OPTIMIZERS[name])
    unpack_optimizer(fresh, tensors, content["optimizer"])
    assert fresh.param_groups[0]["lr"] == 0.03
    _train(resumed, fresh, before, 4)
    for key, value in straight.state_dict().items():
        assert _same_bits(value, resumed.state_dict()[key]), key


def test_a_packed_optimiser_is_json_and_a_copy_of_the_present(tmp_path: Path) -> None:
    model = _network()
    optimizer = make_optimizer(model.parameters(), **OPTIMIZERS["adamw"])
    _train(model, optimizer, 0, 1)
    tensors, values = pack_optimizer(optimizer)
    assert json.loads(json.dumps(values))["groups"][0]["betas"] == [0.9, 0.999]
    assert {name.partition(".")[2] for name in tensors} == {"step", "exp_avg", "exp_avg_sq"}
    assert len(tensors) == 3 * sum(1 for _ in model.parameters())
    save_state(tmp_path / "state", tensors, values)
    saved = tensors["0.exp_avg"].clone()
    _train(model, optimizer, 1, 1)
    assert not torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], saved)
    assert torch.equal(read_state(tmp_path / "state")[0]["0.exp_avg"], saved)
