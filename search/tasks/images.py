"""Labelled images as bytes, and the way from there to a task's data: the same split for everyone, resident tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from search.errors import UserError
from search.spelling import suggest
from search.tasks.augment import Augment
from search.tasks.data import Arrays
from search.tasks.split import split_indices

HELD_OUT = 5_000
"""Training images kept back for validation, of the full set; of a part of it, the same share."""
LEAST_LIMIT = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """`images` uint8 [samples, channels, h, w] and `labels` int64 [samples], as the files have them."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def first(self, limit: int | None) -> LabelledImages:
        """The first `limit` samples; None for all."""
        return LabelledImages(images=self.images[:limit], labels=self.labels[:limit])

    def hold_out(self, *, full: int) -> tuple[LabelledImages, LabelledImages]:
        """(train, val): of the full set's `full` samples `HELD_OUT` are held out, stratified, by a fixed seed."""
        train, val, _ = split_indices(len(self.labels), torch.from_numpy(self.labels), fraction=HELD_OUT / full)
        return self._take(train.numpy()), self._take(val.numpy())

    def arrays(self, mean: tuple[float, ...], std: tuple[float, ...], augment: Augment | None = None) -> Arrays:
        """One float32 tensor of all samples, mean 0 and deviation 1, given those of the pixels in [0, 1] a channel."""
        channels = (1, -1, 1, 1)
        x = torch.from_numpy(self.images.astype(np.float32)).div_(255.0)
        x.sub_(torch.tensor(mean).view(channels)).div_(torch.tensor(std).view(channels))
        return Arrays(x, torch.from_numpy(self.labels.copy()), augment=augment)

    def _take(self, indices: NDArray[np.int64]) -> LabelledImages:
        return LabelledImages(images=self.images[indices], labels=self.labels[indices])


def data_folder(data: object) -> Path:
    """`task_args.data` as a path: `~` is the user's home, a relative path starts at the current folder."""
    if not isinstance(data, str | Path) or not str(data):
        raise UserError(f"task_args.data: must be a folder, got {data!r}")
    try:
        return Path(data).expanduser()
    except RuntimeError as error:
        raise UserError(f"task_args.data: {str(data)!r}: {error}: give the folder's full path") from None


def check_limit(limit: object) -> int | None:
    """`task_args.limit`: None, or a whole number of images that leaves something to validate on."""
    if limit is None:
        return None
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < LEAST_LIMIT:
        raise UserError(f"task_args.limit: must be at least {LEAST_LIMIT} images, or left out for all, got {limit!r}")
    return limit


def check_network(network: object, known: tuple[str, ...]) -> str:
    """`task_args.network`, one of the `known` names."""
    if not isinstance(network, str) or network not in known:
        raise UserError(f"task_args.network: there is no {network!r}: {suggest(str(network), known)}")
    return network
