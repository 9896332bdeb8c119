"""What a page of documentation says that can be checked: its code blocks, commands, links, headings and figures."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
import statistics
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.S | re.M)
_AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
    "max": max,
}


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and content."""
    return [(language, content) for _, language, content in _FENCE.findall(text)]


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", text)


def _lines(text: str) -> list[str]:
    """What stands behind `prunefront` in blocks and in backticks.

    A line in a block goes on in the lines below that are indented by four and more, or after a backslash.
    """
    found: list[str] = []
    for _, content in blocks(text):
        found += re.findall(r"^(?:\$ )?(?:\.venv/bin/)?prunefront (.+(?:(?:\\\n.*)|(?:\n {4,}.*))*)", content, re.M)
    return found + re.findall(r"`prunefront ([^`]+)`", prose(text))


def typed(text: str) -> list[tuple[str, list[str]]]:
    """Each `prunefront` command of a page, with the options that it is given."""
    commands = []
    for line in _lines(text):
        command, *_ = line.split()
        if not command.startswith("--"):  # one of the program itself
            commands.append((command, re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", re.sub(r"\s#.*", "", line))))
    return commands


@functools.cache
def own_options() -> set[str]:
    """What the program itself takes, before any command."""
    from search.cli import app

    group: Any = typer.main.get_command(app)
    return {"--help", *(option for parameter in group.params for option in parameter.opts)}


@functools.cache
def known_commands() -> dict[str, set[str]]:
    """The commands that there are, each with its options."""
    from search.cli import app

    group: Any = typer.main.get_command(app)
    return {name: {"--help", *(o for p in command.params for o in p.opts)} for name, command in group.commands.items()}


def unknown(text: str) -> list[str]:
    """Commands and options that a page names and the program does not have."""
    known = known_commands()
    wrong = [command for command, _ in typed(text) if command not in known]
    first = [line.split()[0] for line in _lines(text)]
    wrong += [word for word in first if word.startswith("--") and word not in own_options()]
    return wrong + [
        f"{command} {option}"
        for command, options in typed(text)
        for option in options
        if option not in known.get(command, ())
    ]


def links(text: str) -> list[str]:
    """The targets of links and pictures that stay in the repository."""
    plain = re.sub(r"`[^`\n]*`", "", prose(text))
    return [t for t in re.findall(r"\]\(([^)\s]+)\)", plain) if not re.match(r"[a-z]+:", t)]


def headings(text: str) -> list[str]:
    """The headings of a page, as they are written."""
    return re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.M)


def anchors(heading: str) -> tuple[str, str]:
    """What a link to a heading is called on GitHub and by Python-Markdown's `toc`, which MkDocs uses."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    github = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
    ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    toc = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())
    return github, toc


@dataclass(frozen=True)
class Figure:
    """A figure of a page beside its source: `<!-- 3.88x = int8.json details/resnet18/int8/speedup -->`.

    The source is a file of benchmarks/results and a path in its newest entry that has the path, `*` for all and
    `name=value,...` for the elements of a list; before it may stand mean, median, min or max. A number of the
    program itself is `default module:function parameter`, and a factor, or `default module:CONSTANT`.
    """

    shown: str
    source: str

    def agrees(self) -> bool:
        """Whether the figure is the source's, rounded to the digits shown; percentages may be stored as parts of 1."""
        number, digits = _number(self.shown)
        scales = (1.0, 100.0) if re.search("%|points", self.shown) else (1.0,)
        return any(abs(scale * self.value() - number) <= 0.5 * 10.0**-digits + 1e-9 for scale in scales)

    def value(self) -> float:
        """What the source holds. Raises `LookupError` or `AttributeError` where there is no such thing."""
        words = self.source.split()
        if words[0] == "default":
            module, _, name = words[1].partition(":")
            scale = float(words[3]) if len(words) > 3 else 1.0
            callee = getattr(importlib.import_module(module), name)
            if not callable(callee):  # a constant
                return float(callee)
            return float(inspect.signature(callee).parameters[words[2]].default) * scale
        aggregate = _AGGREGATES[words.pop(0)] if words[0] in _AGGREGATES else None
        name, path = words[0], " ".join(words[1:])
        filed = json.loads((RESULTS / name).read_text())
        for entry in reversed(filed if isinstance(filed, list) else [filed]):
            values = list(_reach(entry, path.split("/")))
            if values:
                return float(values[0]) if aggregate is None else float(aggregate([float(v) for v in values]))
        raise LookupError(f"{name} has no {path}")


def figures(text: str) -> list[Figure]:
    """The figures of a page that name their source."""
    return [Figure(*found) for found in re.findall(r"<!-- ([\d.,]+ ?[^=\n]*?) = ([^\n]+?) -->", text)]


def numbers(text: str) -> list[str]:
    """What the prose of a page gives as measured: numbers with a unit, outside code and comments."""
    plain = re.sub(r"`[^`\n]*`|<!--.*?-->", "", prose(text), flags=re.S)
    return re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:x| %| ms| s| points)(?![\w-])", plain)


def _number(shown: str) -> tuple[float, int]:
    text = re.match(r"[\d.,]+", shown)
    assert text is not None
    plain = text[0].replace(",", "").rstrip(".")
    return float(plain), len(plain.partition(".")[2])


def _reach(value: Any, path: list[str]) -> Iterator[Any]:
    if not path:
        yield value
        return
    key, *rest = path
    found: list[Any] = []
    if key == "*":
        found = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    elif isinstance(value, dict):
        found = [value[key]] if key in value else []
    elif isinstance(value, list) and "=" in key:
        wanted = dict(condition.split("=", 1) for condition in key.split(","))
        found = [item for item in value if all(str(item.get(name)) == given for name, given in wanted.items())]
    elif isinstance(value, list) and key.isdigit():
        found = value[int(key) : int(key) + 1]
    for item in found:
        yield from _reach(item, rest)
