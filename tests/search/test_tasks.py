"""The forms of data, the held-out split, dense training and the digits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from search.errors import UserError
from search.tasks import Arrays, DenseRecipe, Task, check_task, prepare, top1
from search.tasks.base import SEEN
from search.tasks.data import derive_seed, even_batches, isolated_rng
from search.tasks.dense import DenseEpoch, build_model, train_dense, validate
from search.tasks.digits import DigitsResNet, shift
from search.tasks.digits import task as digits
from search.tasks.split import split_indices

SAMPLES, CLASSES = 60, 3
X = torch.arange(SAMPLES * 4, dtype=torch.float32).reshape(SAMPLES, 4) / 100
Y = torch.arange(SAMPLES) % CLASSES


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Noisy(Dataset[tuple[Tensor, int]]):
    """A dataset that augments with all three global generators, as users' datasets do."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index] + torch.randn(4) + float(np.random.rand()) + random.random(), int(Y[index])


class Endless(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter([(X[0], 0)])


def by_function(epoch: int, seed: int) -> Iterable[tuple[Tensor, Tensor]]:
    for index in torch.randperm(SAMPLES).split(16):
        yield X[index] + epoch + seed, Y[index]


def network() -> nn.Module:
    return nn.Linear(4, CLASSES)


def make(**parts: Any) -> Task:
    return Task(**{"name": "t", "model": network, "train": Arrays(X, Y), "batch_size": 16, **parts})


def noised(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + torch.randn(x.shape, generator=generator)


FORMS: dict[str, Callable[[], Any]] = {
    "arrays": lambda: Arrays(X, Y, augment=noised),
    "numpy arrays": lambda: Arrays(X.numpy(), Y.numpy(), augment=noised),
    "dataset": Noisy,
    "loader": lambda: DataLoader(Noisy(), batch_size=16, shuffle=True),
    "function": lambda: by_function,
}


def read(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    pairs = list(batches)
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


@pytest.mark.parametrize("form", FORMS)
def test_batches_depend_on_seed_and_epoch_alone(form: str) -> None:
    val = Arrays(X, Y)
    prepared = prepare(make(train=FORMS[form](), val=val), seed=3)
    x, y = read(prepared.train_batches(1))
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    again_x, again_y = read(prepare(make(train=FORMS[form](), val=val), seed=3).train_batches(1))
    assert torch.equal(x, again_x)
    assert torch.equal(y, again_y)
    assert not torch.equal(x, read(prepared.train_batches(2))[0])
    assert not torch.equal(x, read(prepare(make(train=FORMS[form](), val=val), seed=4).train_batches(1))[0])
    assert prepared.train_size == len(x) == SAMPLES
    assert prepared.example_input.shape == (1, 4)


@pytest.mark.parametrize("form", FORMS)
def test_reading_data_leaves_the_global_generators_alone(form: str) -> None:
    prepared = prepare(make(train=FORMS[form](), val=Arrays(X, Y)))
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    read(prepared.train_batches(0))
    read(prepared.val_batches())
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


@pytest.mark.parametrize("form", ["arrays", "dataset", "loader"])
def test_each_sample_is_seen_once_an_epoch_in_batches_of_even_size(form: str) -> None:
    train = {"arrays": Arrays(X, torch.arange(SAMPLES)), "dataset": TensorDataset(X, torch.arange(SAMPLES))}
    train["loader"] = DataLoader(train["dataset"], batch_size=16, shuffle=True)  # type: ignore[arg-type,assignment]
    prepared = prepare(make(train=train[form], val=Arrays(X, Y)))
    batches = list(prepared.train_batches(0))
    assert [len(x) for x, _ in batches] == [15, 15, 15, 15]
    assert torch.equal(torch.cat([y for _, y in batches]).sort().values, torch.arange(SAMPLES))


@given(samples=st.integers(1, 500), size=st.integers(1, 70))
def test_even_batches(samples: int, size: int) -> None:
    batches = even_batches(torch.arange(samples), size)
    lengths = [len(batch) for batch in batches]
    assert sum(lengths) == samples
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


def test_a_held_out_split_is_stratified_fixed_and_said() -> None:
    prepared = prepare(make(), seed=1)
    said = "no validation data given: 10% of the training data (6 samples, stratified by label, seed 0) are held out"
    assert prepared.notes == [f"{said}: {SEEN}"]
    assert prepare(make(dense=DenseRecipe(epochs=1, lr=0.1)), seed=1).notes == [said]
    assert prepared.train_size == 54
    x, y = read(prepared.val_batches())
    assert torch.bincount(y).tolist() == [2, 2, 2]
    assert torch.equal(x, read(prepare(make(), seed=2).val_batches())[0])
    seen = read(prepared.train_batches(0))[0][:, 0]
    assert not set(seen.tolist()) & set(x[:, 0].tolist())


@pytest.mark.parametrize("form", ["dataset", "loader"])
def test_datasets_can_be_split_too(form: str) -> None:
    prepared = prepare(make(train=FORMS[form]()))
    assert prepared.train_size == 54
    assert torch.bincount(read(prepared.val_batches())[1]).tolist() == [2, 2, 2]
    assert torch.equal(read(prepared.val_batches())[0], read(prepared.val_batches())[0])


def test_augmentation_is_for_training_only() -> None:
    prepared = prepare(make(train=Arrays(X, Y, augment=lambda x, _: x + 1000)))
    assert read(prepared.train_batches(0))[0].min() >= 1000
    assert read(prepared.val_batches())[0].max() < 1000


def test_targets_that_are_no_labels_are_split_at_random() -> None:
    prepared = prepare(make(train=Arrays(X, X), loss=nn.functional.mse_loss))
    assert prepared.notes[0].startswith("no validation data given: 10% of the training data (6 samples, not strat")


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 5), min_size=2, max_size=120), seed=st.integers(0, 5))
def test_split_is_a_partition_with_every_class_left(labels: list[int], seed: int) -> None:
    y = torch.tensor(labels)
    train, val, stratified = split_indices(len(y), y, seed=seed)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(len(y)))
    assert 1 <= len(val) <= max(1, round(len(y) * 0.1))
    if stratified:
        assert set(y[train].tolist()) == set(labels)
        for label in set(labels):
            share = labels.count(label) * len(val) / len(labels)
            assert abs(int((y[val] == label).sum()) - share) < 2


