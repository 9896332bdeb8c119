"""What TensorBoard and MLflow are told of trials, by Ray's own callbacks; and that neither can end a search."""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from admm.outcome import StepReport
from search.errors import UserError
from search.job import Job
from search.logged import figures_of, parameters_of, require_logging
from search.loggers import open_loggers, tracking_uri
from search.sampler import Proposal
from search.store import RunStore
from search.trial import Progress
from tests.search.events import parameters, scalars
from tests.search.fabricated import SPACE, result_of

STEPS = {"conv1/filter": 2, "conv2/filter": 0, "fc/channel": 1}


class FakeTrial:
    """What Ray's callbacks see of a trial."""

    def __init__(self, number: int) -> None:
        self.config = {
            "number": number,
            "plan": SPACE.plan(STEPS).to_json(),
            "params": STEPS,
            "precision": "fp32",
            "source": "tpe",
            "stretch": 1.0,
            "seed": 3,
        }
        self.evaluated_params = self.config

    def __str__(self) -> str:
        return "PruneTrainable_6f3a_00001"


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "digits-001", "task: a:b\n", {})


def job(**settings: Any) -> Job:
    return Job.model_validate({"task": "a:b", "logging": settings})


def record(number: int, status: Any = "complete") -> Any:
    return result_of(Proposal(number=number, params=STEPS, plan=SPACE.plan(STEPS)), status, epochs=5.0)


def reports(number: int) -> list[dict[str, Any]]:
    """As a worker sends them: shapes, one ADMM iteration, the end."""
    end = record(number)
    progress = [
        Progress(step=1, total=3, phase="shapes"),
        Progress(
            step=2,
            total=3,
            phase="admm",
            report=StepReport(phase="admm", index=1, loss=0.5, epochs=1.0, accuracy=0.75, primal_residual=0.25),
        ),
        Progress(step=3, total=3, phase="complete", result=end),
    ]
    return [
        {
            "steps": p.step,
            "phase": p.phase,
            "figures": figures_of(p, p.result or record(number, "stopped")),
            "time_since_restore": 3.0,
            "done": p.result is not None,
        }
        for p in progress
    ]


def log(callbacks: list[Any], number: int, *, until: int = 3) -> FakeTrial:
    """A trial from its start to its end, or interrupted before."""
    trial = FakeTrial(number)
    for callback in callbacks:
        callback.setup()
        callback.on_trial_start(0, [], trial)
        for report in reports(number)[:until]:
            callback.on_trial_result(0, [], trial, report)
        if until == 3:
            callback.on_trial_complete(0, [], trial)
    return trial


def test_figures_have_the_names_of_the_record() -> None:
    first, second, last = (report["figures"] for report in reports(0))
    end = record(0)
    assert first == {"latency_ms": end.latency_ms, "speedup": end.speedup, "epochs": 5.0, "seconds": 0.0}
    assert second == first | {"training/loss": 0.5, "training/accuracy": 0.75, "training/primal_residual": 0.25}
    assert last == first | {"accuracy": end.accuracy, "compression_x": 2.0, "macs": 1.0, "params": 1.0}
    unsound = Progress(
        step=1, total=1, phase="admm", report=StepReport(phase="admm", index=1, loss=float("nan"), epochs=0.0)
    )
    assert "training/loss" not in figures_of(unsound, record(0))  # fmt: skip


def test_parameters_are_sparsities_and_no_steps() -> None:
    assert parameters_of(FakeTrial(0).config) == {
        "conv1/filter": 0.5,
        "conv2/filter": 0.0,
        "fc/channel": 0.2,
        "precision": "fp32",
        "source": "tpe",
        "stretch": 1.0,
        "seed": 3,
    }


def test_nothing_is_logged_unless_it_is_asked_for(store: RunStore) -> None:
    with open_loggers(store, job(), pytest.fail) as callbacks:
        assert callbacks == []


