"""What must hold of a run folder whatever was killed in it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import onnx
import optuna
from optuna.trial import TrialState
from safetensors import safe_open

from search.atomic import is_temporary
from search.job_file import load_job
from search.record import parse_baseline, parse_result
from search.result import TrialResult
from search.store import RunStore

STATES = {
    "complete": TrialState.COMPLETE,
    "infeasible": TrialState.PRUNED,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
#: What a driver, SQLite and Ray keep to themselves, and links to files that stand elsewhere in the run.
THEIRS = {
    "artifacts",
    "driver.lock",
    "starts",
    "study.db",
    "study.db-journal",
    "study.log",
    "study.log.lock",
    "ray",
    "lost.txt",
}


class Ledger:
    """The results seen so far in a run: each must stay as it was seen, to the byte."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: dict[str, bytes] = {}

    def look(self) -> int:
        """Compare with the disk and remember what is new; returns how many trials are finished."""
        now = {path.parent.name: path.read_bytes() for path in self.root.glob("trials/[0-9]*/result.json")}
        assert {name: now.get(name) for name in self.seen} == self.seen
        folders = {path.name for path in self.root.glob("trials/[0-9]*")}
        assert folders == set(now), "a trial's folder without its record"
        self.seen = now
        return len(now)


def require_whole(root: Path) -> None:
    """No file is half written: each can be read for what its name says it is."""
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if not path.is_file() or set(parts) & THEIRS or path.name.startswith("."):
            continue
        if path.name == "result.json":
            assert parse_result(path.read_bytes()).number == int(parts[1] if parts[1] != ".partial" else parts[2])
        elif path.name == "baseline.json":
            parse_baseline(path.read_bytes())
        elif path.suffix == ".json":
            assert json.loads(path.read_bytes())
        elif path.suffix == ".jsonl":
            assert all(json.loads(line) for line in path.read_text().splitlines())
        elif path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                assert all(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
        elif path.suffix == ".onnx":
            onnx.checker.check_model(onnx.load(str(path)))
        elif path.name == "job.yaml":
            load_job(path)
        elif path.suffix == ".csv":
            assert path.read_text().endswith("\n")
        else:
            assert path.suffix == ".png", f"what is {path}?"
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82")


def require_swept(root: Path) -> None:
    """Nothing is left of attempts and of files that were being written."""
    assert [str(path) for path in (root / "trials" / ".partial").iterdir()] == []
    assert [str(path) for path in root.rglob(".*.tmp") if is_temporary(path.name)] == []
    assert not (root / "ray").exists()


def study_trials(url: str) -> dict[str, list[optuna.trial.FrozenTrial]]:
    """The trials of all studies in a storage, by the study's name."""
    if url.startswith("journal:"):
        backend = optuna.storages.journal.JournalFileBackend(url.removeprefix("journal:"))
        storage: optuna.storages.BaseStorage = optuna.storages.JournalStorage(backend)
    else:
        storage = optuna.storages.RDBStorage(url)
    names = optuna.get_all_study_names(storage)
    return {name: optuna.load_study(study_name=name, storage=storage).get_trials() for name in names}


def require_agreement(root: Path, trials: list[optuna.trial.FrozenTrial], *, rebuilt: bool = False) -> None:
    """The study says of every number what the record says, and nothing runs or waits in it.

    A number without a record is a plan that had been seen before; in a study `rebuilt` from the record it is a gap.
    """
    results = RunStore.open(root).results()
    assert results
    assert max(results) < len(trials)
    for number, trial in enumerate(trials):
        assert trial.number == number
        result = results.get(number)
        if result is None:
            assert trial.state.is_finished()
            assert "duplicate_of" in trial.user_attrs or (rebuilt and "filled" in trial.user_attrs)
            continue
        assert trial.state == STATES[result.status]
        assert trial.params == dict(result.params_sampled)
        if result.status == "complete":
            assert tuple(trial.values) == result.dominates_key


def require_no_epoch_twice(log: Path, results: Mapping[int, TrialResult], root: Path, epochs: Mapping[int, int]) -> int:
    """Every trial went through its epochs once, but for the one in which it was killed; returns how often that was.

    An epoch whose checkpoint a kill prevented is trained again by the next process, and it alone; `epochs` says
    how many each trial needs. After its record was published no trial trains any more.
    """
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    repeated = 0
    for number in results:
        mine = [line for line in lines if line["trial"] == number]
        published = (root / "trials" / str(number) / "result.json").stat().st_mtime
        assert all(line["time"] <= published for line in mine)
        done = -1
        for _, group in itertools.groupby(mine, key=lambda line: line["pid"]):
            trained = [line["epoch"] for line in group]
            assert trained[0] in (done, done + 1)
            assert trained == list(range(trained[0], trained[-1] + 1))
            repeated += trained[0] == done
            done = trained[-1]
        assert done + 1 == epochs[number]
    return repeated