VALS: dict[str, Callable[[], Any]] = {
    "arrays": lambda: Arrays(X, Y),
    "dataset": lambda: TensorDataset(X, Y),
    "list": lambda: [(X[:40], Y[:40]), (X[40:], Y[40:])],
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=32),
    "function": lambda: lambda: iter([(X, Y)]),
}


@pytest.mark.parametrize("form", VALS)
def test_every_form_of_evaluation_data_is_read_whole_again_and_again(form: str) -> None:
    prepared = prepare(make(val=VALS[form](), test=VALS[form]()))
    for _ in range(2):
        x, y = read(prepared.val_batches())
        assert torch.equal(x, X)
        assert torch.equal(y, Y)
    test = prepared.test_batches()
    assert test is not None
    assert torch.equal(read(test)[1], Y)
    assert prepare(make()).test_batches() is None


def one_shot() -> Iterator[tuple[Tensor, Tensor]]:
    yield X, Y


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": by_function}, "train is a function, which cannot be split: give the task a val="),
        ({"train": Endless(), "val": Arrays(X, Y)}, "an IterableDataset cannot be repeated by seed"),
        ({"train": [(X, Y)], "val": Arrays(X, Y)}, r"train must be Arrays\(x, y\), .* got a list of 1"),
        (
            {"train": DataLoader(TensorDataset(X, Y), sampler=WeightedRandomSampler([1.0] * SAMPLES, 5))},
            "a DataLoader with its own sampler cannot be repeated",
        ),
        ({"train": Arrays(X[:1], Y[:1])}, r"1 training sample\(s\) cannot be split"),
        ({"train": lambda e, s: [], "val": Arrays(X, Y)}, "train gives no batches"),
        ({"train": lambda e, s: [X], "val": Arrays(X, Y)}, r"give pairs \(inputs, targets\), got a tensor"),
        ({"train": lambda e, s: [(X, Y[:3])], "val": Arrays(X, Y)}, r"got shapes \(60, 4\) and \(3,\)"),
        ({"val": one_shot()}, "val is a generator, which can be read only once"),
        ({"val": 5}, "val must be Arrays"),
        ({"train": lambda e, s: {}["x"], "val": Arrays(X, Y)}, "task 't': reading the data raised KeyError: 'x'"),
        ({"val": TensorDataset(X[:0], Y[:0])}, "val: the dataset is empty"),
        ({"test": one_shot()}, "test is a generator"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"name": ""}, "Task.name must be a word"),
        ({"model": network()}, "must be a function that builds the network"),
        ({"loss": "mse"}, "Task.loss must be a function, got 'mse'"),
        ({"example_input": X[:2]}, r"must be one input of shape \[1, ...\], got \[2, 4\]"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(make(**parts))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y[:5], r"same samples along axis 0, got shapes \(60, 4\) and \(5,\)"),
        (X[:0], Y[:0], "no samples"),
        (torch.full((2, 1), float("nan")), Y[:2], "not finite"),
        (np.array(["a", "b"]), Y[:2], "x cannot become a tensor"),
    ],
)
def test_arrays_are_checked(x: Any, y: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Arrays(x, y)


@pytest.mark.filterwarnings("error")
def test_arrays_may_be_read_only_or_reversed() -> None:
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    values.flags.writeable = False
    assert torch.equal(Arrays(values[::-1], np.arange(3)).x, torch.tensor([[4.0, 5.0], [2.0, 3.0], [0.0, 1.0]]))


def test_arrays_are_single_precision_with_long_labels() -> None:
    arrays = Arrays(np.zeros((2, 3)), np.zeros(2, dtype=np.int32))
    assert (arrays.x.dtype, arrays.y.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": lambda: nn.Linear(5, 3)}, r"fails on example_input of shape \[1, 4\] \(torch.float32\): Runtime"),
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, "the loss must give one value, the mean"),
        ({"metric": lambda o, t: (o.argmax(1) == t).float().mean()}, r"the metric must give one value a sample, \[6\]"),
        ({"metric": lambda o, t: o @ t}, "the metric fails on outputs"),
        ({"model": lambda: nn.LSTM(4, 3), "output": 1}, "returns tuple with 0, and Task.output 1 is no tensor"),
        ({"metric": lambda o, t: 100.0 * torch.ones(len(t))}, "a number of at most 1, it gives 100 for a sample"),
        ({"metric": lambda o, t: torch.full((len(t),), -torch.inf)}, "it gives -inf for a sample"),
        ({"metric": lambda o, t: torch.full((len(t),), torch.nan)}, "it gives nan for a sample"),
        ({"test": Arrays(X[:, :3], Y)}, r"the network fails on a test batch of shape \[16, 3\]"),
        ({"train": Arrays(X, Y + 1)}, "training labels hold class 3, and the network has 3 outputs, for classes 0"),
        ({"train": lambda epoch, seed: [(X, Y + 1)], "val": [(X, Y)]}, "the training labels hold class 3"),
        ({"val": Arrays(X, Y - 1)}, "the validation labels hold class -1"),
        ({"test": [(X, Y * 2)]}, "the test labels hold class 4"),
        ({"test": Arrays(X, X)}, r"the metric .* on outputs \[16, 3\] and targets \[16, 4\] .* of a test batch"),
        ({"test": lambda: [X]}, r"test must give pairs \(inputs, targets\), got a tensor"),
    ],
)  # fmt: skip
def test_a_dry_run_names_the_part_that_is_wrong(parts: dict[str, Any], message: str) -> None:
    prepared = prepare(make(**parts))
    with pytest.raises(UserError, match=message):
        check_task(prepared, build_model(prepared))


