"""The set that Z is projected onto: what a plan says layer by layer, or whatever keeps a bound on the whole network."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from admm.budgeted import BudgetProjector
from admm.cost import output_positions
from admm.errors import PlanError
from admm.groupmap import GroupMap
from admm.plan import PruningPlan
from admm.projector import Projector
from admm.purify import purify
from admm.target import Target


def constraint(
    model: nn.Module,
    groups: GroupMap,
    wanted: PruningPlan | Target,
    *,
    align: int = 1,
    example_input: Tensor | None = None,
) -> Projector | BudgetProjector:
    """The projector of a plan or a target; of a target, weights that would serve nothing get none of the budget.

    `example_input` [1, ...] is needed for a MAC fraction. Raises `PlanError` for what this network cannot do.
    """
    if isinstance(wanted, PruningPlan):
        return Projector(model, groups, wanted, align=align)
    positions = None
    if wanted.mac_fraction is not None:
        if example_input is None:
            raise PlanError(f"{wanted.asked} needs example_input: MACs depend on the size of the input")
        positions = output_positions(model, example_input)
    return BudgetProjector(model, groups, wanted, align=align, positions=positions, dead=partial(purify, model, groups))


def identity(wanted: PruningPlan | Target, projector: Projector | BudgetProjector) -> str:
    """What tells one plan or target from another in a checkpoint; `projector` is the one made for it.

    A cost table of the user's own goes by its name and by what it says of the dense network.
    """
    try:
        return wanted.digest()
    except PlanError:
        assert isinstance(wanted, Target)
        layers = "some layers" if callable(wanted.layers) else ", ".join(wanted.layers or ("all layers",))
        assert isinstance(projector, BudgetProjector)
        dense = f"of {projector.dense_cost:.10g}"
        return f"{wanted.asked} {dense}, {', '.join(wanted.structures)} in {layers}, at least {wanted.min_keep}"
