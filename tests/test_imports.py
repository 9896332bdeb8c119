"""Imports point one way, heavy libraries stay where they belong, and each package can be had without the others'."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("admm", "evaluators", "search")
STANDARD = sys.stdlib_module_names
RAY = {
    *(
        "search.capacity",
        "search.crew",
        "search.driver",
        "search.far_rigs",
        "search.loggers",
        "search.folder_keeper",
        "search.nodes",
        "search.ray_session",
        "search.rig_actor",
    ),
    *("search.node_data", "search.rig_keeper", "search.rungs", "search.searcher", "search.trainable"),
}
OPTUNA = {"search.bounded", "search.sampler", "search.study", "search.mirror", "search.filed"}
TASKS = "search.tasks"


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def imports(name: str) -> tuple[tuple[str, bool], ...]:
    """(module imported, whether importing `name` is enough to import it); a submodule by its own full name.

    What stands in a function is imported when it runs, what stands under TYPE_CHECKING never is.
    """
    return tuple(_imports(ast.parse(MODULES[name].read_text()), at_once=True))


def _imports(node: ast.AST, *, at_once: bool) -> Iterator[tuple[str, bool]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, at_once) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        assert node.module is not None
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            yield (full if full in MODULES else node.module), at_once
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.body:
            yield from _imports(child, at_once=False)
        for child in node.orelse:
            yield from _imports(child, at_once=at_once)
    else:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, at_once=at_once and not inside)


def tops(name: str) -> set[str]:
    """The packages a module imports anywhere in it, without the standard library."""
    return {target.partition(".")[0] for target, _ in imports(name)} - STANDARD


def test_there_is_something_to_look_at() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(PACKAGES)
    assert len(MODULES) > 50
    assert ("torch", True) in imports("admm.solver")
    assert ("search.driver", False) in imports("search")


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("admm", {"admm", "torch", "torch_pruning", "numpy", "safetensors"}),
        ("evaluators", {"evaluators", "torch", "onnx", "onnx_ir", "onnxruntime", "numpy"}),
    ],
)
def test_admm_and_evaluators_know_only_their_own_libraries(package: str, allowed: set[str]) -> None:
    found = {name: tops(name) - allowed for name in MODULES if name.partition(".")[0] == package}
    assert {name: extra for name, extra in found.items() if extra} == {}


def test_tasks_know_torch_numpy_and_a_guarded_scikit_learn() -> None:
    allowed = {"search", "torch", "numpy"}
    for name in (name for name in MODULES if name.startswith(TASKS)):
        extra = tops(name) - allowed
        assert extra <= {"sklearn"}, name
        assert all(not at_once for target, at_once in imports(name) if target.startswith("sklearn")), name
        inner = {target for target, _ in imports(name) if target.startswith("search")}
        assert {t for t in inner if not t.startswith(TASKS)} <= {"search.errors", "search.spelling"}, name


@pytest.mark.parametrize(("library", "homes"), [("ray", RAY), ("optuna", OPTUNA)])
def test_ray_and_optuna_are_imported_only_where_they_are_at_home(library: str, homes: set[str]) -> None:
    assert {name for name in MODULES if library in tops(name)} == homes


def test_the_command_line_does_not_import_ray_before_the_job_is_known_to_be_right() -> None:
    seen, left = set(), ["search.cli", "search.commands", "search.search_command", "search.prune_command"]
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left += [target for target, at_once in imports(name) if at_once and target in MODULES]
    assert seen >= {"search.bench", "search.worker", "search.job_file"}
    assert seen.isdisjoint(RAY | OPTUNA)


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {name: {t for t, at_once in imports(name) if at_once and t in MODULES and t != name} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert done == set(MODULES)


ALONE = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
package = importlib.import_module({package!r})
for part in pkgutil.walk_packages(package.__path__, {package!r} + "."):
    importlib.import_module(part.name)
for name in getattr(package, "__all__", ()):
    getattr(package, name)
print(sorted({{m.partition(".")[0] for m in sys.modules}} & {absent!r}))
"""

SEARCH_ONLY = {"ray", "optuna", "pydantic", "rich", "typer", "yaml", "matplotlib", "sklearn"}


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("admm", SEARCH_ONLY | {"onnx", "onnxruntime", "evaluators", "search"}),
        ("evaluators", SEARCH_ONLY | {"torch_pruning", "safetensors", "admm", "search"}),
        ("search.tasks", SEARCH_ONLY | {"onnx", "onnxruntime", "torch_pruning", "safetensors", "admm", "evaluators"}),
    ],
)
def test_a_package_is_whole_without_the_libraries_of_the_others(package: str, absent: set[str]) -> None:
    """In a fresh interpreter; torch-pruning's and torch's own optional imports cope without them too."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(package=package, absent=absent)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