@pytest.mark.parametrize(
    "parts",
    [
        {"train": Arrays(X, torch.where(Y == 0, -100, Y))},
        {"train": Arrays(X, torch.where(Y == 0, 7, Y)), "loss": nn.CrossEntropyLoss(ignore_index=7)},
        {"train": Arrays(X, Y + 5), "loss": lambda outputs, targets: (outputs.mean(1) - targets).square().mean()},
        {"val": Arrays(X, Y + 5), "metric": lambda outputs, targets: -(outputs.mean(1) - targets).abs()},
        {"train": Arrays(X, nn.functional.one_hot(Y, 3).float()), "val": [(X, Y)]},
    ],
)
def test_labels_that_only_look_wrong(parts: dict[str, Any]) -> None:
    """Ignored ones, those of another loss or metric, and parts of classes."""
    prepared = prepare(make(**parts))
    check_task(prepared, build_model(prepared))


def test_a_dry_run_leaves_the_network_as_it_was() -> None:
    prepared = prepare(make(model=lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))))
    model = build_model(prepared)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_task(prepared, model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_models_are_built_by_seed_without_touching_the_global_generator() -> None:
    state = torch.get_rng_state()
    first, again = build_model(prepare(make(), 1)), build_model(prepare(make(), 1))
    other = build_model(prepare(make(), 2))
    assert torch.equal(torch.get_rng_state(), state)
    weight = first.state_dict()["weight"]
    assert torch.equal(weight, again.state_dict()["weight"])
    assert not torch.equal(weight, other.state_dict()["weight"])


def broken() -> nn.Module:
    raise FileNotFoundError("no weights.pt")


def test_a_function_that_returns_one_network_again_and_again_gives_separate_ones() -> None:
    shared = nn.Linear(4, CLASSES)
    prepared = prepare(make(model=lambda: shared))
    first, second = build_model(prepared), build_model(prepared)
    with torch.no_grad():
        first.state_dict()["weight"].zero_()
    assert torch.equal(second.state_dict()["weight"], shared.weight)
    assert shared.weight.abs().sum() > 0


def test_a_model_function_that_fails_is_told() -> None:
    with pytest.raises(UserError, match=r"model\(\) raised FileNotFoundError: no weights.pt"):
        build_model(prepare(make(model=broken)))
    with pytest.raises(UserError, match="must return a torch network, got int"):
        build_model(prepare(make(model=lambda: 3)))


def separable() -> Arrays:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % CLASSES
    x = torch.randn(120, 4, generator=generator) * 0.3
    x[torch.arange(120), y] += 2.0
    return Arrays(x, y)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_dense_training_learns_and_repeats_itself(optimizer: Any) -> None:
    recipe = DenseRecipe(epochs=6, lr=0.05, optimizer=optimizer, min_accuracy=0.9)
    weights = []
    for _ in range(2):
        prepared = prepare(make(train=separable(), dense=recipe, model=lambda: nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, CLASSES))))  # fmt: skip
        model = build_model(prepared)
        told: list[DenseEpoch] = []
        accuracy = train_dense(prepared, model, recipe, on_epoch=told.append)
        assert accuracy == validate(prepared, model) == told[-1].accuracy >= 0.9
        assert [epoch.epoch for epoch in told] == [1, 2, 3, 4, 5, 6]
        assert told[-1].loss < told[0].loss
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        torch.rand(7)
    assert torch.equal(weights[0], weights[1])


