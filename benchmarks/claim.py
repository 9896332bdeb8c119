"""What every benchmark ends with: one claim as a line of JSON, and the file where its figures are kept."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evaluators.host import allowed_cores, cpu_isa, cpu_model

RESULTS = Path(__file__).parent / "results"


def commit(root: Path) -> str | None:
    """The commit checked out in the repository at `root`, with "+changes" where its files differ from it.

    None outside git, in a copy that only lies inside some repository, and without git. Figures filed since the commit
    are no change of the code, so `benchmarks/results` is left out; a file that git does not know may be one.
    """
    # Variables of a hook that runs this would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ("git", "--no-optional-locks", "-C", str(root), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None
        known = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return known + ("+changes" if changed else "")


#: Read when a benchmark starts: hours later the files may be those of another commit, which did not run.
COMMIT = commit(Path(__file__).parents[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One statement about this project with the figure that decides it."""

    claim: str
    figure: float
    unit: str
    bar: float
    holds: bool
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The last line that a benchmark prints."""
        return json.dumps(asdict(self))

    def record(self, name: str, *, packages: tuple[str, ...]) -> Path:
        """Add the claim with date, commit, processor and versions to `results/<name>.json`; earlier figures stay."""
        path = RESULTS / f"{name}.json"
        entries = json.loads(path.read_text()) if path.exists() else []
        made = {"date": str(datetime.date.today()), "commit": COMMIT, **environment(packages)}
        entries.append({**made, **asdict(self)})
        path.write_text(json.dumps(entries, indent=1) + "\n")
        return path


def environment(packages: tuple[str, ...]) -> dict[str, Any]:
    """What a figure depends on beside the code: processor, cores allowed, Python and the packages named."""
    return {
        "cpu": cpu_model(),
        "isa": cpu_isa(),
        "cores": len(allowed_cores()),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }
