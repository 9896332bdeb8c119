"""Strategies that break a job: values by the JSON schema, keys, and the very text of the file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import yaml
from hypothesis import strategies as st

from search.job import Job
from search.job_file import MAX_BYTES, dump_yaml, read_yaml
from search.job_schema import job_schema
from tests.pages import ROOT

Schema: TypeAlias = dict[str, Any]
#: Where a value stands in a job: `("rigs", 0, "threads")`.
Place: TypeAlias = tuple[str | int, ...]

SCHEMA = job_schema()
DIGITS = ROOT / "examples" / "digits.yaml"
SHORT = read_yaml(DIGITS)[0]
#: Every key of a job, written out.
FULL = Job.model_validate(
    {
        **SHORT,
        "structures": ["filter", "shape"],
        "rigs": [{"name": "onnxruntime-cpu", "threads": 2}, {"name": "torch-cpu", "precision": "bf16"}],
        "budget": {"speedup": 2.0, "rig": "torch-cpu"},
        "search": {"objectives": ["accuracy", "latency", "macs"]},
        "resources": {"cpus_per_trial": 2.0, "max_concurrent": 2},
    }
).model_dump(mode="json")


def places(content: Any, schema: Schema, place: Place = ()) -> Iterator[tuple[Place, Schema]]:
    """Every value of a job with what the schema says of it; of a choice, what fits the value."""
    schema = resolved(schema, content)
    yield place, schema
    if isinstance(content, dict):
        for key, value in content.items():
            yield from places(value, schema.get("properties", {}).get(key, {}), (*place, key))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from places(value, schema.get("items", {}), (*place, index))


def resolved(schema: Schema, content: Any) -> Schema:
    """The schema without its references, and of a choice the option for this kind of value."""
    if "$ref" in schema:
        return resolved(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], content)
    if "anyOf" not in schema:
        return schema
    kinds: dict[str, tuple[type, ...]] = {
        "object": (dict,),
        "array": (list,),
        "string": (str,),
        "integer": (int,),
        "number": (int, float),
        "null": (type(None),),
    }
    options = [resolved(option, content) for option in schema["anyOf"]]
    return next((o for o in options if isinstance(content, kinds.get(o.get("type", ""), ()))), options[0])


texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    [
        "",
        " ",
        "no",
        "~",
        "-1",
        "1e400",
        "auto",
        "../..",
        "/etc",
        "sqlite:////etc/x",
        "\x1b[2J",
        "a" * 5000,
        "\u202e",
        "\n",
    ]
)
scalars: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.just(10**400) | texts
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


def wrong_value(schema: Schema, now: Any) -> st.SearchStrategy[Any]:
    """Something else than `schema` asks for, as near to it as can be, or anything at all."""
    near: list[Any] = [[], {}, [now], {"value": now}, str(now), None]
    for bound, beyond in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", 0), ("exclusiveMaximum", 0)):
        if bound in schema:
            near += [schema[bound] + beyond, schema[bound] + beyond * 0.001, float("nan"), float("inf"), -float("inf")]
    if schema.get("type") == "integer" and isinstance(now, int) and abs(now) < 10**15:
        near += [now + 0.5, float(now), True, f"{now}"]
    if "enum" in schema:
        near += [f"{word}s" for word in schema["enum"]] + [schema["enum"][0].upper(), schema["enum"]]
    if schema.get("type") == "array" and isinstance(now, list):
        near += [[*now, *now], [*now, None], [*now, [now]], dict.fromkeys(map(str, now)), ",".join(map(str, now))]
    return st.sampled_from(near) | values


def put(content: Any, place: Place, value: Any) -> Any:
    """The job with another value at one place."""
    if not place:
        return value
    content = copy.deepcopy(content)
    inside = content
    for part in place[:-1]:
        inside = inside[part]
    inside[place[-1]] = value
    return content


@st.composite
def broken_values(draw: st.DrawFn) -> Any:
    """A job with one to three wrong values, unknown keys, or keys that are gone."""
    content: Any = copy.deepcopy(draw(st.sampled_from([SHORT, FULL])))
    for _ in range(draw(st.integers(1, 3))):
        place, schema = draw(st.sampled_from(list(places(content, SCHEMA))[1:]))
        now = content
        for part in place:
            now = now[part]
        how = draw(st.sampled_from(["value", "value", "value", "unknown", "missing", "misspelt"]))
        if how == "value" or not isinstance(now, dict) or not now:
            content = put(content, place, draw(wrong_value(schema, now)))
        elif how == "unknown":
            content = put(content, place, {**now, draw(texts): draw(values)})
        else:
            key = draw(st.sampled_from(list(now)))
            kept = {name: value for name, value in now.items() if name != key}
            misspelt = draw(st.sampled_from([key[:-1], key + "s", key.upper(), key[::-1], f" {key}", f"{key}:"]))
            content = put(content, place, kept if how == "missing" else {**kept, misspelt: now[key]})
    return content


def dumped(content: Any, how: str) -> bytes:
    """As one of the ways in which people and programs write YAML."""
    if how == "json":
        return json.dumps(content).encode("utf-8", "surrogatepass")
    if how == "ours" and isinstance(content, dict):
        return dump_yaml(content).encode()
    text = yaml.safe_dump(content, default_flow_style=None if how == "mixed" else False, allow_unicode=True)
    return text.encode("utf-8", "surrogatepass")


BOMB = "\n".join(
    ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 14))]
)
SNIPPETS = [
    *(b"!!python/object/apply:os.system [touch written]", b"!!python/name:os.system", b"!!binary aGVsbG8=", b"!own x"),
    *(b"!!set {a}", b"&a [*a]", b"&a {<<: *a}", b"<<: {task: x}", b"*nowhere", b"? [a, b]\n: c", b"&a 1\nb: &a 2"),
    *(
        b"\t",
        b"\n\ttask: x",
        b"\x00",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\x85",
        b"\xe2\x80\xa8",
        b'"\\ud800"',
        b'"\\e[2J"',
    ),
    *(b"- ", b": ", b"{", b"[", b"]", b"}", b"|", b">", b"#", b"'", b'"', b"@", b"`", b"%YAML 9.9\n---\n"),
    *(b"\n---\n", b"\n...\n", b"1:", b"null:", b"true: 1", b"0x1F", b'"\\0"', b".nan", b"1e999", b"-.inf"),
]
#: Long ones by their names: Hypothesis prints what it draws from.
LONG = {
    "brackets": b"[" * 200,
    "braces": b"{a: " * 200,
    "dashes": b"- " * 200,
    "bomb": b"\n" + BOMB.encode() + b"\n",
    "word": b"x" * 100_000,
    "digits": b"9" * 5000,
}
#: Whole files that are none.
FILES = {
    "empty": b"",
    "a mark of byte order alone": b"\xef\xbb\xbf",
    "lines": b"\n\n\n",
    "a remark": b"# only words\n",
    "a program": b"\x7fELF\x02\x01\x01" + bytes(200),
    "a model": b"\x08\x07\x12\x07pytorch" + bytes(50),
    "a zip": b"PK\x03\x04" + bytes(99),
    "a word": b"task",
    "null": b"null",
    "a list": b"[]",
    "a mapping": b"{}",
    "a number": b"3",
    "a beginning": b"---",
    "an end": b"...",
    "lists in lists": b"- - - -",
    "UTF-16 the one way": "task: a:b".encode("utf-16-be"),
    "UTF-16 the other": "task: a:b".encode("utf-16"),
    "old line ends": b"task: a:b\r" * 2,
    "a bomb": BOMB.encode(),
    "brackets": b"[" * 100_000,
    "braces": b"{" * 5000,
    "a line of keys": b"a: " * 5000,
    "a long value": b"task: " + b"y" * MAX_BYTES,
    "a long list": b"task: [" + b"[1]," * 20_000 + b"]",
    "quotes": b'"' * 999,
    "anchors": b"&a " * 999,
    "questions": b"? " * 999,
    "a long key": b"? " + b"k" * 2000,
    "two jobs": b"task: a:b\n---\ntask: c:d\n",
    "Python": b"task: !!python/object/new:os.system [touch written]\n",
    "a mapping in itself": b"<<: &x {<<: *x}\ntask: a:b\n",
    "a NUL in a path": b'task: a:b\nbase_dir: "\\0"\n',
    "half a character in a path": b'task: a:b\nstorage: "\\ud800"\n',
    "a path of another kind": b"task: a:b\nbase_dir: [x]\n",
    "a long path": b"task: a:b\nbase_dir: " + b"d/" * 9000 + b"\nseed: 1\n",
}
snippets = st.sampled_from(SNIPPETS) | st.sampled_from(list(LONG)).map(LONG.__getitem__)


@st.composite
def broken_texts(draw: st.DrawFn) -> bytes:
    """The text of a job, cut, with something put in, a line given twice, bytes changed; or no job from the start."""
    raw = dumped(draw(st.sampled_from([SHORT, FULL])), draw(st.sampled_from(["ours", "mixed", "json"])))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(raw)))
        changes: dict[str, Callable[[], bytes]] = {
            "cut": lambda at=at, raw=raw: raw[:at],
            "gap": lambda at=at, raw=raw: raw[:at] + raw[at + draw(st.integers(1, 12)) :],
            "put": lambda at=at, raw=raw: raw[:at] + draw(snippets | st.binary(min_size=1, max_size=6)) + raw[at:],
            "line": lambda at=at, raw=raw: _with_line(raw, draw(st.integers(0, raw.count(b"\n"))), draw),
            "twice": lambda at=at, raw=raw: raw + b"\n" + draw(st.sampled_from(raw.splitlines() or [b""])),
        }  # fmt: skip
        raw = changes[draw(st.sampled_from(list(changes)))]()
    return raw


def _with_line(raw: bytes, number: int, draw: st.DrawFn) -> bytes:
    """With one line's value exchanged for a snippet."""
    lines = raw.split(b"\n")
    key = lines[number].partition(b":")[0]
    lines[number] = key + b": " + draw(snippets)
    return b"\n".join(lines)


broken_files: st.SearchStrategy[bytes] = st.one_of(
    st.builds(dumped, broken_values(), st.sampled_from(["ours", "mixed", "block", "json"])),
    st.builds(dumped, broken_values(), st.sampled_from(["ours", "mixed", "block", "json"])),
    broken_texts(),
    st.binary(max_size=200),
)
