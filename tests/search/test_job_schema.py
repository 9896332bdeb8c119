"""The JSON schema of a job file: it is current, and it takes and refuses what the program does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from search.cli import run
from search.job import Job
from search.job_file import read_yaml
from search.job_schema import FILE_NAME, job_schema, schema_text

ROOT = Path(__file__).parents[2]
#: Among the examples are files that start clusters.
JOBS = [
    *(path for path in sorted((ROOT / "examples").rglob("*.yaml")) if re.search("^task:", path.read_text(), re.M)),
    *sorted((ROOT / "tests" / "search").rglob("job.yaml")),
]
CHECK = jsonschema.Draft202012Validator(job_schema())
TASK = {"task": "mine:task"}


def test_the_file_for_editors_is_current() -> None:
    path = ROOT / "docs" / FILE_NAME
    assert path.read_text() == schema_text(), f"prunefront schema > docs/{FILE_NAME}"


def test_the_command_prints_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    said, complaint = capfd.readouterr()
    assert (json.loads(said), complaint) == (job_schema(), "")


def test_it_is_a_schema_that_tells_of_keys() -> None:
    jsonschema.Draft202012Validator.check_schema(job_schema())
    properties = job_schema()["properties"]
    assert list(properties) == list(Job.model_fields)
    assert properties["lower"]["description"].startswith("Whether layers are rewritten, exactly, where that turns")
    assert job_schema()["required"] == ["task"]
    assert properties["structures"]["items"]["enum"] == ["filter", "channel", "shape", "unstructured", "n:m"]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: str(path.relative_to(ROOT)))
def test_jobs_that_are_shipped_pass(path: Path) -> None:
    content, _ = read_yaml(path)
    assert [error.message for error in CHECK.iter_errors(content)] == []


def test_what_a_run_keeps_of_a_job_passes() -> None:
    content = Job(**TASK).model_dump(mode="json")
    assert [error.message for error in CHECK.iter_errors(content)] == []


@pytest.mark.parametrize(
    ("more", "fine"),
    [
        ({"rigs": ["onnxruntime-cpu"]}, True),
        ({"rigs": [{"name": "onnxruntime-cpu", "threads": 2}]}, True),
        ({"rigs": []}, False),
        ({"rigs": [{"name": "a", "thread": 2}]}, False),
        ({"sparsity": {"align": "auto"}}, True),
        ({"sparsity": {"align": 16}}, True),
        ({"sparsity": {"align": 0}}, False),
        ({"sparsity": {"align": "automatic"}}, False),
        ({"sparsity": {"max": 1.0}}, False),
        ({"budget": None}, True),
        ({"budget": {"speedup": 1.0}}, False),
        ({"structures": ["filters"]}, False),
        ({"search": {"trails": 3}}, False),
        ({"search": {"study": "redis://x"}}, False),
        ({"search": {"study": "postgresql://host/db"}}, True),
        ({"search": {"study": "journal:x"}}, True),
        ({"quantize": "off"}, True),
        ({"quantize": False}, False),
        ({"admm": {"lr": "0.1"}}, False),
        ({"storage": ""}, False),
    ],
)
def test_it_takes_and_refuses_what_the_program_does(more: dict[str, Any], fine: bool) -> None:
    assert CHECK.is_valid({**TASK, **more}) is fine
    try:
        Job.model_validate({**TASK, **more})
    except ValidationError:
        assert not fine
    else:
        assert fine
