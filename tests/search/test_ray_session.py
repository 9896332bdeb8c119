"""What a driver hands to the cluster that it joins."""

from __future__ import annotations

import json

import pytest

from search import ray_session
from search.shipping import Cargo

CARGO = Cargo(modules=("/a/search", "/a/job"), env_vars={"PRUNEFRONT_JOB": "job"})


def test_what_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ray_session._SUBMITTED, raising=False)
    assert ray_session._runtime_env(CARGO) == {
        "py_modules": ["/a/search", "/a/job"],
        "env_vars": {"PRUNEFRONT_JOB": "job"},
    }


@pytest.mark.parametrize("sent", [None, {}, {"working_dir": "gcs://w.zip"}])
def test_a_submitted_job_that_sent_no_modules(monkeypatch: pytest.MonkeyPatch, sent: object) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_JOB_RUNTIME_ENV", "0")
    monkeypatch.setenv(ray_session._SUBMITTED, json.dumps({"runtime_env": sent, "metadata": {}}))
    made = ray_session._runtime_env(CARGO)
    assert made["py_modules"] == ["/a/search", "/a/job"]
    assert "working_dir" not in made  # Ray merges it by itself


def test_what_a_submitted_job_sent_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_JOB_RUNTIME_ENV", "0")
    sent = {"py_modules": ["gcs://m.zip"], "env_vars": {"A": "1", "PRUNEFRONT_JOB": "other"}}
    monkeypatch.setenv(ray_session._SUBMITTED, json.dumps({"runtime_env": sent, "metadata": {}}))
    made = ray_session._runtime_env(CARGO)
    assert made["py_modules"] == ["gcs://m.zip", "/a/search", "/a/job"]
    assert made["env_vars"] == {"A": "1", "PRUNEFRONT_JOB": "job"}
