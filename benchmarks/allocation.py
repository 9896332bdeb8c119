"""Who should set the per-layer sparsities: a threshold, one-shot sensitivity, nobody, or ADMM while it runs?

Single weights of LeNet-300-100 (60x) and LeNet-5 (250x), from one number to per-layer sparsities in four ways:

* `while ADMM runs`: Z is projected onto the budget itself, sparsities are found anew in every iteration (`Target`);
* `one threshold`: a fixed plan by one threshold on |w| / rms of its layer;
* `one-shot sensitivity`: a fixed plan that keeps the most energy, weighted by how the training loss rises when each
  layer alone is pruned (after Li et al. 2017, arXiv 1608.08710); its forward passes count as a third of an epoch's;
* `uniform`: a fixed plan with the same sparsity in each layer.

ADMM, its progressive schedule and the retraining are the same for all, those of `mnist.py`. Weights that serve nothing
count as kept, and `idle` tells how many: a fixed plan cannot give their budget to others, the first way does. What that
alone is worth is told by an ablation, `while ADMM runs, idle kept`, which is no rival in `figure`. What is shared with
other comparisons stands in `compared.py`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from unittest.mock import patch

import torch
from compared import Comparison, Outcome, Side, Start, Statement, by_admm, main
from torch import nn

from admm.allocate import allocate
from admm.groups import find_groups
from admm.rivals import global_magnitude, sensitivity_from_pruning, uniform
from admm.target import Target

#: Training batches that a loss is measured on.
BATCHES = 8
ABLATION = "while ADMM runs, idle kept"


def without_reuse(start: Start, asked: Target) -> Outcome:
    """Sparsities found while ADMM runs, in a single allocation an iteration: idle weights keep their budget."""
    with patch("admm.budgeted.ROUNDS", 1):
        return by_admm(start, asked)


def one_threshold(start: Start, asked: Target) -> Outcome:
    """ADMM under the plan of one threshold for all layers."""
    groups = find_groups(start.model, start.prepared.example_input)
    return by_admm(start, global_magnitude(start.model, groups, asked), groups)


def same_everywhere(start: Start, asked: Target) -> Outcome:
    """ADMM under the uniform plan."""
    groups = find_groups(start.model, start.prepared.example_input)
    return by_admm(start, uniform(start.model, groups, asked), groups)


def one_shot_sensitivity(start: Start, asked: Target) -> Outcome:
    """ADMM under the plan of most energy weighted by sensitivity."""
    groups = find_groups(start.model, start.prepared.example_input)
    batches = list(islice(start.prepared.train_batches(0), BATCHES))
    samples = 0

    @torch.no_grad()
    def loss_of(model: nn.Module) -> float:
        nonlocal samples
        model.eval()
        total, count = 0.0, 0
        for inputs, targets in batches:
            total += float(start.prepared.task.loss(start.compute.forward(model, inputs), targets)) * len(inputs)
            count += len(inputs)
        samples += count
        return total / count

    sensitivity = sensitivity_from_pruning(start.model, loss_of)
    outcome = by_admm(start, allocate(start.model, groups, asked, sensitivity=sensitivity), groups)
    return replace(outcome, epochs=round(outcome.epochs + samples / 3.0 / start.prepared.train_size, 3))


_SIDES: dict[str, Side] = {
    "while ADMM runs": by_admm,
    ABLATION: without_reuse,
    "one threshold": one_threshold,
    "one-shot sensitivity": one_shot_sensitivity,
    "uniform": same_everywhere,
}
_ASKED = {"lenet-300-100": Target(compression_x=60.0), "lenet-5": Target(compression_x=250.0)}
COMPARISONS = {
    network: Comparison(network=network, asked=asked, sides=_SIDES, ablations=frozenset({ABLATION}))
    for network, asked in _ASKED.items()
}
STATEMENT = Statement(
    name="allocation",
    claim="sparsities found anew while ADMM runs are at least as accurate as the best fixed plan (one threshold, "
    "one-shot sensitivity, uniform) at equal size, equal epochs and settings, mean of the seeds",
    bar=0.0,
    equal_holds=True,
)

if __name__ == "__main__":
    raise SystemExit(main(COMPARISONS, STATEMENT, __doc__))
