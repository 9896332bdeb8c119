"""TensorBoard and MLflow, by Ray Tune's own callbacks: under our names, in the run folder, and never the search's end.

Ray's callbacks would write into its scratch folder, under names such as `ray/tune/time_since_restore`, and an exception
in one of them would end the search.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.logger import LoggerCallback, TBXLoggerCallback

from evaluators.errors import one_line
from search.errors import UserError
from search.job import Job
from search.logged import URI_NAME, parameters_of
from search.remote import without_secrets
from search.result import STATUSES
from search.store import RunStore

#: Put before every name by Ray's callback.
_THEIRS = "ray/tune/"
#: MLflow's client would try a server that is gone for minutes, and Tune's loop would wait. Nothing is told to MLflow's
#: makers either.
_MLFLOW = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
#: What MLflow takes at a time.
_MOST_PARAMETERS = 100


@contextlib.contextmanager
def open_loggers(store: RunStore, job: Job, say: Callable[[str], None]) -> Iterator[list[LoggerCallback]]:
    """The callbacks of the loggers that the job switches on, closed at the end.

    Raises `UserError` where MLflow cannot be reached; what goes wrong later is said once, and the logger left out.
    """
    made: list[LoggerCallback] = []
    with contextlib.ExitStack() as stack:
        if job.logging.tensorboard:
            board = TensorBoard(store.root / "tensorboard")
            stack.callback(board.close)
            say(f"for TensorBoard: tensorboard --logdir {board.folder}")
            made.append(Guarded(board, "TensorBoard", say))
        if job.logging.mlflow:
            made.append(Guarded(stack.enter_context(_mlflow(store, job, say)), "MLflow", say))
        yield made


class Guarded(LoggerCallback):
    """Passes everything on, until that fails: what is logged is in the run folder anyway, and the search goes on."""

    def __init__(self, inner: LoggerCallback, name: str, say: Callable[[str], None]) -> None:
        self._inner: LoggerCallback | None = inner
        self._name, self._say = name, say

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks to disk, for a restore that is never used: neither writers nor clients."""
        return {"_inner": None, "_name": self._name, "_say": None}

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Nothing: who can be set up was, before Ray started."""

    def log_trial_start(self, trial: Any) -> None:
        """A trial begins, or goes on."""
        self._pass("log_trial_start", trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """One step of a trial."""
        self._pass("log_trial_result", iteration, trial, result)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """The end of a trial."""
        self._pass("log_trial_end", trial, failed)

    def _pass(self, method: str, *arguments: Any) -> None:
        if self._inner is None:
            return
        try:
            getattr(self._inner, method)(*arguments)
        except Exception as error:  # of a library, a disk or a network
            self._inner = None
            self._say(f"nothing more is logged to {self._name} ({type(error).__name__}: {one_line(error)})")


class TensorBoard(TBXLoggerCallback):
    """Event files in `folder/trial-N`: figures by their own names against the steps of the trial, and the plan."""

    def __init__(self, folder: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.folder = folder

    def log_trial_start(self, trial: Any) -> None:
        """A trial that goes on in another attempt adds a file to its folder."""
        self._trial_writer[trial] = _Writer(self.folder / f"trial-{trial.config['number']}")
        self._trial_result[trial] = {}

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """The figures of one step."""
        super().log_trial_result(iteration, trial, {**result["figures"], "training_iteration": result["steps"]})

    def _try_log_hparams(self, trial: Any, result: dict[str, Any]) -> None:
        from tensorboardX.summary import hparams

        figures = {name.removeprefix(_THEIRS): value for name, value in result.items()}
        for summary in hparams(hparam_dict=parameters_of(trial.config), metric_dict=figures):
            self._trial_writer[trial].file_writer.add_summary(summary)

    def close(self) -> None:
        """Close what a search that was interrupted left open."""
        for writer in self._trial_writer.values():
            writer.close()


class _Writer:
    """A writer of event files that puts nothing before a name."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        # an attempt that ended within this second left a file of the same name otherwise
        self._writer = SummaryWriter(str(folder), flush_secs=30, filename_suffix=f".{secrets.token_hex(4)}")

    @property
    def file_writer(self) -> Any:
        return self._writer.file_writer

    def add_scalar(self, name: str, value: float, global_step: int) -> None:
        self._writer.add_scalar(name.removeprefix(_THEIRS), value, global_step=global_step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def _mlflow(store: RunStore, job: Job, say: Callable[[str], None]) -> Iterator[LoggerCallback]:
    """The callback, set up: its experiment is there. Leaves the environment, where MLflow notes its URI, as it was."""
    before = os.environ.get(URI_NAME)
    for name, value in _MLFLOW.items():
        os.environ.setdefault(name, value)
    uri, experiment = tracking_uri(job, store, before), job.logging.mlflow_experiment or store.name
    try:
        try:
            callback = Mlflow(uri, experiment, store)
        except Exception as error:  # MLflow, its client and databases each have their own
            raise UserError(
                f"logging.mlflow: {_shown(uri)} cannot be logged to ({one_line(error)}): check the URI and "
                f"its server, or leave it out"
            ) from error
        say(f"for MLflow: experiment {experiment!r} at {_shown(uri)}")
        yield callback
    finally:
        if before is None:
            os.environ.pop(URI_NAME, None)
        else:
            os.environ[URI_NAME] = before


def tracking_uri(job: Job, store: RunStore, environment: str | None) -> str:
    """Where MLflow keeps trials, wherever this process stands later; `environment` counts where the job says none."""
    uri = job.logging.mlflow_uri or environment
    if not uri:
        return f"sqlite:///{store.root.resolve()}/mlflow/mlflow.db"
    kind, found, path = uri.partition("sqlite:///")
    return f"sqlite:///{Path(path).resolve()}" if found and not kind else uri


class Mlflow(MLflowLoggerCallback):
    """An MLflow run for each trial, which goes on in the one it has when the search is started again."""

    def __init__(self, uri: str, experiment: str, store: RunStore) -> None:
        super().__init__(
            tracking_uri=uri, experiment_name=experiment, tags={"prunefront.run": str(store.root.resolve())}
        )
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)  # of the tables of a new database
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        if uri.startswith("sqlite:///"):
            folder = Path(uri.removeprefix("sqlite:///")).parent
            folder.mkdir(parents=True, exist_ok=True)
            if self._client.get_experiment_by_name(experiment) is None:
                # left to itself, MLflow would keep files in the folder that Ray was started from
                self._client.create_experiment(experiment, artifact_location=(folder / "files").as_uri())
        super().setup()  # type: ignore[no-untyped-call]
        self._experiment = str(self.mlflow_util.experiment_id)
        self._phase: dict[Any, str] = {}

    def log_trial_start(self, trial: Any) -> None:
        """Begin the trial's run, with its plan as parameters."""
        from mlflow.entities import Param

        number, tags = int(trial.config["number"]), {**(self.tags or {})}
        known = self._client.search_runs(
            [self._experiment],
            filter_string=f"tags.`prunefront.run` = '{_quoted(tags['prunefront.run'])}' and tags.trial = '{number}'",
            max_results=1,
        )
        if known:
            run = known[0]
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = self.mlflow_util.start_run(tags={**tags, "trial": str(number)}, run_name=f"trial {number}")
        self._trial_runs[trial] = run.info.run_id
        parameters = [Param(name, str(value)) for name, value in parameters_of(trial.config).items()]
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(run.info.run_id, params=parameters[first : first + _MOST_PARAMETERS])

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """The figures of one step, in one request: Ray's own callback makes two for each of them."""
        from mlflow.entities import Metric

        now, step = int(1000 * time.time()), int(result["steps"])
        self._phase[trial] = str(result["phase"])
        self._client.log_batch(
            self._trial_runs[trial], metrics=[Metric(name, v, now, step) for name, v in result["figures"].items()]
        )

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """How the trial ended, as its record says; one that broke is FAILED to MLflow too."""
        phase = self._phase.pop(trial, "")
        status = phase if phase in STATUSES else "lost" if failed else "stopped"
        self._client.set_tag(self._trial_runs[trial], "status", status)
        super().log_trial_end(trial, failed=status in ("failed", "lost"))


def _shown(uri: str) -> str:
    """Without a user or a password; a file's path has neither."""
    return uri if uri.startswith("sqlite:") else without_secrets(uri)


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")
