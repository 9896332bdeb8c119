"""Filters and columns of one layer: one Z and U for both, chosen in turn, or a Z and U for each structure?

LeNet-5 to a twentieth of its MACs under one fixed plan, allocated once from the dense weights, in two ways:

* `one Z and U`: Z is projected onto filters and columns together, each chosen in turn by the energy that the others
  leave (`Projector`); what `prune()` does;
* `a Z and U each`: one penalty holds W near a Z of few filters, another near a Z of few columns, as in StructADMM
  (arXiv 1807.11091, section 3); W is pulled by both after each step. The two choices do not know of each other, so the
  hard prune is one projection of W onto both, weighted by the last rho.

The rest is equal: settings, batches, epochs, retraining. The second way holds two more copies of the weights. What is
shared with other comparisons stands in `compared.py`.
"""

from __future__ import annotations

import copy
import time
from functools import partial

from compared import Comparison, Outcome, Start, Statement, by_admm, main
from mnist import score
from side_by_side import retrain

from admm.allocate import allocate
from admm.cost import output_positions
from admm.groupmap import GroupMap
from admm.groups import find_groups
from admm.plan import PruningPlan
from admm.projector import Projector
from admm.shrink import shrink
from admm.slicing import prunable_layers
from admm.solver import Admm
from admm.target import Target
from admm.training import make_optimizer, train_epoch
from search.weights import prunable_weights


def planned(start: Start, asked: Target) -> tuple[PruningPlan, GroupMap]:
    """The plan of both sides, filters and columns that keep the most energy of the dense weights; and the groups."""
    example = start.prepared.example_input
    groups = find_groups(start.model, example)
    return allocate(start.model, groups, asked, positions=output_positions(start.model, example)), groups


def together(start: Start, asked: Target) -> Outcome:
    """One Z and U for both structures."""
    plan, groups = planned(start, asked)
    return by_admm(start, plan, groups)


def one_each(start: Start, asked: Target) -> Outcome:
    """A Z and U for each structure, and one projection at the end."""
    since = time.process_time()
    model, settings = copy.deepcopy(start.model), start.admm
    plan, groups = planned(start, asked)
    runs = [
        Admm(model, Projector(model, groups, part), settings, steps_per_iteration=start.steps_per_epoch)
        for part in (only(plan, "filter"), only(plan, "shape"))
    ]
    optimizer = make_optimizer(
        model.parameters(),
        kind=settings.optimizer,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )

    for epoch in range(settings.epochs):
        stats = train_epoch(
            model,
            start.prepared.train_batches(epoch),
            start.prepared.task.loss,
            optimizer,
            phase=f"ADMM with a Z and U each, epoch {epoch + 1}",
            after_step=partial(pull, runs, settings.lr),
            max_grad_norm=settings.max_grad_norm,
            compute=start.compute,
        )
        for run in runs:
            run.end_iteration(stats.loss)

    both = Projector(model, groups, plan)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    masks = both.project(parameters, runs[1].rho | runs[0].rho)
    shrunk = shrink(model, groups, masks, plan=plan, effective=both.effective())
    after_prune = score(start.prepared, shrunk.model)
    retrain(start, shrunk.model, shrunk.zeros, start.finetune, first_epoch=settings.epochs)
    factors = masks.parameters
    paid = sum(
        int(factors[f"{name}.weight"].expand_as(layer.weight).sum())
        if f"{name}.weight" in factors
        else layer.weight.numel()
        for name, layer in prunable_layers(start.model).items()
    )
    assert paid >= prunable_weights(shrunk.model)
    return start.outcome(shrunk.model, paid=paid, after_prune=after_prune, epochs=start.epochs, since=since)


def pull(runs: list[Admm], lr: float) -> None:
    """Both penalties' proximal steps."""
    for run in runs:
        run.after_step(lr)


def only(plan: PruningPlan, structure: str) -> PruningPlan:
    """What the plan asks of one structure."""
    return PruningPlan({name: {structure: plan[name][structure]} for name in plan if structure in plan[name]})


COMPARISONS = {
    "lenet-5": Comparison(
        network="lenet-5",
        asked=Target(mac_fraction=0.05, structures=("filter", "shape")),
        sides={"one Z and U": together, "a Z and U each": one_each},
    )
}
STATEMENT = Statement(
    name="mixed_structures",
    claim="filters and columns chosen in turn under one Z and U are at least as accurate as under a Z and U each, at "
    "equal plan, epochs and settings, mean of the seeds",
    bar=0.0,
    equal_holds=True,
)

if __name__ == "__main__":
    raise SystemExit(main(COMPARISONS, STATEMENT, __doc__))