def test_tensorboard_has_a_folder_for_each_trial(store: RunStore) -> None:
    said: list[str] = []
    with open_loggers(store, job(tensorboard=True), said.append) as callbacks:
        pickle.loads(pickle.dumps(callbacks))  # as Tune does
        log(callbacks, 7)
    folder = store.root / "tensorboard"
    assert said == [f"for TensorBoard: tensorboard --logdir {folder}"]
    assert [path.name for path in folder.iterdir()] == ["trial-7"]
    end, found = record(7), scalars(folder / "trial-7")
    assert found["accuracy"] == [(3, pytest.approx(end.accuracy))]
    assert found["training/loss"] == [(2, 0.5)]
    assert [step for step, _ in found["latency_ms"]] == [1, 2, 3]
    assert {name for name in found if not name.startswith("training/")} == {
        *("accuracy", "latency_ms", "speedup", "compression_x", "macs", "params", "epochs", "seconds")
    }
    assert parameters(folder / "trial-7") == pytest.approx(
        {name: value or 0.0 for name, value in parameters_of(FakeTrial(7).config).items()}
    )


def test_a_trial_that_goes_on_adds_to_its_folder(store: RunStore) -> None:
    for until in (2, 3):
        with open_loggers(store, job(tensorboard=True), lambda line: None) as callbacks:
            log(callbacks, 0, until=until)
    found = scalars(store.root / "tensorboard" / "trial-0")
    assert sorted(step for step, _ in found["epochs"]) == [1, 1, 2, 2, 3]


def test_a_logger_that_breaks_is_said_once_and_left_out(store: RunStore) -> None:
    (store.root / "tensorboard").write_text("a file stands there")
    said: list[str] = []
    with open_loggers(store, job(tensorboard=True), said.append) as callbacks:
        log(callbacks, 0)
        log(callbacks, 1)
    assert len(said) == 2
    assert said[1].startswith("nothing more is logged to TensorBoard (")


def test_what_is_not_installed_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    require_logging(job())
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(
        UserError, match=r"logging.mlflow: it is not installed: pip install 'prunefront\[mlflow\]', or l"
    ):
        require_logging(job(mlflow=True))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"logging.tensorboard: it is not installed: pip install tensorboardX"):
        require_logging(job(tensorboard=True))


def test_a_server_that_does_not_answer_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="pip install 'prunefront[mlflow]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            UserError, match=r"mlflow_uri: no server answers at http://127.0.0.1:\d+ \(.*start one with"
        ):
            require_logging(job(mlflow=True, mlflow_uri=uri))
        require_logging(job())
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(
            UserError, match=r"logging.mlflow: no server answers at http://127.*, of MLFLOW_TRACKING_URI,"
        ):
            require_logging(job(mlflow=True))


def test_where_mlflow_keeps_its_runs(store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(job(mlflow=True), store, None) == f"sqlite:///{store.root}/mlflow/mlflow.db"
    assert tracking_uri(job(mlflow=True), store, "http://host:5000") == "http://host:5000"
    named = job(mlflow=True, mlflow_uri="sqlite:///here/all.db")
    assert tracking_uri(named, store, "http://host:5000") == f"sqlite:///{tmp_path}/here/all.db"


class FakeMlflow:
    """The part of MLflow that Ray's callback and ours speak to; remembers what it is told."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, Any] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Under MLflow's own names, for this test."""

        def module(name: str, **content: Any) -> ModuleType:
            made = ModuleType(name)
            vars(made).update(content)
            monkeypatch.setitem(sys.modules, name, made)
            return made

        def set_tracking_uri(uri: str) -> None:
            os.environ["MLFLOW_TRACKING_URI"] = uri  # as MLflow does

        client = lambda **_: self  # noqa: E731
        module("mlflow.utils")
        module("mlflow.utils.mlflow_tags", MLFLOW_RUN_NAME="mlflow.runName")
        module("mlflow.entities", Param=lambda k, v: (k, v), Metric=lambda k, v, at, step: (k, v, step))
        module("mlflow.tracking", MlflowClient=client)
        module("mlflow.exceptions", MlflowException=ValueError)
        module(
            "mlflow",
            __version__="3.0",
            set_tracking_uri=set_tracking_uri,
            get_tracking_uri=lambda: os.environ["MLFLOW_TRACKING_URI"],
            set_registry_uri=lambda uri: None,
            get_registry_uri=lambda: None,
            get_run=lambda run_id: self.runs[run_id],
            active_run=lambda: None,
            get_experiment_by_name=self.get_experiment_by_name,
            create_experiment=self.create_experiment,
        )

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
        self.experiments[name] = str(len(self.experiments))
        return self.experiments[name]

    def search_runs(self, experiments: list[str], *, filter_string: str, max_results: int) -> list[Any]:
        wanted = filter_string.rpartition("= ")[2].strip("'")
        return [run for run in self.runs.values() if run.tags["trial"] == wanted]

    def create_run(self, *, experiment_id: str, run_name: str, tags: dict[str, str]) -> Any:
        name = f"run{len(self.runs)}"
        self.runs[name] = SimpleNamespace(
            info=SimpleNamespace(run_id=name), name=run_name, tags=tags, metrics=[], params=[], status="RUNNING"
        )
        return self.runs[name]

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self.runs[run_id].metrics += metrics
        self.runs[run_id].params += params

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.runs[run_id].tags[key] = value

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].status = status

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id].status = status


