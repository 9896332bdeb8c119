"""Options that several commands take, and how what is typed for them is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from search.complete import jobs_and_runs
from search.errors import UserError


def number(text: str) -> float:
    """An option's number; our own, because Typer's complaint does not say what was typed."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


def whole(text: str) -> int:
    """An option's whole number."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


Latency = Annotated[float | None, typer.Option(metavar="X", parser=number, help="Budget: latency in milliseconds.")]
Speedup = Annotated[
    float | None, typer.Option(metavar="X", parser=number, help="Budget: speed-up over the dense network.")
]

Source = Annotated[
    Path,
    typer.Argument(
        metavar="JOB.yaml|RUN",
        help="A job file, or a run, for its dense weights.",
        show_default=False,
        autocompletion=jobs_and_runs,
    ),
]

NoAlign = Annotated[
    bool, typer.Option("--no-align", metavar="", help="Any width, not only multiples of the device's block.")
]


def duration(text: str) -> float:
    """Seconds in `90s`, `10m`, `1h30m` or a plain number of seconds; raises `UserError`."""
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"{number}|(?:{number}h)?(?:{number}m)?(?:{number}s)?", text.strip(), re.ASCII)
    plain, hours, minutes, seconds = (float(part or 0.0) for part in match.groups()) if match else (0.0,) * 4
    total = plain + 3600.0 * hours + 60.0 * minutes + seconds
    if total <= 0.0:
        raise UserError(f"--time-budget: {text!r} is no duration above 0: write 90s, 10m or 1h30m")
    return total
