"""What every benchmark ends with: one claim as a line of JSON, and the file where its figures are kept."""

from __future__ import annotations

import datetime
import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evaluators.host import allowed_cores, cpu_isa, cpu_model

RESULTS = Path(__file__).parent / "results"


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
        """Add the claim, dated, with processor and versions, to `results/<name>.json`; earlier figures stay."""
        path = RESULTS / f"{name}.json"
        entries = json.loads(path.read_text()) if path.exists() else []
        entries.append({"date": str(datetime.date.today()), **environment(packages), **asdict(self)})
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