def test_mlflow_has_a_run_for_each_trial(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    fake = FakeMlflow()
    fake.install(monkeypatch)
    said: list[str] = []
    with open_loggers(store, job(mlflow=True), said.append) as callbacks:
        pickle.loads(pickle.dumps(callbacks))
        log(callbacks, 7)
        callbacks[0].on_trial_error(0, [], log(callbacks, 8, until=1))
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://me:secret@host:5000"
    assert said == ["for MLflow: experiment 'digits-001' at http://host:5000"]
    seven, eight = fake.runs.values()
    assert (seven.name, seven.status, seven.tags["status"]) == ("trial 7", "FINISHED", "complete")
    assert (eight.name, eight.status, eight.tags["status"]) == ("trial 8", "FAILED", "lost")
    assert seven.tags["prunefront.run"] == str(store.root)
    assert dict(seven.params)["conv1/filter"] == "0.5"
    assert [entry for entry in seven.metrics if entry[0] == "accuracy"] == [("accuracy", record(7).accuracy, 3)]
    with open_loggers(store, job(mlflow=True, mlflow_experiment="all"), said.append) as callbacks:
        log(callbacks, 8)
    assert list(fake.experiments) == ["digits-001", "all"]
    assert len(fake.runs) == 2, "a trial that goes on has its run already"
    assert (eight.status, eight.tags["status"]) == ("FINISHED", "complete")


def test_an_mlflow_that_refuses_is_one_line(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMlflow()
    fake.install(monkeypatch)

    def broken(*arguments: Any, **options: Any) -> None:
        raise ValueError("the tables\nare of another version")

    fake.search_runs: Callable[..., Any] = broken  # type: ignore[assignment]
    said: list[str] = []
    with open_loggers(store, job(mlflow=True), said.append) as callbacks:
        log(callbacks, 0)
    assert said[1:] == ["nothing more is logged to MLflow (ValueError: the tables are of another version)"]
    monkeypatch.setattr(sys.modules["mlflow"], "set_tracking_uri", broken)
    with (
        pytest.raises(
            UserError, match=r"logging.mlflow: sqlite:.* cannot be logged to \(the tables are .*check the URI"
        ),
        open_loggers(store, job(mlflow=True), said.append),
    ):
        pytest.fail("it cannot be opened")


def test_the_real_mlflow(store: RunStore, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'prunefront[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said: list[str] = []
    for _ in range(2):  # a search that is started again
        with open_loggers(store, job(mlflow=True), said.append) as callbacks:
            log(callbacks, 7)
    assert capfd.readouterr() == ("", "")
    assert "MLFLOW_TRACKING_URI" not in os.environ
    uri = f"sqlite:///{store.root}/mlflow/mlflow.db"
    assert said == [f"for MLflow: experiment 'digits-001' at {uri}"] * 2
    client = mlflow.tracking.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("digits-001")
    assert experiment.artifact_location == (store.root / "mlflow" / "files").as_uri()
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["status"]) == ("trial 7", "FINISHED", "complete")
    assert run.data.params == {name: str(value) for name, value in parameters_of(FakeTrial(7).config).items()}
    assert run.data.metrics["accuracy"] == record(7).accuracy
    assert run.data.metrics["training/loss"] == 0.5
    assert {m.step for m in client.get_metric_history(run.info.run_id, "latency_ms")} == {1, 2, 3}
    assert not [name for name in run.data.metrics if "time" in name], "nothing of Ray's own"
