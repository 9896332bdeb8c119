"""Read a job from YAML; every mistake in it becomes one line with its place and the nearest right spelling."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from search.errors import UserError
from search.job import Job, Place, locate
from search.job_explain import explain, shown
from search.spelling import clipped, nearest

MAX_BYTES = 1_000_000
#: Aliases let a small file stand for a huge value ("billion laughs"); no honest job comes near these.
MAX_NODES = 20_000
MAX_DEPTH = 30
TOO_LARGE = f"expands to more than {MAX_NODES:,} values: too large for a job"
TOO_DEEP = f"nested more than {MAX_DEPTH} deep: too deep for a job"

_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_FLOAT = re.compile(
    r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)


class _TooMuch(Exception):
    """More than a job can hold, found while the file is read: all of it would take PyYAML half a minute a megabyte."""

    def __init__(self, line: int | None, what: str) -> None:
        super().__init__(what)
        self.line = line


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: `1e-3` is a number here, and `no` and `1:30` are text."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As PyYAML does, until it is too much."""
        self._nodes += 1
        self._depth += 1
        if self._nodes > MAX_NODES:
            raise _TooMuch(None, TOO_LARGE)
        if self._depth > MAX_DEPTH + 1:
            raise _TooMuch(self.line + 1, TOO_DEEP)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something else."""


_Loader.yaml_implicit_resolvers = {}
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
    _kind.add_implicit_resolver("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""])
    _kind.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load_job(path: Path) -> Job:
    """The job in the YAML file at `path`; raises `UserError`, one line, such as
    `examples/x.yaml:12: search.trails: unknown key; did you mean 'trials'?`.
    """
    content, lines = read_yaml(path)
    base_dir = content.get("base_dir", ".")
    try:
        job = Job.model_validate(content)
    except ValidationError as error:
        place, message = explain(error, lines)
        raise UserError(f"{locate(str(path), lines, place)}: {message}") from None
    job = job.model_copy(update={"base_dir": str((path.resolve().parent / base_dir).resolve())})
    job._source, job._lines = str(path), lines
    return job


def dump_yaml(content: Mapping[str, Any]) -> str:
    """Plain YAML that `read_yaml` reads back to the same content."""
    # ASCII only: PyYAML writes some line separators bare and reads them back as spaces.
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False)


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Place, int]]:
    """The mapping in a YAML file, and the line (from 1) of every value by its place.

    Raises `UserError`, one line, for a file that cannot be read, is not YAML, is no mapping, repeats a key or
    expands beyond `MAX_NODES` values.
    """
    text = _read_text(path)
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        problem = error.problem or error.context or "no reason given"
        if problem.startswith("but "):
            problem = f"{error.context}, {problem}"
        mend = ": indent with spaces" if "'\\t'" in problem else ""
        raise UserError(f"{where}: not valid YAML: {clipped(problem, 200)}{mend}") from None
    except yaml.reader.ReaderError as error:
        raise UserError(
            f"{path}: not a job file: it holds the character #x{error.character:04x}, which no text does"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    except _TooMuch as error:
        raise UserError(f"{path}{'' if error.line is None else f':{error.line}'}: {error}") from None
    if root is None:
        raise UserError(f"{path}: empty: a job names at least a task, such as task: search.tasks.digits:task")
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}:1: a job is a mapping of keys, such as task: search.tasks.digits:task")
    reader = _NodeReader(str(path))
    content: dict[str, Any] = reader.read(root, ())
    return content, reader.lines


def _read_text(path: Path) -> str:
    if path.is_dir():
        inside = sorted(path.glob("*.y*ml"))
        raise UserError(f"{path}: a folder, not a job file" + (f": try {inside[0]}" if inside else ""))
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        beside = [str(other) for other in sorted(path.parent.glob("*.y*ml"))]
        match = nearest(str(path), beside)
        raise UserError(f"{path}: no such file" + (f"; did you mean {match}?" if match else "")) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES:,} bytes: not a job file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: byte {raw[error.start]:#04x} at {error.start}") from None


class _NodeReader:
    """Turns YAML nodes into plain values, keeping the line of each."""

    def __init__(self, source: str) -> None:
        self.lines: dict[Place, int] = {}
        self._source = source
        self._count = 0

    def read(self, node: yaml.Node, place: Place) -> Any:
        """The value of `node`, which stands at `place`."""
        line = node.start_mark.line + 1
        self.lines.setdefault(place, line)
        self._count += 1
        if self._count > MAX_NODES:
            raise UserError(f"{self._source}: {TOO_LARGE}")
        if len(place) > MAX_DEPTH:
            raise UserError(f"{self._source}:{line}: {TOO_DEEP}")
        if isinstance(node, yaml.SequenceNode):
            self._refuse_tag(node, "seq", place)
            return [self.read(item, (*place, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            self._refuse_tag(node, "map", place)
            return self._mapping(node, place)
        return self._scalar(node, place)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        content: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.tag.endswith(":str"):
                got = clipped(key) if isinstance(key, str) else "a list or mapping"
                self._fail(line, place, f"keys must be words, got {got}: put it in quotes")
            if key in content:
                self._fail(line, (*place, key), f"given twice, first in line {first[key]}: remove one")
            first[key] = line
            self.lines[(*place, key)] = line
            content[key] = self.read(value_node, (*place, key))
        return content

    def _scalar(self, node: yaml.Node, place: Place) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        try:
            if kind == "str":
                return str(node.value)
            if kind == "int":
                return int(node.value)
            if kind == "float":
                return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))
            if kind == "bool":
                return node.value.lower() == "true"
            if kind == "null":
                return None
        except (ValueError, KeyError, TypeError):
            self._fail(node.start_mark.line + 1, place, f"not a number: {shown(node.value)}")
        return self._refuse_tag(node, "str", place)

    def _refuse_tag(self, node: yaml.Node, kind: str, place: Place) -> None:
        if node.tag != f"tag:yaml.org,2002:{kind}":
            self._fail(node.start_mark.line + 1, place, f"tags such as {shown(node.tag)} have no meaning in a job")

    def _fail(self, line: int, place: Place, message: str) -> typing.NoReturn:
        raise UserError(f"{locate(f'{self._source}:{line}', {}, place)}: {message}")
