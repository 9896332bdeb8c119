"""ADMM beside gradual magnitude pruning and uniform L1 filter pruning, at equal size and equal epochs.

* `single-weights`: LeNet-300-100 to a 60th of its weights. Gradual magnitude pruning (Zhu and Gupta 2017, arXiv
  1710.01878) takes ADMM's epochs, with ADMM's optimiser, and chooses masks along their cubic: once by one threshold on
  |w| / rms of its layer, once with the same sparsity in each layer. The better mean is what ours is held against.
* `filters`: LeNet-5 to 15 % of its MACs. Filters by L1 norm (Li et al. 2017, arXiv 1608.08710) through torch-pruning go
  at once, the same share of each layer, as few as the MACs allow; then all epochs are retraining.

Weights that serve nothing count as kept, and `idle` tells how many; ADMM under a target gives their budget to others.
Retraining is the same code with the same settings. Those are `mnist.py`'s, chosen for ADMM on the validation images;
the other sides' own parameters are the papers'. All widths are unaligned. What is shared stands in `compared.py`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch_pruning
from compared import Comparison, Outcome, Start, Statement, by_admm, main
from macs import ideal_macs
from mnist import score
from torch import Tensor, nn

from admm.finetune import Finetune
from admm.groups import find_groups
from admm.pipeline import LEAST_LR
from admm.plan import PruningPlan
from admm.projector import Masks
from admm.settings import FinetuneSettings
from admm.shrink import shrink
from admm.slicing import prunable_layers
from admm.target import Target
from admm.training import cosine, frozen_teacher, make_optimizer, train_epoch
from search.weights import prunable_weights

#: Steps between two choices of masks in gradual pruning; the paper finds 100 to 1000 alike.
MASK_STEPS = 100
#: Bisection of the uniform share of filters ends below this.
SHARE_STEP = 1e-4


def one_threshold(start: Start, asked: Target) -> Outcome:
    """Gradual magnitude pruning with one threshold for all layers."""
    return gradual(start, asked, uniform=False)


def same_everywhere(start: Start, asked: Target) -> Outcome:
    """Gradual magnitude pruning with the same sparsity in each layer."""
    return gradual(start, asked, uniform=True)


def gradual(start: Start, asked: Target, *, uniform: bool) -> Outcome:
    """Gradual magnitude pruning over ADMM's epochs, then retraining."""
    since = time.process_time()
    assert asked.compression_x is not None
    model, settings = copy.deepcopy(start.model), start.admm
    steps = settings.epochs * start.steps_per_epoch
    masks = GradualMasks(model, asked.compression_x, steps=steps, uniform=uniform)
    optimizer = make_optimizer(
        model.parameters(),
        kind=settings.optimizer,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )

    def set_lr(_: int) -> None:
        share = LEAST_LR + (1.0 - LEAST_LR) * cosine(masks.progress) if settings.schedule == "cosine" else 1.0
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * share

    for epoch in range(settings.epochs):
        train_epoch(
            model,
            start.prepared.train_batches(epoch),
            start.prepared.task.loss,
            optimizer,
            phase=f"gradual pruning, epoch {epoch + 1}",
            before_step=set_lr,
            after_step=masks.after_step,
            max_grad_norm=settings.max_grad_norm,
            compute=start.compute,
        )
    groups = find_groups(model, start.prepared.example_input)
    plan = PruningPlan({n: {"unstructured": 1.0 - float(k.float().mean())} for n, k in masks.keep.items()})
    shrunk = shrink(model, groups, masks.masks(), plan=plan, effective=plan)
    after_prune = score(start.prepared, shrunk.model)
    retrain(start, shrunk.model, shrunk.zeros, start.finetune, first_epoch=settings.epochs)
    return start.outcome(
        shrunk.model,
        paid=sum(int(keep.sum()) for keep in masks.keep.values()),
        after_prune=after_prune,
        epochs=start.epochs,
        since=since,
    )


