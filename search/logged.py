"""What loggers are told of a trial: figures by plain names, and the plan. Knows neither Ray nor the loggers."""

from __future__ import annotations

import math
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from admm.plan import PruningPlan
from search.job import Job
from search.remote import without_secrets
from search.result import TrialResult
from search.trial import Progress

#: Of a trial's record, under their own names.
_OF_THE_RECORD = (
    "accuracy",
    "accuracy_drop",
    "latency_ms",
    "speedup",
    "compression_x",
    "macs",
    "params",
    "size_bytes",
    "epochs",
    "seconds",
)
#: What MLflow's own tools read where nothing else is said.
URI_NAME = "MLFLOW_TRACKING_URI"
#: A server that does not answer within this is taken for none.
TIMEOUT_S = 5.0
_PACKAGES = {"tensorboard": ("tensorboardX", "tensorboardX"), "mlflow": ("mlflow", "'prunefront[mlflow]'")}


def figures_of(progress: Progress, record: TrialResult) -> dict[str, float]:
    """The figures of one step; `record` is the trial's so far, or the last one.

    `training/...` is told after each epoch or ADMM iteration: the mean loss, the validation accuracy of the weights as
    if they were pruned now (after retraining: of the shrunk network), and the largest ‖W−Z‖/‖W‖. The others are
    those of `TrialResult`: latency and speed-up once the plan's shapes are measured, accuracy at the end.
    """
    report, found = progress.report, {name: getattr(record, name) for name in _OF_THE_RECORD}
    if report is not None:
        found |= {
            "training/loss": report.loss,
            "training/accuracy": report.accuracy,
            "training/primal_residual": report.primal_residual,
        }
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def parameters_of(config: Mapping[str, Any]) -> dict[str, float | int | str]:
    """What a trial was asked: the sparsity of each layer and structure that is searched, and how it came about.

    `config` is what the searcher hands to a trial. Names are those of the study: `conv1/filter`.
    """
    plan = PruningPlan.from_json(config["plan"])
    searched = [name.rpartition("/") for name in config["params"] if "/" in name]
    return {
        **{f"{layer}/{structure}": plan.sparsity(layer, structure) for layer, _, structure in searched},
        "precision": str(config["precision"]),
        "source": str(config["source"]),
        "stretch": float(config["stretch"]),
        "seed": int(config["seed"]),
    }


def require_logging(job: Job) -> None:
    """Raises `UserError` where a logger of the job is not installed, or its server does not answer.

    Asked before anything is trained; nothing is written.
    """
    for name, (module, package) in _PACKAGES.items():
        if getattr(job.logging, name) and find_spec(module) is None:
            raise job.error(f"logging.{name}", f"it is not installed: pip install {package}, or leave it out")
    named = job.logging.mlflow_uri
    uri = (named or os.environ.get(URI_NAME, "")) if job.logging.mlflow else ""
    if uri.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=TIMEOUT_S):
                pass
        except urllib.error.HTTPError:
            pass  # somebody answers: whether it is MLflow, its own client finds out
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", None) or error
            raise job.error(
                "logging.mlflow_uri" if named else "logging.mlflow",
                f"no server answers at {without_secrets(uri)}{'' if named else f', of {URI_NAME},'} ({why}): start one "
                f"with `mlflow server`, or leave it out",
            ) from None
