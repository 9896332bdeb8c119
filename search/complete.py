"""What a shell offers for an argument that is being typed: run folders, job files, models. It waits for the answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from search.errors import UserError

#: Where run folders are unless a job or the command line says otherwise.
RUNS = "runs"
#: More of them are not looked at: a shell waits for the answer.
MOST = 1000


def runs(incomplete: str) -> list[str]:
    """Run folders, in the folder that is typed; while none is, in the current one and in `runs`."""
    return _matching(incomplete, _is_run)


def jobs_and_runs(incomplete: str) -> list[str]:
    """Job files, and run folders."""
    return _matching(incomplete, lambda path: path.suffix in (".yaml", ".yml") or _is_run(path))


def models_and_runs(incomplete: str) -> list[str]:
    """ONNX files, and run folders."""
    return _matching(incomplete, lambda path: path.suffix == ".onnx" or _is_run(path))


def require_shell(arguments: Sequence[str]) -> None:
    """Raises `UserError` where completion is asked for and the shell cannot be told from the processes around."""
    asked = next((word for word in arguments if word in ("--install-completion", "--show-completion")), None)
    if asked is None:
        return
    import shellingham

    try:
        shellingham.detect_shell()
    except shellingham.ShellDetectionFailure:
        raise UserError(
            f"{asked}: it cannot be told which shell this is: type it in bash, zsh, fish or PowerShell"
        ) from None


def _matching(incomplete: str, wanted: Callable[[Path], bool]) -> list[str]:
    typed = os.path.dirname(incomplete)
    places = [typed] if typed else ["", RUNS]
    return [name for place in places for name in _entries(place, incomplete) if wanted(Path(name))]


def _entries(place: str, incomplete: str) -> Iterator[str]:
    """The entries of a folder that begin as what is typed, by the folder as it was typed; hidden ones are left out."""
    try:
        names = sorted(os.listdir(place or "."))[:MOST]
    except OSError:
        return
    for name in names:
        path = os.path.join(place, name)
        if path.startswith(incomplete) and not name.startswith("."):
            yield path


def _is_run(path: Path) -> bool:
    return (path / "trials").is_dir() and (path / "job.yaml").is_file()
