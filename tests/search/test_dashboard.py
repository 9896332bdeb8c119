"""Our study in Optuna's own dashboard: the real program on a finished search, asked through its JSON interface."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from search.atomic import StoreError
from search.budget import Budget
from search.result import Status, TrialResult
from search.sampler import StudySampler, study_url
from search.store import RunStore
from search.study_notes import drop_dead_links, link_artefacts
from tests.search.fabricated import SPACE, result_of

BUDGET = Budget(speedup=1.5)
STATUSES: tuple[Status, ...] = ("complete", "complete", "infeasible", "stopped", "failed", "complete")


def open_sampler(store: RunStore) -> StudySampler:
    return StudySampler(
        study_url("sqlite", store.study_path),
        SPACE,
        sampler="random",
        budget=BUDGET,
        place=str(store.root),
        artefacts=partial(link_artefacts, store),
    )


def finish(store: RunStore, sampler: StudySampler, status: Status) -> TrialResult:
    """One more trial with the files of its kind, told to the study."""
    proposal = sampler.ask()
    result = result_of(proposal, status, accuracy_drop=1.5, epochs=6.0)
    staged = store.attempt_dir(result.number, "worker")
    if status == "complete":
        (staged / "model.onnx").write_bytes(b"model %d" % result.number)
        (staged / "plan.json").write_text(proposal.plan.to_json())
    assert store.commit(result.number, staged, result)
    sampler.tell(result)
    return result


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunStore, list[TrialResult]]:
    store = RunStore.create(tmp_path_factory.mktemp("dashboard") / "run", "task: a:b\n", {})
    sampler = open_sampler(store)
    return store, [finish(store, sampler, status) for status in STATUSES]


class Dashboard:
    """What the dashboard answers."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self._address}{path}", timeout=60) as answer:
            content: bytes = answer.read()
            return content

    def ask(self, path: str) -> Any:
        return json.loads(self.get(path))

    @property
    def study(self) -> Any:
        """The one study, as its page is made from it."""
        (summary,) = self.ask("/api/studies")["study_summaries"]
        return self.ask(f"/api/studies/{summary['study_id']}")


