"""The forms in which a user gives data, each turned into batches that depend on (seed, epoch) alone."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from search.errors import UserError

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Inputs [batch, ...] and targets [batch, ...]."""


@dataclass(frozen=True, eq=False)
class Arrays:
    """Samples held in memory: `x` [samples, ...], `y` [samples, ...], as tensors or NumPy arrays.

    `augment(batch_x, generator)` changes a training batch; it must draw from the generator only. Float64
    inputs become float32, the precision that is trained and exported. Raises `UserError` for lengths that
    differ, no samples, or inputs that are not finite.
    """

    x: Tensor
    y: Tensor
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    shared: bool = False
    """Whether other processes read the same memory: batches are then copies, which may be changed."""

    def __init__(
        self,
        x: Tensor | NDArray[Any],
        y: Tensor | NDArray[Any],
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    ) -> None:
        inputs, targets = _resident(x, "x"), _resident(y, "y")
        if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
            raise UserError(
                f"Arrays: x and y must hold the same samples along axis 0, "
                f"got shapes {tuple(inputs.shape)} and {tuple(targets.shape)}"
            )
        if len(inputs) == 0:
            raise UserError("Arrays: no samples given: was the right file read, and all of it filtered out?")
        if inputs.dtype == torch.float64:
            inputs = inputs.float()
        if inputs.is_floating_point() and not _finite(inputs):
            raise UserError("Arrays: x holds values that are not finite: clean the data first")
        if targets.dtype in (torch.int8, torch.int16, torch.int32, torch.uint8):
            targets = targets.long()
        object.__setattr__(self, "x", inputs)
        object.__setattr__(self, "y", targets)
        object.__setattr__(self, "augment", augment)
        object.__setattr__(self, "shared", False)

    def __reduce__(self) -> tuple[Any, ...]:
        """As NumPy arrays, whose memory a pickle can leave where it is (protocol 5): see `search.node_data`."""
        return _rebuilt, (_plain(self.x), _plain(self.y), self.augment)

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: Tensor) -> Arrays:
        """The samples at `indices`, with the same augmentation."""
        return Arrays(self.x[indices], self.y[indices], self.augment)


def _plain(values: Tensor) -> NDArray[Any] | Tensor:
    """The same memory as an array; a copy where it has gaps, the tensor itself where NumPy has no such type."""
    try:
        return np.ascontiguousarray(values.detach().cpu().numpy())
    except TypeError:
        return values


