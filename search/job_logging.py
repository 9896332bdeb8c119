"""The section of a job that says where else its trials are told of while they run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from search.job_sections import PLACE, Section


class LoggingSettings(Section):
    """Where else trials are told of while they run. The run folder holds all of it and more, whatever is said here."""

    tensorboard: bool = False
    """Event files in the run folder, a folder for each trial; `tensorboard --logdir RUN/tensorboard` shows them."""
    mlflow: bool = False
    """An MLflow run for each trial; needs `pip install 'prunefront[mlflow]'`."""
    mlflow_uri: Annotated[
        str | None,
        Field(pattern=r"^(https?://.+|sqlite:///.+|(postgresql|mysql|mssql)(\+[a-z0-9]+)?://.+|databricks(://.+)?)$"),
        PLACE,
    ] = None
    """The tracking server (`http://HOST:PORT`) or its database (`sqlite:///FILE`). None: what `MLFLOW_TRACKING_URI`
    names, else `mlflow/mlflow.db` in the run folder."""
    mlflow_experiment: Annotated[str | None, Field(min_length=1)] = None
    """The experiment that the trials are filed under; it is made where there is none. None: the name of the run."""

    @model_validator(mode="after")
    def _switched_on(self) -> LoggingSettings:
        for name in ("mlflow_uri", "mlflow_experiment"):
            if getattr(self, name) is not None and not self.mlflow:
                raise ValueError(f"{name}: is given and mlflow is off: say mlflow: true, or leave it out")
        return self