@contextlib.contextmanager
def dashboard(store: RunStore) -> Iterator[Dashboard]:
    """The program as a user starts it, on a free port of this machine alone."""
    pytest.importorskip("optuna_dashboard", reason="pip install 'prunefront[dashboard]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = [sys.executable, "-c", "from optuna_dashboard._cli import main; main()"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--server", "wsgiref", "--artifact-dir"]
    process = subprocess.Popen(
        [*program, f"sqlite:///{store.study_path}", *options, str(store.root / "artifacts")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        shown = Dashboard(f"http://127.0.0.1:{port}")
        end = time.monotonic() + 120.0
        while process.poll() is None:
            try:
                shown.get("/api/meta")
                break
            except OSError:
                assert time.monotonic() < end, "the dashboard does not answer"
                time.sleep(0.1)
        assert process.poll() is None, process.stderr.read()
        yield shown
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="module")
def shown(searched: tuple[RunStore, list[TrialResult]]) -> Iterator[Dashboard]:
    with dashboard(searched[0]) as found:
        yield found


def attributes(of: Any) -> dict[str, str]:
    return {entry["key"]: entry["value"] for entry in of["user_attrs"]}


def test_the_study_says_what_was_asked(shown: Dashboard, searched: tuple[RunStore, list[TrialResult]]) -> None:
    study = shown.study
    assert study["name"].startswith("prunefront-")
    assert study["objective_names"] == ["accuracy", "relative_latency"]
    assert study["directions"] == ["maximize", "minimize"]
    about = attributes(study)
    assert about["run"] == str(searched[0].root)
    assert about["rig"] == "onnxruntime-cpu"
    assert about["budget"] == "1.5x on onnxruntime-cpu; over_budget is how far a trial is beyond it, at most 0 within"
    assert json.loads(about["steps"])["fc/channel"] == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_trials_have_values_constraints_and_what_their_steps_mean(
    shown: Dashboard, searched: tuple[RunStore, list[TrialResult]]
) -> None:
    trials, results = shown.study["trials"], searched[1]
    assert [t["number"] for t in trials] == [r.number for r in results]
    states = {"complete": "Complete", "infeasible": "Pruned", "stopped": "Pruned", "failed": "Fail"}
    for trial, result in zip(trials, results, strict=True):
        told = attributes(trial)
        assert trial["state"] == states[result.status]
        assert told["status"] == result.status
        assert {p["name"] for p in trial["params"]} == {"conv1/filter", "conv2/filter", "fc/channel"}
        assert json.loads(told["plan"]) == result.requested
        assert float(told["speedup"]) == result.speedup
        assert trial["constraints"] == [BUDGET.excess_of(result)]
        if result.status == "complete":
            assert result.speedup is not None
            assert trial["values"] == [result.accuracy, pytest.approx(1.0 / result.speedup)]
            assert (float(told["accuracy_drop"]), float(told["epochs"])) == (1.5, 6.0)
        else:
            assert told["reason"] == f"made up: {result.status}"
            assert "values" not in trial
    front = {t["number"] for t in shown.study["best_trials"]}
    assert front <= {r.number for r in results if r.status == "complete"}


def test_the_files_of_a_trial_can_be_had(shown: Dashboard, searched: tuple[RunStore, list[TrialResult]]) -> None:
    study_id = shown.ask("/api/studies")["study_summaries"][0]["study_id"]
    for trial, result in zip(shown.study["trials"], searched[1], strict=True):
        files = {entry["filename"]: entry["artifact_id"] for entry in trial["artifacts"]}
        assert set(files) == ({"model.onnx", "plan.json"} if result.status == "complete" else set())
        for name, key in files.items():
            content = shown.get(f"/artifacts/{study_id}/{trial['trial_id']}/{key}")
            assert content == (searched[0].trial_dir(result.number) / name).read_bytes()


def test_a_study_made_anew_from_the_record_says_the_same(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", "task: a:b\n", {})
    sampler = open_sampler(store)
    for status in STATUSES:
        # an infeasible one whose figures fit, as made-up ones do, would be tried again
        finish(store, sampler, "stopped" if status == "infeasible" else status)
    before = sampler.study.get_trials(deepcopy=False)
    store.study_path.unlink()
    again = open_sampler(store)
    again.fill(store.results())
    after = again.study.get_trials(deepcopy=False)
    for old, new in zip(before, after, strict=True):
        assert (new.values, new.state, new.user_attrs, new.constraints) == (
            old.values,
            old.state,
            old.user_attrs,
            old.constraints,
        )
        assert {k: v for k, v in new.system_attrs.items() if k.startswith("artifacts:")} == {
            k: v for k, v in old.system_attrs.items() if k.startswith("artifacts:")
        }


def test_the_sampler_counts_each_constraint_once(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", "task: a:b\n", {})
    finish(store, open_sampler(store), "complete")
    mirror = open_sampler(store)._mirror
    assert mirror.trial(0).constraints == {"over_budget": BUDGET.excess_of(store.results()[0])}
    assert "constraints" not in mirror.trial(0).system_attrs


def test_links_lead_into_the_run_and_go_with_their_files(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", "task: a:b\n", {})
    finish(store, open_sampler(store), "complete")
    links = store.root / "artifacts"
    assert {link.resolve().name for link in links.iterdir()} == {"model.onnx", "plan.json"}
    store.root.rename(tmp_path / "moved")
    moved = RunStore.open(tmp_path / "moved")
    assert all(link.exists() for link in (moved.root / "artifacts").iterdir()), "links stay right in a moved run"
    (moved.trial_dir(0) / "model.onnx").unlink()
    drop_dead_links(moved)
    assert [link.resolve().name for link in (moved.root / "artifacts").iterdir()] == ["plan.json"]
    (tmp_path / "elsewhere").mkdir()
    (moved.root / "artifacts").rename(tmp_path / "kept")
    (moved.root / "artifacts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is a link out of the run folder"):
        RunStore.open(moved.root)
