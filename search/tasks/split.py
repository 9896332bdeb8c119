"""Validation data for a task that brings none: a fixed, stratified tenth of the training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from search.errors import UserError
from search.tasks.data import Arrays, check_loader, dataset_size, isolated_rng

HOLDOUT_FRACTION = 0.1
#: Not the search's seed: every search of a task must choose on the same samples.
HOLDOUT_SEED = 0


def hold_out(data: object) -> tuple[object, object, str]:
    """(training part, validation part, a note for the user) of the training data.

    Raises `UserError` where the data cannot be split: a function, or fewer than two samples.
    """
    if isinstance(data, Arrays):
        train, val, stratified = split_indices(len(data), as_labels(data.y))
        return data.take(train), data.take(val), _note(len(val), stratified)
    dataset: Dataset[Any] | None = None
    if isinstance(data, DataLoader):
        check_loader(data)
        dataset = data.dataset
    elif isinstance(data, Dataset):
        dataset = data
    if dataset is None:
        raise UserError("no validation data, and train is a function, which cannot be split: give the task a val=...")
    train, val, stratified = split_indices(dataset_size(dataset), dataset_labels(dataset))
    kept: Dataset[Any] = Subset(dataset, train.tolist())
    rest: object = kept
    if isinstance(data, DataLoader):
        rest = DataLoader(kept, batch_size=data.batch_size, num_workers=data.num_workers, collate_fn=data.collate_fn)
    note = _note(len(val), stratified) + ", with the dataset's own transforms: if these are random, give a val=..."
    return rest, Subset(dataset, val.tolist()), note


def split_indices(
    size: int,
    labels: Tensor | None,
    *,
    fraction: float = HOLDOUT_FRACTION,
    seed: int = HOLDOUT_SEED,
) -> tuple[Tensor, Tensor, bool]:
    """(training indices, held-out indices, stratified?), both sorted.

    Each class gives its share of the held-out samples, rounded by largest remainders so that the sum is
    right; a class always keeps a sample to train on. Raises `UserError` for fewer than two samples.
    """
    if size < 2:
        raise UserError(f"no validation data, and {size} training sample(s) cannot be split: give a val=...")
    wanted = min(max(1, round(size * fraction)), size - 1)
    rng = np.random.default_rng(seed)
    held: list[int] = []
    stratified = False
    if labels is not None:
        values = labels.numpy()
        classes, counts = np.unique(values, return_counts=True)
        share = counts * (wanted / size)
        quota = np.floor(share).astype(int)
        for index in np.argsort(-(share - quota), kind="stable")[: wanted - int(quota.sum())]:
            quota[index] += 1
        quota = np.minimum(quota, counts - 1)
        for label, count in zip(classes, quota, strict=True):
            held.extend(rng.permutation(np.flatnonzero(values == label))[:count].tolist())
        stratified = bool(held)
    if not held:
        held = rng.permutation(size)[:wanted].tolist()
    mask = torch.zeros(size, dtype=torch.bool)
    mask[held] = True
    return torch.nonzero(~mask).flatten(), torch.nonzero(mask).flatten(), stratified


def dataset_labels(dataset: Dataset[Any]) -> Tensor | None:
    """Whole-number labels [samples] of a map-style dataset, or None where targets are something else."""
    for name in ("targets", "labels"):
        known = getattr(dataset, name, None)
        if isinstance(known, Sequence | np.ndarray | Tensor) and len(known) == dataset_size(dataset):
            return as_labels(torch.as_tensor(np.asarray(known)))
    with isolated_rng(0):
        targets = [dataset[index][1] for index in range(dataset_size(dataset))]
    try:
        return as_labels(torch.as_tensor(np.asarray(targets)))
    except (TypeError, ValueError):
        return None


def as_labels(y: Tensor) -> Tensor | None:
    """`y` where it is a vector of whole numbers [samples], else None."""
    return y.long() if y.ndim == 1 and not y.is_floating_point() and not y.is_complex() else None


def _note(samples: int, stratified: bool) -> str:
    how = "stratified by label" if stratified else "not stratified"
    return (
        f"no validation data given: {HOLDOUT_FRACTION:.0%} of the training data "
        f"({samples} samples, {how}, seed {HOLDOUT_SEED}) are held out"
    )
