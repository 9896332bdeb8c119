"""A mistake: what a person typed, and what the one line in answer must hold."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from search.bench import Prepared
from search.cli import run

#: A job that is right, a section a line.
RIGHT = {
    "task": "task: small:task",
    "layers": "layers: {exclude: [head]}",
    "sparsity": "sparsity: {align: 8}",
    "admm": "admm: {iterations: 2}",
    "finetune": "finetune: {epochs: 1}",
}


def job(*lines: str) -> str:
    """The right job but for these lines, each a section: of one that it has, in its place; else at the end."""
    return "\n".join({**RIGHT, **{line.partition(":")[0]: line for line in lines}}.values()) + "\n"


@dataclass(frozen=True)
class Mistake:
    """`prunefront TYPED`, in a folder with these files, ends with `code` and one line that holds all of `says`."""

    typed: str
    says: tuple[str, ...]
    code: int = 2
    files: dict[str, str] = field(default_factory=dict)
    """Written first, over what the folder holds."""
    shapes: bool = False
    """Whether the command gets as far as exporting the network and measuring its smallest form, which takes seconds."""
    wrong: str = ""
    """What is wrong in the files."""

    def __str__(self) -> str:
        return (self.wrong or self.typed).replace("\n", " ")

    @property
    def arguments(self) -> list[str]:
        """As a shell would hand them over; `''` is an empty one."""
        return ["" if word == "''" else word for word in self.typed.split()]

    def prepare(self, folder: Path) -> None:
        """Write the files."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)

    def make(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
        """Make the mistake in `folder`, which must be the current one; returns the line that was said."""
        self.prepare(folder)
        with pytest.MonkeyPatch.context() as patch:
            if not self.shapes:
                patch.setattr(Prepared, "check_shapes", lambda self: None)
            line = refused(folder, self.arguments, capfd, code=self.code)
        for needle in self.says:
            assert needle in line
        return line


def typed(command: str, *says: str, code: int = 2, shapes: bool = False, **files: str) -> Mistake:
    """A mistake in the command line; the files' names have `_` for the dot."""
    return Mistake(command, says, code=code, shapes=shapes, files={k.replace("_", ".", 1): v for k, v in files.items()})


def wrong(lines: str, *says: str, shapes: bool = False) -> Mistake:
    """A mistake in these lines of a job, bad.yaml, that is searched."""
    return Mistake("search bad.yaml", says, files={"bad.yaml": job(*lines.splitlines())}, shapes=shapes, wrong=lines)


def whole(content: str, *says: str) -> Mistake:
    """A job file that is no job at all."""
    return Mistake("search bad.yaml", says, files={"bad.yaml": content}, wrong=content or "an empty file")


def refused(folder: Path, arguments: list[str], capfd: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Run a command that must be refused; returns the one line it says, having left nothing behind."""
    before = content(folder)
    capfd.readouterr()
    assert run(arguments) == code
    said, complaint = capfd.readouterr()
    assert "Traceback" not in said + complaint
    lines = complaint.splitlines()
    assert len(lines) == 1, complaint
    assert lines[0].startswith("error: ")
    assert content(folder) == before
    return lines[0].removeprefix("error: ")


def content(folder: Path) -> dict[str, tuple[int, int]]:
    """(size, time) of every file below, and every folder; nothing of what Python and the driver's lock leave."""
    found = {}
    for path in folder.rglob("*"):
        if "__pycache__" in path.parts or path.name == "driver.lock":
            continue
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found[str(path.relative_to(folder))] = (0, 0) if path.is_dir() else (status.st_size, status.st_mtime_ns)
    return found
