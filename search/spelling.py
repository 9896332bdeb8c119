"""Words in messages: the nearest right spelling of a name that does not exist, and words cut to fit in a line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def clipped(text: str, limit: int = 60) -> str:
    """`text`, cut where it is longer than a word within one line should be."""
    return text if len(text) <= limit else f"{text[:limit]}..."


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `word` most likely stands for, or None.

    Capitals do not count; for dotted candidates the last part alone may match too (`digits` finds
    `search.tasks.digits`).
    """
    names = list(dict.fromkeys(candidates))
    by_key: dict[str, str] = {}
    for name in names:
        by_key.setdefault(name.lower(), name)
    for name in names:
        by_key.setdefault(name.lower().rpartition(".")[2], name)
    found = difflib.get_close_matches(word.lower(), list(by_key), n=1, cutoff=0.6)
    return by_key[found[0]] if found else None


def suggest(word: str, candidates: Iterable[str], *, limit: int = 8) -> str:
    """The end of an error line: `did you mean 'trials'?`, or what there is to choose from."""
    names = list(dict.fromkeys(candidates))
    match = nearest(word, names)
    if match is not None:
        return f"did you mean {match!r}?"
    if not names:
        return "there is nothing to choose from"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"there is {', '.join(names[:limit])}{more}"
