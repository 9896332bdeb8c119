"""A trial's training, made from its bench and spec alike in every process that takes part in it."""

from __future__ import annotations

import copy
import math

from torch import nn

from admm.compute import Compute
from admm.pipeline import PruneRun
from admm.settings import AdmmSettings, FinetuneSettings
from admm.training import on_device
from evaluators import evaluate, module_predictor
from search.trial import Bench, Start, TrialSpec
from search.twin import epochs_seen, first_weights


def training_of(bench: Bench, spec: TrialSpec) -> tuple[PruneRun, Start | None]:
    """The trial's training from its first step, and whose weights it begins with; None: the dense network's.

    The same in every process that trains it.
    """
    weights, begun = first_weights(bench.dense, spec.start)
    job = spec.scheduled(bench.job, 0.0 if begun is None else begun.stretch)
    task = bench.task

    def accuracy(model: nn.Module) -> float:
        batches = on_device(task.val_batches(), bench.device)
        return evaluate(module_predictor(model), batches, task.task.metric).value

    run = PruneRun(
        weights.to(bench.device),
        spec.plan,
        train_batches=task.train_batches,
        groups=bench.profile.groups,
        example_input=task.example_input.to(bench.device),
        loss=task.task.loss,
        evaluate=accuracy,
        admm=AdmmSettings(**job.admm.model_dump()),
        finetune=FinetuneSettings(**job.finetune.model_dump()),
        align=job.align,
        seed=spec.seed,
        compute=Compute(**job.compute.model_dump()),
        steps_per_epoch=math.ceil(task.train_size / task.task.batch_size),
        teacher=copy.deepcopy(bench.dense).to(bench.device) if begun is not None else None,
        first_epoch=0 if begun is None else epochs_seen(begun.folder),
    )
    return run, begun
