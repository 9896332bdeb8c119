"""Reading files that others may have put there: regular ones, of a size that makes sense, and nothing else."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from torch import nn

#: Room for the header of a safetensors file: names and shapes.
HEADER_BYTES = 16 * 2**20
#: No plan of ours comes near it: it is read whole.
PLAN_BYTES = 64 * 2**20


def read_bounded(path: Path, most: int) -> bytes:
    """The whole of a regular file of at most `most` bytes. Raises `OSError`, whose `strerror` says what is wrong."""
    # A pipe would block for ever, and a device never end; neither is opened to be read.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"it holds {found.st_size} bytes, at most {most} make sense", str(path))
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it holds more than {most} bytes", str(path))
    return content


def weight_bytes(model: nn.Module) -> int:
    """The most that a file with the weights of `model`, or of a pruned form of it, can hold."""
    return HEADER_BYTES + sum(int(value.numel()) * int(value.element_size()) for value in model.state_dict().values())