class GradualMasks:
    """Masks along s_t = s (1 - (1 - t/n)^3): Zhu and Gupta 2017, equation 1, from the dense network on.

    A masked weight rests at its last value, and comes back where that is among the largest again. Magnitudes are
    compared within each layer (`uniform`), or over all layers after division by their layer's root mean square.
    """

    def __init__(self, model: nn.Module, compression_x: float, *, steps: int, uniform: bool) -> None:
        self._weights = {name: layer.weight for name, layer in prunable_layers(model).items()}
        self._resting = {name: torch.zeros_like(w) for name, w in self._weights.items()}
        self.keep = {name: torch.ones_like(w, dtype=torch.bool) for name, w in self._weights.items()}
        """Layer -> bool mask of its weight."""
        self._share_at_end, self._steps, self._uniform = 1.0 / compression_x, steps, uniform
        self._step = 0

    @property
    def progress(self) -> float:
        """t/n."""
        return self._step / self._steps

    @property
    def share(self) -> float:
        """1 - s_t, the fraction that may stay now."""
        return self._share_at_end + (1.0 - self._share_at_end) * (1.0 - self.progress) ** 3

    def masks(self) -> Masks:
        """For `shrink`."""
        return Masks(slots={}, channels={}, parameters={f"{name}.weight": keep for name, keep in self.keep.items()})

    @torch.no_grad()
    def after_step(self) -> None:
        """Choose anew where it is time, and zero what is masked."""
        self._step += 1
        if self._step % MASK_STEPS == 0 or self._step == self._steps:
            self._choose()
        for name, weight in self._weights.items():
            weight.mul_(self.keep[name])

    def _choose(self) -> None:
        values = {n: torch.where(self.keep[n], w, self._resting[n]) for n, w in self._weights.items()}
        if self._uniform:
            self.keep = {n: largest(v.abs().flatten(), self.share).view_as(v) for n, v in values.items()}
        else:
            scores = [(v.abs() / v.square().mean().sqrt()).flatten() for v in values.values()]
            parts = largest(torch.cat(scores), self.share).split([s.numel() for s in scores])
            self.keep = {n: part.view_as(values[n]) for n, part in zip(values, parts, strict=True)}
        for name, weight in self._weights.items():
            weight.copy_(values[name])
        self._resting = values


def largest(scores: Tensor, share: float) -> Tensor:
    """Flags of the largest `share` of scores [n], rounded down, one at least."""
    flags = torch.zeros(len(scores), dtype=torch.bool)
    flags[scores.topk(max(int(len(scores) * share + 1e-9), 1), sorted=False).indices] = True
    return flags


def uniform_l1(start: Start, asked: Target) -> Outcome:
    """Uniform L1 filter pruning at once, then all epochs of retraining."""
    since = time.process_time()
    assert asked.mac_fraction is not None
    model = without_filters(start.model, start.prepared.example_input, asked.mac_fraction)
    after_prune = score(start.prepared, model)
    retrain(start, model, {}, replace(start.finetune, epochs=start.epochs), first_epoch=0)
    kept = prunable_weights(model)
    return start.outcome(model, paid=kept, after_prune=after_prune, epochs=start.epochs, since=since)


def without_filters(model: nn.Module, example_input: Tensor, mac_fraction: float) -> nn.Module:
    """The widest copy of `model` within the MACs that loses the same share of filters in each layer but the last.

    Raises `ValueError` where no share is enough.
    """
    bound = mac_fraction * ideal_macs(model, example_input)
    too_few, enough = 0.0, 1.0
    found: nn.Module | None = None
    while enough - too_few > SHARE_STEP:
        sparsity = (too_few + enough) / 2.0
        trial = copy.deepcopy(model)
        torch_pruning.pruner.MagnitudePruner(
            trial,
            example_input,
            importance=torch_pruning.importance.MagnitudeImportance(p=1, normalizer=None, group_reduction="first"),
            pruning_ratio=sparsity,
            ignored_layers=[list(prunable_layers(trial).values())[-1]],
        ).step()
        if ideal_macs(trial, example_input) <= bound:
            enough, found = sparsity, trial
        else:
            too_few = sparsity
    if found is None:
        raise ValueError(f"mac_fraction {mac_fraction:g} is out of reach of uniform filter pruning: ask for more")
    return found


def retrain(
    start: Start, model: nn.Module, keep: Mapping[str, Tensor], settings: FinetuneSettings, *, first_epoch: int
) -> None:
    """The retraining of `prune()` in place, with `keep` (parameter name -> bool mask) of what may live."""
    teaches = settings.distillation_weight > 0.0 and settings.epochs > 0
    teacher = frozen_teacher(copy.deepcopy(start.model), start.compute) if teaches else None
    loss = start.prepared.task.loss
    finetune = Finetune(model, dict(keep), settings, loss=loss, teacher=teacher, compute=start.compute)
    while not finetune.done:
        finetune.step(start.prepared.train_batches(first_epoch + finetune.epoch))


COMPARISONS = {
    "single-weights": Comparison(
        network="lenet-300-100",
        asked=Target(compression_x=60.0),
        sides={
            "ADMM": by_admm,
            "gradual magnitude, one threshold": one_threshold,
            "gradual magnitude, uniform": same_everywhere,
        },
    ),
    "filters": Comparison(
        network="lenet-5",
        asked=Target(mac_fraction=0.15, structures=("filter",)),
        sides={"ADMM": by_admm, "uniform L1": uniform_l1},
    ),
}
STATEMENT = Statement(
    name="side_by_side",
    claim="ADMM with sparsities it finds is more accurate than gradual magnitude pruning (single weights) and than "
    "uniform L1 filter pruning (filters) at equal size, equal epochs and the same retraining, mean of the seeds",
    bar=0.0,
    equal_holds=False,
)

if __name__ == "__main__":
    raise SystemExit(main(COMPARISONS, STATEMENT, __doc__))
