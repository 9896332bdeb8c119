"""Files at a URL: a folder, an object store (`s3://`, `gs://`), anything that Arrow or fsspec opens."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import fsspec
from fsspec.core import url_to_fs
from pyarrow import ArrowInvalid
from pyarrow import fs as arrow

from search.atomic import StoreError
from search.errors import UserError

_PART = re.compile(r"[\w+-][\w.+-]*")
#: Weights are copied in pieces of this many bytes.
_PIECE = 2**24


def is_url(text: str) -> bool:
    """Whether this names a place by its scheme; `file:///folder` does, a path and `C:/folder` do not."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def join_url(url: str, name: str) -> str:
    """`name` below `url`, before what its query says of how it is reached."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def name_of(url: str) -> str:
    """The last part of a URL's path."""
    return urlsplit(url).path.rstrip("/").rpartition("/")[2]


class Remote:
    """The folder at `url`; names are relative to it, with `/` between their parts.

    What cannot be reached, read or written is a one-line `StoreError`; a URL that nothing opens a `UserError`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = _opened(url)
        self._root = self._root.rstrip("/")

    def names(self) -> list[str]:
        """The entries of the folder itself; none where there is no folder."""
        with self._told("list"):
            found = self._fs.get_file_info(arrow.FileSelector(self._root, allow_not_found=True))
        return sorted(entry.base_name for entry in found if entry.base_name)

    def files(self) -> dict[str, int]:
        """All files below, with their sizes in bytes; hidden ones and what no run folder holds are left out."""
        with self._told("list"):
            selector = arrow.FileSelector(self._root, recursive=True, allow_not_found=True)
            found = self._fs.get_file_info(selector)
        below = len(self._root) + 1
        files = {entry.path[below:]: entry.size for entry in found if entry.type == arrow.FileType.File}
        # Keys of an object store may be any text: one that would leave a folder on this disk is none of ours.
        return {name: size for name, size in files.items() if all(_PART.fullmatch(part) for part in name.split("/"))}

    def read(self, name: str, most: int = 2**26) -> bytes | None:
        """A small file's content; None where there is none. Raises `StoreError` for one of more than `most` bytes."""
        with self._told("read", name):
            info = self._fs.get_file_info(self._path(name))
            if info.type != arrow.FileType.File:
                return None
            if info.size is not None and info.size > most:
                where = without_secrets(join_url(self.url, name))
                raise StoreError(f"cannot read {where}: it has {info.size:,} bytes, {most:,} at most are read")
            with self._fs.open_input_stream(self._path(name)) as stream:
                return bytes(stream.read())

    def put(self, name: str, content: bytes | Path) -> None:
        """Write a file, whole or not at all, over one that is there. Raises `FileNotFoundError` for a gone source."""
        if isinstance(content, Path) and not content.exists():
            raise FileNotFoundError(content)
        path = self._path(name)
        # An object is there when it is closed; a file of a folder as soon as it is opened.
        whole = not self._is_folder
        to = path if whole else f"{path}.{secrets.token_hex(4)}.tmp"
        with self._told("write", name):
            try:
                self._write(to, content)
            except FileNotFoundError:
                self._fs.create_dir(path.rpartition("/")[0], recursive=True)
                self._write(to, content)
            if not whole:
                self._fs.move(to, path)

    def _write(self, path: str, content: bytes | Path) -> None:
        with self._fs.open_output_stream(path) as out:
            if isinstance(content, bytes):
                out.write(content)
                return
            with content.open("rb") as file:
                while piece := file.read(_PIECE):
                    out.write(piece)

    def fetch(self, name: str, to: Path) -> None:
        """Copy a file to this disk; `to` is new, and its folder is made."""
        with self._told("read", name):
            to.parent.mkdir(parents=True, exist_ok=True)
            with self._fs.open_input_stream(self._path(name)) as stream, to.open("wb") as file:
                while piece := stream.read(_PIECE):
                    file.write(piece)

    def remove(self, name: str) -> None:
        """Remove a file; none there is no error."""
        with self._told("remove", name), contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(self._path(name))

    @property
    def _is_folder(self) -> bool:
        return str(self._fs.type_name) in ("local", "subtree", "py::fsspec+file", "py::fsspec+('file', 'local')")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _told(self, action: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # each file system has its own, and so has each of its libraries
            where = join_url(self.url, name) if name else self.url
            why = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise StoreError(f"cannot {action} {without_secrets(where)}: {why}") from error


def without_secrets(url: str) -> str:
    """A URL as it may be shown: without user, password and what a query holds, where keys are given."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def _opened(url: str) -> tuple[arrow.FileSystem, str]:
    scheme = urlsplit(url).scheme
    try:
        try:
            filesystem, path = arrow.FileSystem.from_uri(url)
        except ArrowInvalid:
            if scheme not in fsspec.available_protocols():
                raise UserError(
                    f"storage {without_secrets(url)}: nothing opens {scheme}://: give a folder, s3://, gs:// or "
                    f"another scheme of fsspec"
                ) from None
            of_fsspec, path = url_to_fs(url)
            filesystem = arrow.PyFileSystem(arrow.FSSpecHandler(of_fsspec))
    except UserError:
        raise
    except Exception as error:  # a library that is missing, credentials that are not there, a host that is not known
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"storage {without_secrets(url)} cannot be opened: {why}") from None
    return filesystem, str(path)
