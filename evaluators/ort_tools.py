"""Importing ONNX Runtime's own tools, and leaving the module path as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnxruntime as ort


@contextmanager
def ort_tools() -> Iterator[None]:
    """For `from onnxruntime.quantization import ...` and `onnxruntime.transformers`, whose modules find each other by
    a folder that they add to `sys.path`, once.

    It holds modules called `models`, `metrics` and `benchmark`: left there, a user's of that name are not found if the
    job is read later. Taken away without this, the next tool is not importable.
    """
    folder = str(Path(ort.__file__).parent / "transformers")
    before = list(sys.path)
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path[:] = before