def _rebuilt(
    x: NDArray[Any] | Tensor, y: NDArray[Any] | Tensor, augment: Callable[[Tensor, torch.Generator], Tensor] | None
) -> Arrays:
    """What was checked when it was made is not read through again."""
    arrays = object.__new__(Arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of read-only memory: nobody writes to it
        object.__setattr__(arrays, "x", torch.as_tensor(x))
        object.__setattr__(arrays, "y", torch.as_tensor(y))
    object.__setattr__(arrays, "augment", augment)
    object.__setattr__(arrays, "shared", isinstance(x, np.ndarray) and not x.flags.writeable)
    return arrays


TrainData: TypeAlias = "Arrays | Dataset[Any] | DataLoader[Any] | Callable[[int, int], Iterable[tuple[Tensor, Tensor]]]"
EvalData: TypeAlias = (
    "Arrays | Dataset[Any] | Iterable[tuple[Tensor, Tensor]] | Callable[[], Iterable[tuple[Tensor, Tensor]]]"
)


class TrainSource(Protocol):
    """Training batches of one epoch."""

    @property
    def size(self) -> int:
        """Samples in one epoch."""

    def batches(self, epoch: int, seed: int) -> Iterator[Batch]:
        """The epoch's batches, the same each time for the same (epoch, seed)."""


class EvalSource(Protocol):
    """Batches to evaluate on, always in the same order."""

    def batches(self) -> Iterator[Batch]:
        """All batches, from the first."""


def derive_seed(*parts: int) -> int:
    """One 63-bit seed out of several numbers, without the collisions that adding them up would bring."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed torch's, NumPy's and Python's global generators for the block and put them back after it.

    Users' datasets draw from any of them; without this a resumed run would see other augmentations.
    """
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def check_batch(batch: object, where: str) -> Batch:
    """The batch as a pair of tensors of the same length; raises `UserError` saying what came instead."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise UserError(f"{where} must give pairs (inputs, targets), got {_describe(batch)}")
    x, y = batch
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise UserError(f"{where} must give pairs of tensors, got ({_describe(x)}, {_describe(y)})")
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(x) == 0:
        raise UserError(
            f"{where}: inputs and targets must have the same batch size of at least 1, "
            f"got shapes {tuple(x.shape)} and {tuple(y.shape)}"
        )
    return x, y


def even_batches(indices: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Split [samples] into batches of at most `batch_size` that differ by one at most.

    A short last batch would give BatchNorm statistics of a few samples (or fail, for one); dropping it would
    train on less than an epoch.
    """
    return torch.tensor_split(indices, -(-len(indices) // batch_size))


class ArraysTrain:
    """Batches sliced from resident tensors by a permutation of (seed, epoch)."""

    def __init__(self, arrays: Arrays, batch_size: int) -> None:
        self._arrays, self._batch_size = arrays, batch_size

    @property
    def arrays(self) -> Arrays:
        """All samples."""
        return self._arrays

    @property
    def size(self) -> int:
        return len(self._arrays)

    def batches(self, epoch: int, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
        order = torch.randperm(self.size, generator=generator)
        for index in even_batches(order, self._batch_size):
            x = self._arrays.x[index]
            if self._arrays.augment is not None:
                x = self._arrays.augment(x, generator)
            yield x, self._arrays.y[index]


class DatasetTrain:
    """Batches of a map-style dataset, through torch's loader with the workers of the user's own loader."""

    def __init__(self, dataset: Dataset[Any], batch_size: int, loader: DataLoader[Any] | None = None) -> None:
        self._dataset, self._batch_size = dataset, batch_size
        self._workers = 0 if loader is None else loader.num_workers
        self._collate = None if loader is None else loader.collate_fn

    @property
    def size(self) -> int:
        return dataset_size(self._dataset)

    def batches(self, epoch: int, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
        order = torch.randperm(self.size, generator=generator)
        chunks = [index.tolist() for index in even_batches(order, self._batch_size)]
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_sampler=chunks,
            num_workers=self._workers,
            collate_fn=self._collate,
            generator=generator,
        )
        yield from _isolated(lambda: loader, derive_seed(seed, epoch, 1), "the training dataset")


class CallableTrain:
    """Batches from the user's own `(epoch, seed) -> iterable`."""

    def __init__(self, function: Callable[[int, int], Iterable[tuple[Tensor, Tensor]]], size: int | None) -> None:
        self._function, self._size = function, size

    @cached_property
    def size(self) -> int:
        """Samples in one epoch: as the task says, else counted by running through epoch 0 once."""
        return self._size if self._size is not None else sum(len(x) for x, _ in self.batches(0, 0))

    def batches(self, epoch: int, seed: int) -> Iterator[Batch]:
        yield from _isolated(lambda: self._function(epoch, seed), derive_seed(seed, epoch, 1), "train")


class ArraysEval:
    """Consecutive slices of resident tensors, never augmented."""

    def __init__(self, arrays: Arrays, batch_size: int) -> None:
        self._arrays, self._batch_size = arrays, batch_size

    @property
    def arrays(self) -> Arrays:
        """All samples."""
        return self._arrays

    def batches(self) -> Iterator[Batch]:
        parts = zip(self._arrays.x.split(self._batch_size), self._arrays.y.split(self._batch_size), strict=True)
        for x, y in parts:
            yield (x.clone(), y.clone()) if self._arrays.shared else (x, y)


class IterableEval:
    """Batches from a `make()` that can be called again and again."""

    def __init__(self, make: Callable[[], Iterable[tuple[Tensor, Tensor]]], where: str) -> None:
        self._make, self._where = make, where

    def batches(self) -> Iterator[Batch]:
        yield from _isolated(self._make, 0, self._where)


def _isolated(make: Callable[[], Iterable[Any]], seed: int, where: str) -> Iterator[Batch]:
    """Checked batches of `make()`; what the user's code draws while making one depends on its place alone."""
    with isolated_rng(derive_seed(seed, 0)):
        iterator = iter(make())
    count = 0
    while True:
        with isolated_rng(derive_seed(seed, count + 1)):
            try:
                batch = next(iterator)
            except StopIteration:
                break
        yield check_batch(batch, where)
        count += 1
    if count == 0:
        raise UserError(f"{where} gives no batches: give data that can be read more than once")


def train_source(data: object, batch_size: int, size: int | None) -> TrainSource:
    """What the user gave as `train`; raises `UserError` for a form that cannot be repeated by seed."""
    if isinstance(data, Arrays):
        return ArraysTrain(data, batch_size)
    if isinstance(data, DataLoader):
        check_loader(data)
        return DatasetTrain(data.dataset, data.batch_size or batch_size, data)
    if isinstance(data, IterableDataset):
        raise UserError(
            "train: an IterableDataset cannot be repeated by seed: give a function (epoch, seed) -> batches"
        )
    if isinstance(data, Dataset):
        return DatasetTrain(data, batch_size)
    if callable(data):
        return CallableTrain(data, size)
    raise UserError(
        f"train must be Arrays(x, y), a map-style torch Dataset or a function (epoch, seed) -> batches, "
        f"got {_describe(data)}"
    )


def eval_source(data: object, batch_size: int, where: str) -> EvalSource:
    """What the user gave as `val` or `test` (named by `where`); raises `UserError` if it cannot be read."""
    if isinstance(data, Arrays):
        return ArraysEval(data, batch_size)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        if dataset_size(data) == 0:
            raise UserError(f"{where}: the dataset is empty")
        dataset: Dataset[Any] = data
        return IterableEval(lambda: DataLoader(dataset, batch_size=batch_size, shuffle=False), where)
    if isinstance(data, Iterator):
        raise UserError(
            f"{where} is {_describe(data)}, which can be read only once: give a list of batches, "
            f"Arrays, a Dataset or a function that returns the batches"
        )
    if isinstance(data, Iterable):
        return IterableEval(lambda: data, where)
    if callable(data):
        return IterableEval(data, where)
    raise UserError(f"{where} must be Arrays(x, y), a torch Dataset or batches, got {_describe(data)}")


def check_loader(loader: DataLoader[Any]) -> None:
    """Refuse a training DataLoader whose order is the user's own: the search shuffles by (seed, epoch)."""
    plain = isinstance(loader.sampler, RandomSampler | SequentialSampler) and loader.batch_size is not None
    if isinstance(loader.dataset, IterableDataset) or not plain:
        raise UserError(
            "train: a DataLoader with its own sampler cannot be repeated by seed: "
            "give its Dataset, or a function (epoch, seed) -> batches"
        )


def dataset_size(dataset: Dataset[Any]) -> int:
    """Samples in a map-style dataset; raises `UserError` where it has no length."""
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError:
        raise UserError(f"the dataset {type(dataset).__name__} has no length: give it __len__") from None


def _describe(thing: object) -> str:
    if isinstance(thing, Tensor):
        return f"a tensor of shape {tuple(thing.shape)}"
    if isinstance(thing, tuple | list):
        return f"a {type(thing).__name__} of {len(thing)}"
    return f"a {type(thing).__name__}"


def _finite(values: Tensor) -> bool:
    """In one pass and without the copy that `isfinite` makes: data may fill half the memory."""
    return values.numel() == 0 or all(bool(torch.isfinite(bound)) for bound in torch.aminmax(values))


def _resident(values: Tensor | NDArray[Any], name: str) -> Tensor:
    try:
        if isinstance(values, np.ndarray) and not (values.flags.writeable and values.flags.c_contiguous):
            # torch shares the memory of an array: not of a read-only or reversed one.
            values = np.array(values, order="C")
        return torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"Arrays: {name} cannot become a tensor: {error}") from None
