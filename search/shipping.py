"""What travels to a cluster's workers: this package and the folder of the user's job, as modules of Ray's runtime_env.

Nothing is installed by hand. A worker that sees the job's folder itself, with the same code in it, uses that one, so
that data beside the code are found; any other uses the copy. Either stands at the end of `sys.path`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import search
from search.atomic import disk_errors
from search.errors import UserError

PACKAGES = ("admm", "evaluators", "search")
#: In a worker's environment: the name under which the job's folder travelled, and what its code was.
NAME, CODE = "PRUNEFRONT_JOB", "PRUNEFRONT_JOB_CODE"
#: Code travels whole; of other files (a word list, a small table) what is small enough to be sent along.
MOST_CODE, MOST_FILE, MOST_BYTES = 2000, 2**20, 2**26
_SKIPPED = ("__pycache__", "node_modules", "site-packages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cargo:
    """Folders for `runtime_env["py_modules"]`, and what their finder needs to know."""

    modules: tuple[str, ...]
    env_vars: dict[str, str]
    left: tuple[str, ...] = ()
    """Files beside the job's code that stay at home, since they are large."""


def pack(stage: Path, folder: Path | None) -> Cargo:
    """Copy what is to travel into the empty folder `stage`; `folder` is the job's, None where its task is installed.

    Raises `UserError` for a folder that is no job's, by the number of its modules.
    """
    with disk_errors("write", stage):
        modules = [_package(stage / "packages", name) for name in PACKAGES]
        modules.append(_metadata(stage / "packages"))
        if folder is None:
            return Cargo(modules=tuple(map(str, modules)), env_vars={})
        code, others, left = _sorted_files(folder)
        digest = _digest(folder, code)
        name = f"prunefront_job_{_digest(folder, [*code, *others])[:16]}"
        for path in (*code, *others):
            copy = stage / name / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    modules.append(stage / name)
    return Cargo(
        modules=tuple(map(str, modules)),
        env_vars={NAME: name, CODE: digest},
        left=tuple(str(path.relative_to(folder)) for path in left),
    )


def home_of(task: str, folder: Path) -> Path | None:
    """The job's folder if its task's module lies there, None if it is an installed one."""
    root = task.partition(":")[0].partition(".")[0]
    if root in PACKAGES:
        return None
    return folder if (folder / f"{root}.py").is_file() or (folder / root).is_dir() else None


@cache
def arrived(folder: Path) -> Path:
    """Where this process finds the job's code: `folder` itself, or in a worker that lacks it the copy that travelled.

    Raises `UserError` where neither is there.
    """
    name = os.environ.get(NAME)
    if name is None:
        return folder
    if folder.is_dir() and _digest(folder, _sorted_files(folder)[0]) == os.environ.get(CODE):
        return folder
    for place in sys.path:
        if (Path(place) / name).is_dir():
            return Path(place) / name
    raise UserError(f"{folder} is not on this machine, and its copy did not arrive: was the cluster restarted?")


def _home(package: str) -> Path:
    return Path(search.__file__).resolve().parents[1] / package


def _package(stage: Path, name: str) -> Path:
    shutil.copytree(_home(name), stage / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return stage / name


def _metadata(stage: Path) -> Path:
    """What tells `importlib.metadata` the version of the package that travelled."""
    folder = stage / f"prunefront-{search.__version__}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: prunefront\nVersion: {search.__version__}\n")
    return folder


def _sorted_files(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """(code, other files that may travel, files too large to), each in the order of their names."""
    code: list[Path] = []
    others: list[Path] = []
    left: list[Path] = []
    total = 0
    for path in _files(folder):
        if path.suffix == ".py":
            code.append(path)
            if len(code) > MOST_CODE:
                raise UserError(
                    f"{folder} holds more than {MOST_CODE} modules, and a job's folder travels to the workers: put the "
                    f"job and its code in a folder of their own"
                )
            continue
        size = path.stat().st_size
        total += size
        (others if size <= MOST_FILE and total <= MOST_BYTES else left).append(path)
    return code, others, left


def _files(folder: Path) -> Iterator[Path]:
    """Regular files below `folder`, without hidden ones, environments, run folders and folders elsewhere."""
    for place, folders, names in os.walk(folder):
        inside = Path(place)
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not _apart(inside / name))
        for name in sorted(names):
            path = inside / name
            if not name.startswith(".") and name.isprintable() and path.is_file():
                yield path


def _apart(folder: Path) -> bool:
    if folder.name in PACKAGES and folder.resolve() == _home(folder.name):
        return True  # a job in the source tree of this package
    run = (folder / "job.yaml").exists() and (folder / "trials").is_dir()
    return folder.name.startswith(".") or run or (folder / "pyvenv.cfg").exists()


def _digest(folder: Path, files: list[Path]) -> str:
    content = hashlib.sha256()
    for path in files:
        name, data = path.relative_to(folder).as_posix().encode(), path.read_bytes()
        content.update(b"%d %d " % (len(name), len(data)) + name + data)
    return content.hexdigest()
