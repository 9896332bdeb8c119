"""The `cifar-10-batches-py` folder, read without letting its pickles call anything.

The files are pickles by origin (https://www.cs.toronto.edu/~kriz/cifar.html). Containers, bytes and numbers are built
by the unpickler itself; of callables it admits those by which NumPy writes an array, and each of them is replaced by a
record of its arguments, from which the array is then made. Any other name is refused before it is looked up.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.errors import UserError
from search.tasks.images import LabelledImages

SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
PIXELS = 3 * 32 * 32
CLASSES = 10
MAX_BYTES = 1 << 30
"""A published batch has 31 MB."""
LONGEST_NAME = 80
"""Characters shown of a refused name, which may be anything."""
_DAMAGED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def read_split(folder: Path, names: tuple[str, ...]) -> LabelledImages:
    """The images [samples, 3, 32, 32] and labels of the batches `names`, one after the other.

    They lie in `folder` or in the `cifar-10-batches-py` in it.
    Raises `UserError` for a file that is missing, damaged, of another data set, or not what a data file may hold.
    """
    batches = [read_batch(path) for path in [find_file(folder, name) for name in names]]
    return LabelledImages(
        images=np.concatenate([images for images, _ in batches]).reshape(-1, 3, 32, 32),
        labels=np.concatenate([labels for _, labels in batches]),
    )


def find_file(folder: Path, name: str) -> Path:
    """The batch `name` in `folder` or in the `cifar-10-batches-py` in it; raises `UserError`."""
    if not folder.is_dir():
        raise UserError(f"task_args.data: {folder.absolute()} is not a folder: {_download()}")
    for path in (folder / FOLDER / name, folder / name):
        if path.is_file():
            return path
    raise UserError(f"task_args.data: {folder.absolute()} holds no {FOLDER}/{name}: {_download()}")


def read_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(pixels uint8 [samples, 3072], labels int64 [samples]) of one batch file; raises `UserError`."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: {path.stat().st_size} bytes are no batch of CIFAR-10: {_download()}")
        content = load_plain(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not a dictionary")
        pixels = np.asarray(_entry(content, "data"))
        labels = np.asarray(_entry(content, "labels"))
    except Refused as error:
        raise UserError(
            f"{path}: refused: it names {error}, which a data file has no use for: do not open it with pickle, "
            f"{_download()}"
        ) from error
    except (OSError, *_DAMAGED) as error:
        raise UserError(f"{path}: not a batch of CIFAR-10 ({type(error).__name__}: {error}): {_download()}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise UserError(f"{path}: data must be uint8 [samples, {PIXELS}], got {_describe(pixels)}: {_download()}")
    if labels.dtype.kind not in "iu" or labels.shape != pixels.shape[:1] or not len(labels):
        raise UserError(
            f"{path}: labels must be whole numbers, one for each of the {len(pixels)} images, "
            f"got {_describe(labels)}: {_download()}"
        )
    if labels.min() < 0 or labels.max() >= CLASSES:
        wrong = labels.max() if labels.max() >= CLASSES else labels.min()
        raise UserError(f"{path}: labels must lie in 0..9, found {wrong}: {_download()}")
    return pixels, labels.astype(np.int64)


class Refused(Exception):
    """A pickle named something that is neither a container nor an array; the message is that name."""


def load_plain(content: bytes) -> object:
    """What a pickle holds, if that is containers, bytes, text, numbers and arrays of whole numbers.

    Raises `Refused` for any other name in it, before that is imported, and what `pickle` raises for a damaged stream.
    Text of Python 2 stays bytes.
    """
    return _finished(_PlainUnpickler(io.BytesIO(content), encoding="bytes").load())


class _DtypeRecord:
    """`numpy.dtype(code, ...)` and its state, of which the byte order is the second entry."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else order

    def dtype(self) -> np.dtype[Any]:
        name = f"{self.order}{self.code}"
        if not re.fullmatch("[<>|=][iu][1248]", name):
            raise ValueError(f"an array of {name!r} where whole numbers are expected")
        return np.dtype(name)


class _ArrayRecord:
    """An empty array, to which the state (version, shape, dtype, Fortran order?, bytes) is given afterwards."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> NDArray[Any]:
        shape, dtype, fortran, content = self.state[-4:]
        return _array(content, dtype, shape, "F" if fortran else "C")


class _BufferRecord:
    """`_frombuffer(buffer, dtype, shape, order)`, NumPy's form for pickles of protocol 5."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def array(self) -> NDArray[Any]:
        content, dtype, shape, order = self.arguments
        return _array(content, dtype, shape, order)


class _NoClass:
    """`numpy.ndarray` where it is an argument only."""

    def __init__(self, *_: object) -> None:
        raise pickle.UnpicklingError("an array must be built the way NumPy writes it")


def _encode(text: object, encoding: object) -> bytes:
    """`_codecs.encode(text, "latin1")`: how Python 3 writes bytes in pickles of protocol 2."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("text encoded otherwise than as bytes are")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _DtypeRecord,
    ("numpy", "ndarray"): _NoClass,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _ArrayRecord for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _BufferRecord for core in ("core", "_core")},
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise Refused(repr(f"{module}.{name}"[:LONGEST_NAME]))
        return _ADMITTED[module, name]


def _array(content: object, dtype: object, shape: object, order: object) -> NDArray[Any]:
    if not isinstance(dtype, _DtypeRecord) or not isinstance(shape, tuple) or order not in ("C", "F"):
        raise ValueError("an array that is not described the way NumPy does it")
    if not isinstance(content, bytes | bytearray):
        raise ValueError("an array without its bytes")
    flat = np.frombuffer(content, dtype.dtype())
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _finished(content: object) -> object:
    """`content`, its own entries made from their records: in a batch arrays stand nowhere deeper."""
    if isinstance(content, dict):
        return {key: _finished_value(value) for key, value in content.items()}
    return _finished_value(content)


def _finished_value(value: object) -> object:
    return value.array() if isinstance(value, _ArrayRecord | _BufferRecord) else value


def _entry(content: dict[Any, Any], name: str) -> object:
    for key in (name, name.encode()):
        if key in content:
            return content[key]
    raise LookupError(f"it has no entry {name!r}")


def _describe(values: NDArray[Any]) -> str:
    return f"{values.dtype} {list(values.shape)}"


def _download() -> str:
    return f"download and unpack {SOURCE}"
