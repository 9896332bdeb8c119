"""Results and baselines as JSON: nothing is written that cannot be read back, nothing read unproved."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from admm.bounded import read_bounded
from search.atomic import disk_errors, json_text, parse_json
from search.result import SCHEMA, Baseline, TrialResult

#: No record of ours comes near it.
MOST_BYTES = 256 * 2**20
RESULT_NAME = "result.json"

_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_AGAIN = "move the trial's folder away to run it again"


def result_text(result: TrialResult) -> str:
    """A result as JSON; raises `ValueError` for one that could not be read back (a tensor, a wrong type)."""
    try:
        text = json_text(result.to_dict())
    except TypeError as error:
        raise ValueError(str(error)) from None
    parse_result(text)
    return text


def parse_result(text: str | bytes) -> TrialResult:
    """Read what `result_text` wrote; raises `ValueError`, one line, for anything else.

    JSON has no NaN: it stands as null in the file, and is NaN again where the record knows no "none".
    """
    content = parse_json(text)
    if content.get("schema") == SCHEMA:
        # Another schema is named as such by `from_dict`, whatever its values look like.
        _restore(content)
        _check(_RESULT_TYPES, content)
    try:
        return TrialResult.from_dict(content)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _restore(content: dict[str, Any]) -> None:
    for key in ("epochs", "seconds"):
        if key in content and content[key] is None:
            content[key] = math.nan
    try:
        content["notes"] = tuple(content["notes"])
        content["rungs"] = tuple((step, math.nan if value is None else value) for step, value in content["rungs"])
    except KeyError as error:
        raise ValueError(f"{error} is missing") from None
    except (TypeError, ValueError):
        raise ValueError("notes and rungs must be lists of texts and of pairs") from None


def baseline_text(baseline: Baseline) -> str:
    """A baseline as JSON; raises `ValueError` for one that could not be read back."""
    text = json_text(baseline.to_dict())
    parse_baseline(text)
    return text


def parse_baseline(text: str | bytes) -> Baseline:
    """Read what `baseline_text` wrote; raises `ValueError`, one line, for anything else."""
    content = parse_json(text)
    _check(_BASELINE_TYPES, content)
    try:
        return Baseline.from_dict(content)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _adapters(record: type[TrialResult] | type[Baseline]) -> dict[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(hint) for name, hint in get_type_hints(record).items()}


_RESULT_TYPES = _adapters(TrialResult)
_BASELINE_TYPES = _adapters(Baseline)


def _check(types: Mapping[str, TypeAdapter[Any]], content: Mapping[str, Any]) -> None:
    """Hold each value against the type its field states: a dataclass states it, but does not look."""
    for name in (name for name in types if name in content):
        try:
            types[name].validate_python(content[name], strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join([name, *(str(part) for part in first["loc"])])
            raise ValueError(f"{place}: {first['msg']}, got {first['input']!r:.80}") from None


def is_number(name: str) -> bool:
    """Whether a folder of this name is a trial's."""
    return _NUMBER.fullmatch(name) is not None


def numbered(folder: Path) -> list[int]:
    """The entries of `folder` that are named as trials are, ascending; everything else is passed over."""
    with disk_errors("read", folder):
        if not folder.exists():
            return []
        return sorted(int(name) for name in os.listdir(folder) if is_number(name))


@dataclass(frozen=True, slots=True)
class Entry:
    """What a finished trial's folder says: a result, or the problem with it."""

    #: (mtime in ns, size, inode) of result.json: the inode tells apart two writes in one tick of the clock.
    stamp: tuple[int, int, int] | None
    result: TrialResult | None
    problem: str | None


class ResultCache:
    """The results below a `trials/` folder; a file that did not change is not read a second time."""

    def __init__(self, trials_dir: Path) -> None:
        self._dir = trials_dir
        self._seen: dict[int, Entry] = {}

    def scan(self) -> Mapping[int, Entry]:
        """All finished trials by ascending number, as they stand on the disk now."""
        self._seen = {number: self._entry(number) for number in numbered(self._dir)}
        return self._seen

    def look(self, number: int) -> Entry | None:
        """One trial as it stands on the disk now, None where it is not finished: one look, however many trials."""
        if not (self._dir / str(number)).exists():
            self._seen.pop(number, None)
            return None
        self._seen[number] = entry = self._entry(number)
        return entry

    def _entry(self, number: int) -> Entry:
        path = self._dir / str(number) / RESULT_NAME
        stamp: tuple[int, int, int] | None = None
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            known = self._seen.get(number)
            if known is not None and known.stamp == stamp:
                return known
            result = parse_result(read_bounded(path, MOST_BYTES))
            if result.number != number:
                raise ValueError(f"it is that of trial {result.number}")
        except FileNotFoundError:
            return Entry(None, None, f"trial {number}: {RESULT_NAME} is missing: {_AGAIN}")
        except OSError as error:
            # Not kept under its stamp: a network file system may give the file back at the next look.
            return Entry(None, None, f"trial {number}: {RESULT_NAME} cannot be read: {error.strerror}")
        except ValueError as error:
            why = " ".join(str(error).split())
            return Entry(stamp, None, f"trial {number}: {RESULT_NAME} is not to be believed: {why}: {_AGAIN}")
        return Entry(stamp, result, None)
