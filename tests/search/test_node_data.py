"""A task travels to the workers with its arrays left where they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from search.job import Job
from search.node_data import MOST_BESIDE, Packed, pack, unpack
from search.tasks.base import PreparedTask, Task, prepare
from search.tasks.data import Arrays, ArraysEval, ArraysTrain

JOB = Job(task="search.tasks.digits:task")
SAMPLES = 500


def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + torch.randn(x.shape, generator=generator)


def made_task(**changes: Any) -> Task:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((SAMPLES, 3, 4, 4), dtype=np.float32), rng.integers(0, 5, SAMPLES)
    parts: dict[str, Any] = {
        "name": "made",
        "model": lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 5)),
        "train": Arrays(x, y, augment=noisy),
        "test": Arrays(x[:50], y[:50]),
    }
    return Task(**parts | changes)


def in_store(packed: Packed) -> Packed:
    """As Ray gives it back: the same bytes in memory that must not be written."""
    arrays = []
    for array in packed.arrays:
        copy = array.copy()
        copy.flags.writeable = False
        arrays.append(copy)
    return replace(packed, arrays=arrays)


def moved(task: PreparedTask) -> tuple[PreparedTask, Packed]:
    packed = pack(task)
    assert isinstance(packed, Packed), packed
    stored = in_store(packed)
    return unpack(stored, JOB), stored


def all_batches(task: PreparedTask) -> Iterator[tuple[Tensor, Tensor]]:
    yield from task.train_batches(0)
    yield from task.train_batches(3)
    yield from task.val_batches()
    test = task.test_batches()
    assert test is not None
    yield from test


@pytest.mark.parametrize("brings_val", [False, True])
def test_the_same_batches_come_out(brings_val: bool) -> None:
    given = made_task()
    task = prepare(replace(given, val=given.test) if brings_val else given, seed=3)
    there, _ = moved(task)
    before, after = list(all_batches(task)), list(all_batches(there))
    assert len(before) == len(after)
    for (x, y), (other_x, other_y) in zip(before, after, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
    assert (there.seed, there.train_size, there.notes) == (task.seed, task.train_size, task.notes)
    assert there.task.model()(there.example_input).shape == (1, 5)


def test_nothing_large_is_copied_or_sent_twice() -> None:
    task = prepare(made_task())
    there, packed = moved(task)
    places = [(a.ctypes.data, a.ctypes.data + a.nbytes) for a in packed.arrays]
    for source in (there.train_source, there.val_source, there.test_source):
        assert isinstance(source, ArraysTrain | ArraysEval)
        for values in (source.arrays.x, source.arrays.y):
            assert any(begin <= values.data_ptr() < end for begin, end in places)
    # a sample each: those held out are not sent with the rest as well
    sample = 3 * 4 * 4 * 4 + 8
    assert sum(a.nbytes for a in packed.arrays) == (SAMPLES + 50) * sample
    assert len(packed.task) < 20_000
    assert packed.nbytes < (SAMPLES + 50) * sample + 20_000


def test_a_batch_may_be_changed_without_changing_the_data() -> None:
    there, packed = moved(prepare(made_task()))
    before = [array.copy() for array in packed.arrays]
    for x, y in all_batches(there):
        x.zero_()
        y.zero_()
    assert all(np.array_equal(a, b) for a, b in zip(before, packed.arrays, strict=True))


def test_bfloat16_travels_too() -> None:
    x = torch.randn(20, 48).bfloat16()
    task = prepare(made_task(train=Arrays(x, torch.arange(20) % 5), test=None, example_input=torch.zeros(1, 48)))
    packed = pack(task)
    assert isinstance(packed, Packed)
    batches = list(unpack(packed, JOB).train_batches(0))
    assert torch.equal(batches[0][0], next(iter(task.train_batches(0)))[0])


def test_data_that_are_read_while_training_stay_where_they_are() -> None:
    task = prepare(made_task(train=TensorDataset(torch.zeros(20, 48), torch.arange(20) % 5), test=None))
    assert pack(task) == "its data are not all Arrays"


def test_a_function_that_holds_on_to_something_that_cannot_be_sent(tmp_path: Path) -> None:
    file = (tmp_path / "open").open("w")

    def model() -> nn.Module:
        file.write("")
        return nn.Linear(48, 5)

    with file:
        said = pack(prepare(made_task(model=model)))
    assert isinstance(said, str)
    assert said.startswith("it cannot be sent (")
    assert "files" in said


def test_a_function_that_holds_on_to_data() -> None:
    weights = bytes(MOST_BESIDE + 1)
    said = pack(prepare(made_task(loss=lambda outputs, targets: outputs.sum() * len(weights))))
    assert said == "its functions hold on to 64 MiB of data: give those as Arrays"
