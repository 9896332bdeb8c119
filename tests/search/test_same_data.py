"""Workers call the user's task function anew: what it draws is the same everywhere, or the run is refused."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from search.atomic import json_text
from search.bench import DATA_NAME, require_same_data
from search.errors import UserError
from search.store import RunStore
from search.tasks import Arrays, Task, load_task, prepare
from search.tasks.base import PreparedTask
from search.tasks.fingerprint import fingerprint, same_data

X = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()

UNSEEDED = """
import random
import numpy as np, torch
from torch import nn
from search.tasks import Arrays, Task

at_import = torch.randperm(40)

def task(by):
    x = torch.arange(40.0)[:, None]
    order = {
        "torch": lambda: torch.randperm(40),
        "numpy": lambda: torch.as_tensor(np.random.permutation(40)),
        "python": lambda: torch.tensor(random.sample(range(40), 40)),
        "import": lambda: at_import,
        "entropy": lambda: torch.as_tensor(np.random.default_rng().permutation(40)),
    }[by]()
    y = torch.arange(40) % 2
    train, val = order[:30], order[30:]
    return Task(name="u", model=lambda: nn.Linear(1, 2), train=Arrays(x[train], y[train]), val=Arrays(x[val], y[val]))
"""


class OwnNoise(Dataset[tuple[Tensor, int]]):
    """Augments from a generator of its own, which nobody can seed from outside."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng()

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index] + float(self.rng.normal()), int(Y[index])


def split(train: Tensor, val: Tensor, y: Tensor = Y) -> PreparedTask:
    arrays = Arrays(X[train], y[train]), Arrays(X[val], y[val])
    return prepare(Task(name="s", model=lambda: nn.Linear(6, 2), train=arrays[0], val=arrays[1]))


@pytest.fixture
def unseeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "unseeded.py").write_text(UNSEEDED)
    yield tmp_path
    sys.modules.pop("unseeded", None)


@pytest.mark.parametrize("by", ["torch", "numpy", "python", "import"])
def test_an_unseeded_split_is_the_same_in_every_process(unseeded: Path, by: str) -> None:
    seen = []
    for seed in (1, 2):
        sys.modules.pop("unseeded", None)  # as in a new process
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        expected = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        task = load_task("unseeded:task", {"by": by}, unseeded)
        assert isinstance(task.val, Arrays)
        seen.append(task.val.x)
        assert torch.equal(torch.get_rng_state(), expected[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == expected[1:]
    assert torch.equal(seen[0], seen[1])
    assert sorted(seen[0].flatten().tolist()) != list(range(30, 40)), "it was drawn"


def test_a_split_from_entropy_is_refused(unseeded: Path) -> None:
    store = RunStore.create(unseeded / "run", "task: a:b\n", {})
    began = prepare(load_task("unseeded:task", {"by": "entropy"}, unseeded))
    require_same_data(store, began)  # a run of before there was a record
    record = store.baseline_dir / DATA_NAME
    record.write_text(json_text(fingerprint(began, repeat=True)))
    require_same_data(store, began)
    later = prepare(load_task("unseeded:task", {"by": "entropy"}, unseeded))
    with pytest.raises(UserError, match=r"other data than when the run began .* seed its split, or start a new run"):
        require_same_data(store, later)
    record.write_text("{torn")
    with pytest.raises(UserError, match=r"data\.json: not JSON"):
        require_same_data(store, began)


def test_what_is_other_data_and_what_is_not() -> None:
    order = torch.arange(300)
    known = json.loads(json_text(fingerprint(split(order[:200], order[200:]), repeat=True)))
    assert None not in (*known["val"].values(), *known["train"].values())

    def same(task: PreparedTask) -> bool:
        return same_data(known, fingerprint(task))

    assert same(split(order[:200], order[200:].flip(0))), "the order of validation does not matter"
    swapped = torch.cat([order[:199], order[200:201], order[199:200], order[201:]])
    assert not same(split(swapped[:200], swapped[200:])), "one sample changed sides"
    assert not same(split(order[:200], order[201:]))
    assert not same(split(order[:199], order[200:]))
    relabelled = Y.clone()
    relabelled[250] = 1 - relabelled[250]
    assert not same(split(order[:200], order[200:], relabelled))
    assert not same(split(order[:200].flip(0), order[200:])), "another first training batch"


def test_rounding_is_not_other_data() -> None:
    known = fingerprint(prepare(Task(name="s", model=nn.Identity, train=Arrays(X, Y), val=Arrays(X, Y))))
    nearly = X * (1 + 2e-7)
    assert not torch.equal(nearly, X)
    found = fingerprint(prepare(Task(name="s", model=nn.Identity, train=Arrays(nearly, Y), val=Arrays(nearly, Y))))
    assert same_data(known, found)


def test_augmentation_that_cannot_be_repeated_is_left_aside() -> None:
    task = Task(name="s", model=nn.Identity, train=OwnNoise(), val=Arrays(X, Y), example_input=X[:1])
    known = fingerprint(prepare(task), repeat=True)
    assert (known["train"]["inputs"], known["train"]["pairs"]) == (None, None)
    assert known["train"]["targets"] is not None
    assert same_data(known, fingerprint(prepare(task)))