def test_a_dense_network_below_what_is_asked_is_refused() -> None:
    prepared = prepare(make())
    with pytest.raises(UserError, match=r"below dense\.min_accuracy 1\.0: train longer"):
        train_dense(prepared, build_model(prepared), DenseRecipe(epochs=1, lr=1e-4, min_accuracy=1.0))


def test_a_dense_training_that_diverges_is_told() -> None:
    prepared = prepare(make(loss=lambda o, t: o.sum() * torch.inf))
    with pytest.raises(UserError, match=r"loss of (nan|inf|-inf) in epoch 1: lower dense\.lr"):
        train_dense(prepared, build_model(prepared), DenseRecipe(epochs=1, lr=0.1))


def one_bad_label() -> Arrays:
    y = Y.clone()
    y[17] = 12
    return Arrays(X, y)


def fails_on_a_bad_label(outputs: Tensor, targets: Tensor) -> Tensor:
    if int(targets.max()) >= CLASSES:
        raise KeyError("no such class")
    return top1(outputs, targets)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"train": one_bad_label(), "val": Arrays(X, Y)},
            r"^task 't': dense training, epoch 1: IndexError: Target 12 is out of bounds",
        ),
        (
            {"val": one_bad_label(), "metric": fails_on_a_bad_label},
            r"^task 't': validation after epoch 1: KeyError: 'no such class'$",
        ),
    ],
)
def test_what_users_code_raises_in_dense_training_is_told_in_a_line(parts: dict[str, Any], message: str) -> None:
    prepared = prepare(make(**parts))
    with pytest.raises(UserError, match=message):
        train_dense(prepared, build_model(prepared), DenseRecipe(epochs=1, lr=0.1))


