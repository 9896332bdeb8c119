"""Files that are there wholly or not at all, whatever a kill -9 or a full disk does meanwhile."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from search.errors import UserError

_MENDS = {
    errno.ENOSPC: "free some space, then go on with `prunefront search RUN`",
    errno.EDQUOT: "free some of the quota, then go on with `prunefront search RUN`",
    errno.EROFS: "choose a folder that can be written with --storage",
    errno.EACCES: "choose a folder that can be written with --storage",
    errno.EPERM: "choose a folder that can be written with --storage",
    errno.ENOENT: "make the folder around it first",
    errno.EEXIST: "a file stands where a folder is needed: choose another --storage",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another --storage",
    errno.ENAMETOOLONG: "choose a shorter name or --storage",
}


class StoreError(UserError):
    """A run folder that cannot be read, written or driven as asked: one line with the mend."""


@contextlib.contextmanager
def disk_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StoreError`: `cannot <action> <path>: <why>: <mend>`."""
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        mend = _MENDS.get(error.errno or 0)
        raise StoreError(f"cannot {action} {path}: {why}" + (f": {mend}" if mend else "")) from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's own entries (a new name, a rename) to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot flush a folder: their rename is durable, or nothing makes it so.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush `folder` and all below it: a rename must never outrun what it publishes."""
    for place, _, names in os.walk(folder):
        for name in names:
            handle = os.open(Path(place, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(place))


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `path` so that every reader, even after a crash, sees the old or the new content whole.

    A temporary file in the same folder is filled, flushed and renamed over `path`; text is UTF-8. Raises
    `StoreError` when the disk is full or the folder cannot be written: the old content then stays.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with disk_errors("write", path):
        try:
            # 0o666 under the umask, not the 0o600 of `tempfile`: a run folder may be read by others.
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def is_temporary(name: str) -> bool:
    """Whether a file of this name was begun by `write_atomic`, here or in a process that was killed."""
    return re.fullmatch(r"\..+\.\d+\.[0-9a-f]{8}\.tmp", name) is not None


def json_text(content: Mapping[str, Any]) -> str:
    """Standard JSON, which knows no NaN: a number that is not finite is written as null."""
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def parse_json(text: str | bytes) -> dict[str, Any]:
    """The JSON object in `text`; raises `ValueError`, one line, where there is none."""
    try:
        content = json.loads(text)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON, perhaps torn: {error}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, not an object")
    return content
