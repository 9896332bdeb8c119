"""Pieces of one-line messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from admm.errors import PruneError


def one_line(error: BaseException) -> str:
    """Type (our own errors: without) and first line of an exception, short enough for a table."""
    text = (str(error).strip() or "no message").splitlines()[0]
    return text[:200] if isinstance(error, PruneError) else f"{type(error).__name__}: {text}"[:200]


def nearest(name: object, known: Iterable[str]) -> str:
    """The nearest right spelling of a name that is not known."""
    names = [candidate for candidate in known if candidate]
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"{len(names)} names are known"
