"""Two processes that share each batch end with the network of one that takes it whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from admm.errors import PruneError
from admm.team import Team
from tests.admm.team_worker import PLANS, finish, run_of

ROOT = Path(__file__).parents[2]
SIZE = 2
#: Sums run in another order: float32 has seven digits, and training takes some of them.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    folder = tmp_path_factory.mktemp("team")
    command = [sys.executable, "-m", "tests.admm.team_worker"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([*command, str(rank), str(SIZE), str(folder)], cwd=ROOT, env=environment)
        for rank in range(SIZE)
    ]
    try:
        assert [process.wait(timeout=600) for process in processes] == [0] * SIZE
    finally:
        for process in processes:
            process.kill()
    return folder


def facts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"facts-{rank}.json").read_text()) for rank in range(SIZE)]


@pytest.mark.parametrize("name", list(PLANS))
def test_every_process_holds_the_same_bits(name: str, folder: Path) -> None:
    ours, theirs = (load_file(folder / f"{name}-{rank}.safetensors") for rank in range(SIZE))
    assert ours.keys() == theirs.keys()
    parts = {key.split(".")[2] for key in ours if ".admm." in key}
    assert {"t", "u", "parameters"} <= parts  # Z - U, U and the masks, after each iteration
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("name", list(PLANS))
def test_they_end_where_one_process_ends(name: str, folder: Path) -> None:
    torch.set_num_threads(1)
    tensors, alone = finish(run_of(name, None))
    together, told = load_file(folder / f"{name}-0.safetensors"), facts(folder)[0][name]
    assert together.keys() == tensors.keys()
    assert [key for key, value in tensors.items() if not close(value, together[key])] == []
    assert told["kept"] == alone["kept"]
    assert told["epochs"] == alone["epochs"]
    for (loss, accuracy), (other_loss, other_accuracy) in zip(alone["reports"], told["reports"], strict=True):
        assert loss == pytest.approx(other_loss, rel=TOLERANCE)
        assert accuracy == other_accuracy


def close(one: Tensor, other: Tensor) -> bool:
    """Masks and counts to the bit; weights, moments and statistics beside the largest of them."""
    if not one.is_floating_point():
        return torch.equal(one, other)
    return float((one - other).abs().max()) <= TOLERANCE * max(1.0, float(one.abs().max()))


def test_what_differs_between_processes_is_named_by_all(folder: Path) -> None:
    for told in facts(folder):
        assert told["same"].startswith("the processes of this run hold different values of b now")


def test_the_first_one_speaks_for_all(folder: Path) -> None:
    assert [told["first"] for told in facts(folder)] == [0.25] * SIZE


def test_a_batch_that_is_too_small(folder: Path) -> None:
    for told in facts(folder):
        assert told["few"] == "a batch of 1 samples for 2 processes: each needs one, take larger batches"


def test_no_team_without_a_group() -> None:
    with pytest.raises(PruneError, match="call init_process_group"):
        Team()
