"""The call of `prune` that all benchmarks of accuracy make: data, loss and steps are those of the prepared task."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from admm.compute import Compute
from admm.groupmap import GroupMap
from admm.outcome import PruneResult, StepReport
from admm.pipeline import prune
from admm.plan import PruningPlan
from admm.settings import AdmmSettings, FinetuneSettings
from admm.target import Target
from search.tasks.base import PreparedTask


def pruned(
    model: nn.Module,
    wanted: PruningPlan | Target,
    prepared: PreparedTask,
    *,
    evaluate: Callable[[PreparedTask, nn.Module], float],
    admm: AdmmSettings,
    finetune: FinetuneSettings,
    seed: int,
    compute: Compute,
    groups: GroupMap | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> PruneResult:
    """What became of a copy of `model`; `evaluate` gives its accuracy in [0, 1] on the validation images."""
    return prune(
        model,
        wanted,
        train_batches=prepared.train_batches,
        example_input=prepared.example_input,
        groups=groups,
        loss=prepared.task.loss,
        evaluate=lambda m: evaluate(prepared, m),
        admm=admm,
        finetune=finetune,
        seed=seed,
        steps_per_epoch=steps_per_epoch(prepared),
        compute=compute,
        on_step=on_step,
    )


def steps_per_epoch(prepared: PreparedTask) -> int:
    """Batches in an epoch, the last one may be short."""
    return -(-prepared.train_size // prepared.task.batch_size)


def line_a_step(clock: Callable[[], float]) -> Callable[[StepReport], None]:
    """Prints a line after each step, with the seconds of `clock` since this call."""
    started = clock()

    def tell(report: StepReport) -> None:
        accuracy = "" if report.accuracy is None else f" accuracy {report.accuracy:.4f}"
        residual = "" if report.primal_residual is None else f" residual {report.primal_residual:.3f}"
        spent = clock() - started
        print(f"  {report.phase} {report.index}: loss {report.loss:.4f}{accuracy}{residual} {spent:.0f} s", flush=True)

    return tell
