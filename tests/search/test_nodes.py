"""What a node of a cluster must have, and what is said of one that has not."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from search.nodes import NEEDED, facts, mismatch

HERE = dict.fromkeys(NEEDED, "1.0") | {"torch": "2.13.0", "prunefront": "0.1.0"}
#: Of what the package needs, what runs in the driver alone, or is Ray itself.
DRIVERS = {"ray", "optuna", "typer", "rich", "matplotlib", "fsspec", "pyarrow", "plotly", "jinja2"}


@pytest.mark.parametrize(
    "changed", [{}, {"prunefront": None}, {"torch": "2.13.1"}, {"torch": "2.13.0+cu126"}, {"numpy": "2.9"}]
)
def test_a_node_that_will_do(changed: dict[str, str | None]) -> None:
    assert mismatch(HERE | changed, HERE, "0.1.0") is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prunefront": "0.2.0"}, "it has prunefront 0.2.0, the driver 0.1.0: install the same, or none"),
        ({"torch": "2.12.1"}, "it has torch 2.12.1, the driver 2.13.0: install 2.13 there"),
        ({"torch": None}, "it lacks torch: pip install prunefront there"),
        ({"onnx": None, "safetensors": None}, "it lacks safetensors, onnx: pip install prunefront there"),
    ],
)
def test_a_node_that_will_not(changed: dict[str, str | None], said: str) -> None:
    wrong = mismatch(HERE | changed, HERE, "0.1.0")
    assert wrong is not None
    assert wrong.startswith(said)


def test_what_is_asked_for_is_what_the_package_needs() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^\w-]", line)[0].lower() for line in project["dependencies"]}
    assert {name.lower() for name in NEEDED} == needed - DRIVERS
    assert all(facts()[name] for name in NEEDED)
