"""Uniform L1 filter pruning by torch-pruning as one stage after another, for the comparison of searches.

The widths are those of a plan, so that it is aligned as all others are; which filters go is decided by their L1 norm
at once, and all epochs of a trial (ADMM's and the retraining's) are retraining.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import torch_pruning
from pruned import steps_per_epoch
from quality_lab import Stage
from torch import nn

from admm.compute import Compute
from admm.finetune import Finetune
from admm.plan import PruningPlan
from admm.settings import FinetuneSettings
from admm.slicing import prunable_layers
from admm.training import frozen_teacher
from evaluators import evaluate, module_predictor
from search.artefact import ship
from search.errors import UserError
from search.trial import Bench


def l1_pruned(bench: Bench, plan: PruningPlan) -> nn.Module:
    """A copy of the dense network without the filters of least L1 norm, as many of each layer as the plan says.

    Raises `UserError` where torch-pruning keeps other widths.
    """
    model = copy.deepcopy(bench.dense)
    layers = prunable_layers(model)
    wanted = {n: m.weight.shape[0] - round(plan.sparsity(n, "filter") * m.weight.shape[0]) for n, m in layers.items()}
    torch_pruning.pruner.MagnitudePruner(
        model,
        bench.task.example_input,
        importance=torch_pruning.importance.MagnitudeImportance(p=1, normalizer=None, group_reduction="first"),
        pruning_ratio=0.0,
        # half a filter more, because the library rounds down
        pruning_ratio_dict={layers[n]: 1.0 - (kept + 0.5) / layers[n].weight.shape[0] for n, kept in wanted.items()},
        ignored_layers=[list(layers.values())[-1]],
    ).step()
    kept = {n: layer.weight.shape[0] for n, layer in prunable_layers(model).items()}
    if kept != wanted:
        raise UserError(f"torch-pruning keeps {kept} filters, the plan says {wanted}: another version?")
    return model


def l1_stages(bench: Bench, plan: PruningPlan, rungs: tuple[int, ...], path: Path) -> Iterator[Stage]:
    """Retraining with the job's own settings; after the epochs at which ADMM has its rungs, the rungs of this."""
    job, task = bench.job, bench.task
    model = l1_pruned(bench, plan)
    compute = Compute(**job.compute.model_dump())
    settings = FinetuneSettings(**job.finetune.model_dump())
    epochs = job.admm.iterations * job.admm.epochs_per_iteration + settings.epochs
    finetune = Finetune(
        model,
        {},
        FinetuneSettings(**{**job.finetune.model_dump(), "epochs": epochs}),
        loss=task.task.loss,
        teacher=frozen_teacher(copy.deepcopy(bench.dense), compute) if settings.distillation_weight > 0 else None,
        compute=compute,
        steps_per_epoch=steps_per_epoch(task),
    )
    while not finetune.done:
        finetune.step(task.train_batches(finetune.epoch))
        rung, rest = divmod(finetune.epoch, job.admm.epochs_per_iteration)
        if rung in rungs and rest == 0:
            accuracy = evaluate(module_predictor(model), task.val_batches(), task.task.metric).value
            yield Stage(rung=rung, epochs=float(finetune.epoch), accuracy=accuracy)
    shipped = ship(model.eval(), task, path, form=bench.form)
    yield Stage(rung=None, epochs=float(epochs), accuracy=shipped.score.value)
