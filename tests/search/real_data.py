"""Where the real data sets lie, for tests that read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DEFAULT = Path(__file__).parents[2] / ".." / "shared" / "data"


def real_data(name: str, source: str) -> Path:
    """The folder `name` of $PRUNEFRONT_DATA or ../shared/data; skips the test, naming the public source, without it."""
    folder = Path(os.environ.get("PRUNEFRONT_DATA", DEFAULT)) / name
    if not folder.is_dir():
        pytest.skip(f"needs {name} in ../shared/data or $PRUNEFRONT_DATA: download it from {source}")
    return folder