def test_an_interrupted_dense_training_stays_an_interrupt() -> None:
    def stop(outputs: Tensor, targets: Tensor) -> Tensor:
        raise KeyboardInterrupt

    prepared = prepare(make(loss=stop))
    with pytest.raises(KeyboardInterrupt):
        train_dense(prepared, build_model(prepared), DenseRecipe(epochs=1, lr=0.1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "dense.epochs must be at least 1, got 0"),
        ({"lr": 0.0}, "dense.lr must be positive"),
        ({"momentum": 1.0}, r"dense.momentum must lie in \[0, 1\)"),
        ({"optimizer": "adam"}, "'sgd' or 'adamw', got 'adam'"),
        ({"weight_decay": -1.0}, "must not be negative"),
    ],
)
def test_recipes_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DenseRecipe(**{"epochs": 1, "lr": 0.1, **values})


def test_seeds_and_isolation() -> None:
    assert len({derive_seed(a, b) for a in range(20) for b in range(20)}) == 400
    state = torch.get_rng_state()
    with isolated_rng(1):
        inside = torch.rand(1)
    with isolated_rng(1):
        assert torch.equal(torch.rand(1), inside)
    assert torch.equal(torch.get_rng_state(), state)


def test_top1() -> None:
    assert top1(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])).tolist() == [1.0, 0.0]


def test_digits_split() -> None:
    prepared = prepare(digits(width=16))
    test = prepared.test_batches()
    assert test is not None
    parts = [read(prepared.train_batches(0)), read(prepared.val_batches()), read(test)]
    assert [len(y) for _, y in parts] == [1197, 300, 300]
    assert prepared.notes == []
    for _, y in parts[1:]:
        assert torch.bincount(y).min() >= 28
    seen = [{x.numpy().tobytes() for x in part[0]} for part in parts[1:]]
    assert not seen[0] & seen[1]


def test_shift_moves_by_a_pixel_at_most() -> None:
    x = torch.zeros(200, 1, 8, 8)
    x[:, :, 3, 4] = 1.0
    moved = shift(x, torch.Generator().manual_seed(0))
    places = {tuple(p) for p in moved.nonzero()[:, 2:].tolist()}
    assert moved.flatten(1).sum(1).eq(1.0).all()
    assert places == {(i, j) for i in (2, 3, 4) for j in (3, 4, 5)}


def test_digits_network_couples_its_groups_and_learns() -> None:
    prepared = prepare(digits(width=16, epochs=2, min_accuracy=0.0))
    model = build_model(prepared)
    assert isinstance(model, DigitsResNet)
    assert isinstance(model.block1.shortcut, nn.Identity)
    assert model(prepared.example_input).shape == (1, 10)
    check_task(prepared, model)
    recipe = prepared.task.dense
    assert recipe is not None
    assert train_dense(prepared, model, recipe) > 0.7


def test_digits_width_is_a_multiple_of_sixteen() -> None:
    with pytest.raises(UserError, match="multiple of 16, got 50: try 48"):
        digits(width=50)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'prunefront\[digits\]'"):
        digits()


@pytest.mark.slow
def test_digits_reach_what_the_demonstration_promises() -> None:
    prepared = prepare(digits())
    model = build_model(prepared)
    recipe = prepared.task.dense
    assert recipe is not None
    assert recipe.min_accuracy == 0.98
    assert train_dense(prepared, model, recipe) >= recipe.min_accuracy
