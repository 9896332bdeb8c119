"""Nothing of ours runs what it reads: no pickle, no eval, no loader that could; exceptions have a reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("admm", "evaluators", "search")
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "jsonpickle"}
CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load", "torch.hub.load", "torch.save",
    "torch.package.PackageImporter", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all",
    "yaml.full_load", "yaml.full_load_all", "pandas.read_pickle", "os.system", "os.popen",
}  # fmt: skip
KEYWORDS = {"allow_pickle": True, "shell": True, "weights_only": False, "trust_remote_code": True}
#: (file, what): why it is no danger.
ALLOWED = {
    ("search/tasks/cifar_files.py", "import pickle"): "the published files are pickles; its unpickler resolves no name",
    (
        "search/node_data.py",
        "import ray.cloudpickle",
    ): "a driver's own task for its own workers, as Ray hands on arguments",
}


def name_of(node: ast.expr) -> str:
    """`a.b.c` of a name with dots; empty for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def dangers(source: str) -> Iterator[str]:
    """Each thing in a module that could run what it reads."""
    tree = ast.parse(source)
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                aliases[one.asname or one.name.partition(".")[0]] = (
                    one.name if one.asname else one.name.partition(".")[0]
                )
                if one.name.partition(".")[0] in MODULES:
                    yield f"import {one.name}"
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for one in node.names:
                aliases[one.asname or one.name] = f"{node.module}.{one.name}"
                if node.module.partition(".")[0] in MODULES or one.name in MODULES:
                    yield f"import {node.module}.{one.name}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, dot, rest = name_of(node.func).partition(".")
        called = aliases.get(head, head) + dot + rest
        if called in CALLS:
            yield f"{called}()"
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if keyword.arg in KEYWORDS and value == KEYWORDS[keyword.arg]:
                yield f"{keyword.arg}={value}"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_runs_what_it_reads(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 20
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        for danger in dangers(path.read_text()):
            assert (name, danger) in ALLOWED, f"{name}: {danger}"


def test_the_exceptions_are_still_there() -> None:
    for name, danger in ALLOWED:
        assert danger in set(dangers((ROOT / name).read_text()))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "import pickle"),
        ("import cloudpickle.fast as f", "import cloudpickle.fast"),
        ("from pickle import loads", "import pickle.loads"),
        ("from ray import cloudpickle", "import ray.cloudpickle"),
        ("import torch\ntorch.load('x')", "torch.load()"),
        ("import torch as t\nt.load('x')", "torch.load()"),
        ("from torch import load as read\nread('x')", "torch.load()"),
        ("from yaml import full_load\nfull_load('x')", "yaml.full_load()"),
        ("import yaml\nyaml.load('x', Loader=L)", "yaml.load()"),
        ("eval('1')", "eval()"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle=True"),
        ("import subprocess\nsubprocess.run('x', shell=True)", "shell=True"),
    ],
)
def test_it_would_be_found(source: str, found: str) -> None:
    assert found in set(dangers(source))


@pytest.mark.parametrize(
    "source", ["module.eval()", "import re\nre.compile('x')", "from safetensors.torch import load\nload(b'')"]
)
def test_what_is_no_danger(source: str) -> None:
    assert not list(dangers(source))
