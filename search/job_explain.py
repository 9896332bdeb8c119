"""What pydantic found wrong with a job, as one line for the person who wrote it."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from search.job import Job, Place
from search.spelling import clipped, nearest

_WANTED = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping of keys",
    "model_type": "must be a mapping of keys",
    "too_short": "must name at least one",
    "string_too_short": "must not be empty",
}
#: What the patterns of texts stand for, by their keys.
_FORMS = {
    "study": "sqlite, sqlite:///FILE, journal:FILE or postgresql://HOST/DB",
    "mlflow_uri": "http://HOST:PORT, sqlite:///FILE, postgresql://HOST/DB or databricks",
    "resource": "letters, digits and _, a letter first",
}


def explain(error: ValidationError, lines: Mapping[Place, int]) -> tuple[Place, str]:
    """(place, message) of the first mistake; unknown keys come first, for they explain the missing ones."""
    found = error.errors(include_url=False)
    # pydantic calls a list with a wrong item too short as well.
    inner = {mistake["loc"][:depth] for mistake in found for depth in range(len(mistake["loc"]))}
    mistakes = [m for m in found if m["type"] != "too_short" or m["loc"] not in inner]
    first = min(mistakes, key=lambda m: (m["type"] != "extra_forbidden", lines.get(m["loc"], 0)))
    place, message = first["loc"], _message(first)
    if first["type"] == "value_error":
        # A rule about several values says itself which key it is about, below the place of the whole.
        key = re.match(r"^([a-z_]+(?:\.[a-z_]+)*): ", message)
        if key is not None:
            place, message = (*place, *key[1].split(".")), message[key.end() :]
    others = len(mistakes) - 1
    if others:
        message += f" (and {others} more mistake{'s' if others > 1 else ''})"
    return place, message


def shown(value: object, limit: int = 60) -> str:
    """A value as it can stand within one line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return clipped(repr(value), limit)


def _message(mistake: ErrorDetails) -> str:
    kind, place, value = mistake["type"], mistake["loc"], mistake.get("input")
    context = mistake.get("ctx", {})
    if kind == "extra_forbidden":
        key = str(place[-1])
        known, homes = _known_keys(place[:-1]), _homes(key)
        match = nearest(key, known) or next((name for name in known if name.startswith(f"{key}_")), None)
        # a key that stands at the top and has its home in a section is no misspelling of what is at the top
        meant = [*([match] if match and not (homes and len(place) == 1) else []), *homes]
        if meant:
            return f"unknown key; did you mean {_either([repr(name) for name in meant])}?"
        return f"unknown key; use {_either(known)}"
    if kind == "missing":
        return "is missing"
    if value is None and kind.endswith("_type"):
        return "is empty: give it a value or remove the line"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        match = nearest(value, choices) if isinstance(value, str) else None
        mend = f"; did you mean {match!r}?" if match else ""
        return f"must be {_either(choices)}, got {shown(value)}{mend}"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return f"{_bounds(place, context)}, got {shown(value)}"
    if kind == "string_pattern_mismatch":
        return f"must be {_FORMS.get(str(place[-1]), 'of another form')}, got {shown(value)}"
    mend = f": write [{value}]" if kind == "tuple_type" and isinstance(value, str) and value.isidentifier() else ""
    return f"{_WANTED.get(kind, mistake['msg'])}, got {shown(value)}{mend}"


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _field(place: Place) -> FieldInfo | None:
    """The field of the job at `place`; None for an item of a list of plain values, or no field at all."""
    owner = _section(place[:-1])
    return None if owner is None or not place else owner.model_fields.get(str(place[-1]))


def _known_keys(place: Place) -> list[str]:
    owner = _section(place)
    return [] if owner is None else list(owner.model_fields)


def _homes(key: str) -> list[str]:
    """Where else a job has a key of this name: `search.trials`."""
    sections = {name: _section((name,)) for name in Job.model_fields if name != "rigs"}
    inside = [f"{name}.{key}" for name, section in sections.items() if section and key in section.model_fields]
    return [*([key] if key in Job.model_fields else []), *inside]


def _section(place: Place) -> type[BaseModel] | None:
    """The part of the job that stands at `place`."""
    section: type[BaseModel] | None = Job
    for part in place:
        if isinstance(part, int) or section is None:
            continue
        field = section.model_fields.get(part)
        section = None if field is None else _model_in(field.annotation)
    return section


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(part) for part in typing.get_args(annotation))
    return next((model for model in found if model is not None), None)


def _bounds(place: Place, context: Mapping[str, Any]) -> str:
    """`must lie in [0, 1)`, `must be at least 1`: both bounds of the field, not only the one that was broken."""
    field = _field(place)
    low, low_open, high, high_open = context.get("ge"), False, context.get("le"), False
    for rule in _rules(field):
        if isinstance(rule, Ge):
            low, low_open = rule.ge, False
        elif isinstance(rule, Gt):
            low, low_open = rule.gt, True
        elif isinstance(rule, Le):
            high, high_open = rule.le, False
        elif isinstance(rule, Lt):
            high, high_open = rule.lt, True
    if low is not None and high is not None:
        return f"must lie in {'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
    if low is not None:
        return f"must be above {low:g}" if low_open else f"must be at least {low:g}"
    return f"must be below {high:g}" if high_open else f"must be at most {high:g}"


def _rules(field: FieldInfo | None) -> list[Any]:
    return [] if field is None else list(field.metadata)
