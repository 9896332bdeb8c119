"""The table of docs/reliability.md says what was measured, and names tests that there are."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"\| .+? \| .+? \| `(test_\w+)` \| (\d+) s \|")


def _failures_of_tests() -> dict[str, str]:
    """Test -> the function of tests/cluster/failures.py that it calls."""
    tree = ast.parse((ROOT / "tests" / "cluster" / "test_failures.py").read_text())
    found = {}
    for test in (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")):
        (called,) = [
            n.attr for n in ast.walk(test) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "failures"
        ]
        found[test.name] = called
    return found


def _defined() -> set[str]:
    """All that tests/cluster/failures.py can bring about."""
    tree = ast.parse((ROOT / "tests" / "cluster" / "failures.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return {node.name for node in functions}


def _rows() -> dict[str, int]:
    lines = (ROOT / "docs" / "reliability.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| ") and not line.startswith("| what fails")]
    matches = [ROW.fullmatch(line) for line in table]
    assert all(matches), [line for line, match in zip(table, matches, strict=True) if match is None]
    return {match[1]: int(match[2]) for match in matches if match is not None}


def test_every_failure_has_its_test_and_its_row() -> None:
    tests = _failures_of_tests()
    assert set(_rows()) == set(tests)
    assert sorted(tests.values()) == sorted(_defined())


def test_every_test_named_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()))
    there: set[str] = set()
    for path in (ROOT / "tests" / "cluster").glob("test_*.py"):
        there |= {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert len(named) > len(_rows())
    assert named <= there


def test_the_times_are_those_recorded_last() -> None:
    recorded = json.loads((ROOT / "benchmarks" / "results" / "recovery.json").read_text())[-1]
    failures = recorded["details"]["failures"]
    tests = _failures_of_tests()
    assert _rows() == {test: round(failures[name]["seconds"]) for test, name in tests.items()}
