"""The test set is read once for each network of the final front, and what was read stays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from evaluators import export_onnx
from search.errors import UserError
from search.final_scores import read_scores, score_front, scores_line
from search.result import Baseline
from search.sampler import Proposal
from search.store import MODEL_NAME, RunStore
from search.tasks import Arrays, Task
from search.tasks.base import PreparedTask, prepare
from tests.search.fabricated import SPACE, publish, result_of

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def network(right: bool) -> nn.Module:
    """Says the sign of the first input, or its opposite."""
    layer = nn.Linear(3, 2, bias=False)
    sign = 1.0 if right else -1.0
    layer.weight.data = torch.tensor([[-sign, 0.0, 0.0], [sign, 0.0, 0.0]])
    return layer


class CountedTest:
    """Test batches that count how often they are read."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.reads += 1
        yield X, Y


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    store = RunStore.create(tmp_path / "run", "task: a:b\n", {})
    export_onnx(network(True), X[:1], store.baseline_dir / MODEL_NAME)
    for number, (removed, right) in enumerate([(1, True), (3, False)]):
        params = dict.fromkeys((d.name for d in SPACE.dimensions), removed)
        result = result_of(Proposal(number=number, params=params, plan=SPACE.plan(params)))
        publish(store, result)
        export_onnx(network(right), X[:1], store.trial_dir(number) / MODEL_NAME)
    return store


BASELINE = Baseline(accuracy=0.99, accuracy_stderr=0.0, latency_ms=1.5, macs=1, params=1, weights=1)


def task_with(test: object) -> PreparedTask:
    arrays = Arrays(X, Y)
    return prepare(Task(name="t", model=lambda: network(True), train=arrays, val=arrays, test=test))  # type: ignore[arg-type]


def test_each_network_of_the_front_is_scored_once(run: RunStore) -> None:
    test = CountedTest()
    task = task_with(test)
    before = test.reads
    scores = score_front(run, task, BASELINE, run.results())
    assert {name: score["accuracy"] for name, score in scores.items()} == {"dense": 1.0, "0": 1.0, "1": 0.0}
    assert scores["1"]["samples"] == 40
    first = test.reads - before
    assert score_front(run, task, BASELINE, run.results()) == scores == read_scores(run)
    assert first == 3
    assert test.reads - before == first, "never scored again"
    assert scores_line(scores, ["dense", "0", "7"]).endswith("dense 1.0000, trial 0 1.0000")


def test_what_was_read_is_not_read_again_even_if_the_network_changed(run: RunStore) -> None:
    scores = score_front(run, task_with(Arrays(X, Y)), BASELINE, run.results())
    shutil.copy(run.trial_dir(0) / MODEL_NAME, run.trial_dir(1) / MODEL_NAME)
    assert score_front(run, task_with(Arrays(X, Y)), BASELINE, run.results())["1"] == scores["1"]


def test_a_task_without_test_data_has_no_scores(run: RunStore) -> None:
    assert score_front(run, task_with(None), BASELINE, run.results()) == {}
    assert read_scores(run) == {}


def test_test_data_that_fail_are_told_in_a_line_and_lose_nothing_read_before(run: RunStore) -> None:
    reads = 0

    def fails_later() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal reads
        reads += 1
        yield X, Y
        if reads > 1:
            raise OSError("the disk\nis gone")

    with pytest.raises(UserError, match=r"^the test data cannot be scored: OSError: the disk is gone$"):
        score_front(run, task_with(fails_later), BASELINE, run.results())
    assert set(read_scores(run)) == {"dense"}
