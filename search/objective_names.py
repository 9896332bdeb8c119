"""What the objectives of a job may be called; needs nothing, so that a job can be read without anything heavy."""

from __future__ import annotations

from collections.abc import Sequence

from search.spelling import suggest

ACCURACY, LATENCY, SIZE, MACS = "accuracy", "latency", "size", "macs"
#: `latency:RIG` is the latency on another rig of the job than the deciding one.
ON = "latency:"
DEFAULT = (ACCURACY, LATENCY)
#: More costs make every plan a trade-off that nothing dominates, and a front that nobody can read.
MOST_COSTS = 2


def require_objectives(names: Sequence[str]) -> None:
    """Raises `ValueError`, one line, unless these are accuracy and one or two known costs, each named once."""
    kinds = (ACCURACY, LATENCY, f"{ON}RIG", SIZE, MACS)
    for name in names:
        if name not in (ACCURACY, LATENCY, SIZE, MACS) and not (name.startswith(ON) and name != ON):
            raise ValueError(f"{name!r} is no objective; {suggest(name, kinds)}")
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is named twice")
    if not names or names[0] != ACCURACY:
        raise ValueError(f"must begin with {ACCURACY}, got {', '.join(names) or 'nothing'}")
    if not 1 <= len(names) - 1 <= MOST_COSTS:
        raise ValueError(
            f"{ACCURACY} goes with one or two of {', '.join(kinds[1:])}, got {', '.join(names[1:]) or 'none'}"
        )


def rig_of(name: str) -> str | None:
    """RIG in `latency:RIG`; None of any other objective."""
    return name.removeprefix(ON) if name.startswith(ON) else None


def require_rigs(names: Sequence[str], rigs: Sequence[str]) -> None:
    """Raises `ValueError` for a latency on a rig that is not among `rigs`, or on the first, which decides."""
    for name in names:
        rig = rig_of(name)
        if rig is not None and rig not in rigs:
            raise ValueError(f"{name!r}: {rig!r} is not among the rigs; {suggest(rig, rigs)}")
        if rig is not None and rig == rigs[0]:
            raise ValueError(f"{name!r}: {rig} is the rig that decides: its latency is called {LATENCY!r}")
