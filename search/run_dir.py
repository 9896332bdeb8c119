"""Names of run folders: `digits-001`, `digits-002`, or the one the user gives."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from search.atomic import StoreError, disk_errors
from search.lock import LOCK_NAME

_NAME = re.compile(r"\w[\w.+-]{0,99}")


def check_name(name: str, what: str) -> str:
    """`name` itself when it can only ever be one folder inside another; raises `StoreError` otherwise."""
    if _NAME.fullmatch(name) and len(name.encode()) <= 200:
        return name
    raise StoreError(
        f"{what} is at most 100 letters, digits, '_', '-', '.' or '+' and starts with a letter or digit, "
        f"got {name[:120]!r}"
    )


def next_run_dir(storage: Path, name: str | None, job_stem: str, elsewhere: Collection[str] = ()) -> Path:
    """Make and return the empty folder of a new run in `storage`.

    With a `name`, that folder must be new; without one it is `<job_stem>-001`, `-002`, ... Making the folder
    here reserves it: two commands started together never share one. `elsewhere` are the names of runs whose copies
    are kept in another place. Raises `StoreError`.
    """
    if name is not None:
        if name in elsewhere:
            raise StoreError(
                f"run {name} exists already where copies go: `prunefront search URL/{name}` goes on with it, or choose "
                f"another --name"
            )
        return _named(storage, check_name(name, "a run's name"))
    stem = re.sub(r"[^\w.+-]+", "-", job_stem)[:80].strip("-.+") or "run"
    with disk_errors("make a run folder in", storage):
        storage.mkdir(parents=True, exist_ok=True)
        numbered = re.compile(re.escape(stem) + r"-(\d{3,9})", re.ASCII)
        entries = [*(entry.name for entry in storage.iterdir()), *elsewhere]
        taken = [int(match[1]) for entry in entries if (match := numbered.fullmatch(entry))]
        number = max(taken, default=0)
        while True:
            number += 1
            folder = storage / f"{stem}-{number:03d}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder


def _named(storage: Path, name: str) -> Path:
    folder = storage / name
    with disk_errors("make the run folder", folder):
        storage.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            if (folder / "job.yaml").exists():
                raise StoreError(
                    f"run {name} exists already: `prunefront search {folder}` goes on with it, or choose another --name"
                ) from None
            if not folder.is_dir() or (any(folder.iterdir()) and not (folder / LOCK_NAME).exists()):
                raise StoreError(f"{folder} exists and is no run folder: choose another --name or --storage") from None
            # Left by a command stopped before it had made the run; `RunStore.create` lets only one in.
    return folder
