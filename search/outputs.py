"""Where a job file may have things written: below the current folder. Anywhere else is for the command line to say.

A job file may be somebody else's, and a folder cloned from somewhere may hold links: neither is to choose a place on
the user's disk.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from search.job import Job
from search.remote import is_url

#: Schemes of URLs that name a folder of this machine.
_ON_THIS_DISK = ("file", "local")

_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def require_inside(job: Job, *, storage: str | None) -> None:
    """Raises `UserError` for a `storage`, a study or a log of the job file that lies outside the current folder.

    `storage` is what the command line says instead of the file's: it may lie anywhere, and studies below it too.
    """
    here = Path.cwd().resolve()
    folder = _storage_folder(job.storage)
    if storage is None and folder is not None and not _below(folder, [here]):
        raise job.error(
            "storage", f"{job.storage!r} leads out of the current folder: if you mean it, say --storage {job.storage}"
        )
    roots = [here, *([Path(storage).resolve()] if storage is not None and not _URL.match(storage) else [])]
    written = {"search.study": job.search.study, "logging.mlflow_uri": job.logging.mlflow_uri or ""}
    for key, setting in written.items():
        place = _file_behind(setting)
        if place is not None and (place.startswith("file:") or not _below(Path(place), roots)):
            raise job.error(
                key,
                f"{place!r} leads out of the current folder and of --storage: put it below one of them, or leave it "
                f"out",
            )


def _storage_folder(setting: str) -> Path | None:
    """The folder on this machine that a storage names, by its path or by a URL; None for another machine's."""
    if not is_url(setting):
        return Path(setting)
    parts = urlsplit(setting)
    return Path(unquote(parts.path)) if parts.scheme.lower() in _ON_THIS_DISK else None


def _file_behind(setting: str) -> str | None:
    """The file behind the URL of a study or a log; None for the run's own, and for a server."""
    for kind in ("sqlite:///", "journal:"):
        if setting.startswith(kind):
            return setting.removeprefix(kind).partition("?")[0]
    return None


def _below(path: Path, roots: list[Path]) -> bool:
    """Whether the path, its links followed, lies in one of these folders."""
    real = path.resolve()
    return any(real.is_relative_to(root) for root in roots)
