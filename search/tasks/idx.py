"""MNIST's idx files, as they are published (.gz) or unpacked: http://yann.lecun.com/exdb/mnist/ states the format."""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search.errors import UserError
from search.tasks.images import LabelledImages

SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"
"""Where the four files can be downloaded today."""
UNSIGNED_BYTES = 0x08
GZIP_MAGIC = b"\x1f\x8b"
SUBFOLDERS = ("", "MNIST/raw", "raw")
"""Where a `data` folder may hold the files: itself, or as torchvision puts them."""
CLASSES = 10


def read_split(folder: Path, prefix: str) -> LabelledImages:
    """The images [samples, 1, 28, 28] and labels of `prefix`, `train` or `t10k`.

    Raises `UserError` for a file that is missing, damaged or does not fit its partner.
    """
    image_path, label_path = (find_file(folder, f"{prefix}-{part}-ubyte") for part in ("images-idx3", "labels-idx1"))
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if images.shape[1:] != (28, 28):
        size = " x ".join(map(str, images.shape[1:]))
        raise UserError(f"{image_path}: MNIST's images are 28 x 28, these are {size}: {_again()}")
    if len(images) != len(labels):
        raise UserError(f"{image_path} holds {len(images)} images, {label_path} {len(labels)} labels: {_again()}")
    if len(images) == 0:
        raise UserError(f"{image_path} holds no images: {_again()}")
    if labels.max() >= CLASSES:
        raise UserError(f"{label_path}: labels must lie in 0..9, found {labels.max()}: {_again()}")
    return LabelledImages(images=images[:, np.newaxis], labels=labels.astype(np.int64))


def find_file(folder: Path, name: str) -> Path:
    """The file `name`, unpacked or .gz, in one of the usual places under `folder`; raises `UserError`."""
    if not folder.is_dir():
        raise UserError(f"task_args.data: {folder.absolute()} is not a folder: {_download()}")
    for place in SUBFOLDERS:
        for candidate in (name, f"{name}.gz", name.replace("-idx", ".idx")):
            path = folder / place / candidate
            if path.is_file():
                return path
    raise UserError(f"task_args.data: {folder.absolute()} holds no {name}.gz, nor the file unpacked: {_download()}")


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an idx file, gzipped or not; `dimensions` is how many axes it must have.

    Raises `UserError` where the magic number, the type or the size is wrong, or the gzip stream is cut short.
    """
    try:
        content = path.read_bytes()
        if content[:2] == GZIP_MAGIC:
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}): {_again()}") from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, UNSIGNED_BYTES, dimensions)):
        raise UserError(
            f"{path}: not an idx file of unsigned bytes with {dimensions} axes: it begins with "
            f"{content[:4].hex() or 'nothing'} where {bytes((0, 0, UNSIGNED_BYTES, dimensions)).hex()} "
            f"should stand: {_again()}"
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, offset=4))
    if len(content) - start != prod(shape):
        promised = " x ".join(map(str, shape))
        raise UserError(f"{path}: its header promises {promised} bytes, {len(content) - start} follow: {_again()}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _download() -> str:
    return f"download MNIST's four .gz files from {SOURCE}"


def _again() -> str:
    return f"download it again from {SOURCE}"
