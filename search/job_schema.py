"""The JSON schema of a job file, from the very model that reads it: for editors that check and complete YAML."""

from __future__ import annotations

import json
from typing import Any

from search.job import Job

#: Where editors find it in the sources; `prunefront schema` prints it.
FILE_NAME = "job.schema.json"


def job_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what a job file may hold; rules between keys are not in it."""
    schema = Job.model_json_schema(mode="validation")
    schema.pop("description", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "prunefront job",
        "description": "A whole search, as `prunefront search JOB.yaml` reads it.",
        **_tidy({key: value for key, value in schema.items() if key != "title"}),
    }


def schema_text() -> str:
    """The schema as a file holds it."""
    return json.dumps(job_schema(), indent=2, ensure_ascii=False) + "\n"


def _tidy(part: Any) -> Any:
    """Without the titles that repeat a key's name, and with texts on one line."""
    if isinstance(part, list):
        return [_tidy(item) for item in part]
    if not isinstance(part, dict):
        return part
    tidy: dict[str, Any] = {}
    for key, value in part.items():
        if key == "properties":
            tidy[key] = {name: _tidy(of) for name, of in value.items()}
        elif key == "description":
            tidy[key] = " ".join(value.split())
        elif key != "title":
            tidy[key] = _tidy(value)
    return tidy
