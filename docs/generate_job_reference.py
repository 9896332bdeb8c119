"""Write the reference in docs/job_file.md from the models that read a job file.

`python docs/generate_job_reference.py` puts it between the page's two marks; `--check` only says whether the page is
current (exit code 1 where it is not). The words are the schema's, which are the strings under the models' fields.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from search.job_schema import job_schema

PAGE = Path(__file__).with_name("job_file.md")
BEGIN = "<!-- reference: written by docs/generate_job_reference.py -->"
END = "<!-- end of the reference -->"

Schema = dict[str, Any]


def reference() -> str:
    """The tables: the keys of a job, then a section for each of its parts, in the job's own order."""
    schema = job_schema()
    parts: Schema = schema["$defs"]
    lines = ["### The whole job", "", *_table(schema, parts)]
    for key, name in _sections(schema):
        lines += ["", f"### `{key}`", "", parts[name]["description"], "", *_table(parts[name], parts)]
    return "\n".join(lines)


def with_reference(page: str) -> str:
    """The page with the text between its marks written anew. Raises `ValueError` where a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks {BEGIN if not begin else END}")
    return f"{before}{begin}\n\n{reference()}\n\n{end}{after}"


def _sections(schema: Schema) -> Iterator[tuple[str, str]]:
    """Each key of the job that holds keys of its own, with the name of its model."""
    for key, of in schema["properties"].items():
        for option in (of, *of.get("anyOf", ()), *of.get("items", {}).get("anyOf", ())):
            if "$ref" in option:
                yield key, _name(option)


def _table(of: Schema, parts: Schema) -> Iterator[str]:
    yield "| key | what it takes | default | meaning |"
    yield "|---|---|---|---|"
    for key, value in of["properties"].items():
        default = _default(of, key, value, parts)
        cells = (f"`{key}`", _takes(value, key), default, _meaning(value, parts))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(of: Schema, key: str, value: Schema, parts: Schema) -> str:
    if key in of.get("required", ()):
        return "must be given"
    if "$ref" in value:
        return ""  # its keys have their own
    default = value.get("default", {})
    if default is None:
        return "none"
    if isinstance(default, list):  # a list of rigs: those keys that do not say what they would be anyway
        default = [_short(item, parts) for item in default]
    return f"`{json.dumps(default)}`"


def _short(item: Any, parts: Schema) -> Any:
    if not isinstance(item, dict):
        return item
    known = parts["RigSpec"]["properties"]
    return {key: value for key, value in item.items() if value != known[key].get("default")}


def _meaning(value: Schema, parts: Schema) -> str:
    said = value.get("description")
    if said is None:
        name = next((_name(option) for option in (value, *value.get("anyOf", ())) if "$ref" in option), None)
        said = "" if name is None else parts[name]["description"]
    return str(said)


def _takes(value: Schema, key: str) -> str:
    if "anyOf" in value:
        options = [_takes(option, key) for option in value["anyOf"] if option.get("type") != "null"]
        return " or ".join(options)
    if "$ref" in value:
        return f"[keys](#{key})"
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    kind = value.get("type")
    if kind == "array":
        return f"list of {_takes(value['items'], key)}"
    if kind == "boolean":
        return "`true`, `false`"
    if kind in ("integer", "number"):
        return ("whole number" if kind == "integer" else "number") + _bounds(value)
    return {"object": "keys and values", "string": "text"}[str(kind)]


def _bounds(value: Schema) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = [f"{word} {_plain(value[key])}" for key, word in words.items() if key in value]
    return f" {' and '.join(said)}" if said else ""


def _plain(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else f"{bound:g}"


def _name(option: Schema) -> str:
    return str(option["$ref"]).rpartition("/")[2]


def main(arguments: list[str]) -> int:
    """Write the page, or say whether it is current; returns the exit code."""
    page = PAGE.read_text()
    wanted = with_reference(page)
    if arguments == ["--check"]:
        if page != wanted:
            print(f"{PAGE} is not current: python docs/generate_job_reference.py")
        return int(page != wanted)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
