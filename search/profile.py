"""What is known before the first epoch: coupled groups, the search space, and whether the budget can be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from admm.frozen import frozen_layers, without_frozen
from admm.groupmap import GroupMap
from admm.groups import find_groups
from admm.plan import N_OF_M, PruningPlan
from evaluators import Measurement
from evaluators.rig import measures_modules
from search.budget import Budget
from search.errors import BudgetUnreachable, UserError
from search.job import Job
from search.precision import PRECISIONS
from search.shipped import lowers, no_gain
from search.space import BLOCKED, Space, build_space

#: What sparse tensor cores take for 2:4 in linear layers.
SPARSE_IN = ("fp16", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The network as the search sees it."""

    groups: GroupMap
    layers: tuple[str, ...]
    """The layers the job lets the search touch."""
    space: Space
    notes: tuple[str, ...]
    block: int = 16
    """The device's channel block, which rewrites are padded to; kept counts are multiples of the job's `align`."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "groups": self.groups.to_dict(),
            "layers": list(self.layers),
            "space": self.space.to_dict(),
            "precisions": list(self.space.precisions),
            "notes": list(self.notes),
            "block": self.block,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Profile:
        """Read what `to_dict` wrote."""
        return cls(
            groups=GroupMap.from_dict(content["groups"]),
            layers=tuple(content["layers"]),
            space=Space.from_dict(content["space"], content.get("precisions", PRECISIONS[:1])),
            notes=tuple(content["notes"]),
            block=int(content.get("block", 16)),
        )


def profile_network(job: Job, model: nn.Module, example_input: torch.Tensor) -> Profile:
    """Groups, chosen layers and space of one network; no measurement. Raises `UserError` for a fruitless job.

    Layers with a frozen weight are left whole, and named in the notes.
    """
    groups = without_frozen(model, find_groups(model, example_input))
    if not groups.layers:
        raise UserError(
            f"{type(model).__name__} has no layer that can be pruned: it needs a convolution or a Linear, a module "
            f"of torch.nn that is not scripted"
        )
    modules = dict(model.named_modules())
    layers = tuple(job.match_layers({name: type(modules[name]).__name__ for name in groups.layers}))
    frozen = [layer for layer in frozen_layers(model, groups) if layer in layers]
    layers = tuple(layer for layer in layers if layer not in frozen)
    if frozen and not layers:
        raise UserError(
            f"all {len(frozen)} chosen layers are frozen, {frozen[0]!r} first: requires_grad_(True) on those that may "
            f"be pruned"
        )
    space, notes = build_space(
        model,
        groups,
        layers,
        job.structures,
        least=job.sparsity.min,
        most=job.sparsity.max,
        step=job.sparsity.step,
        align=job.align,
    )
    space = replace(space, precisions=job.precisions)
    left = [f"{layer}: left whole: its weight is frozen (requires_grad False)" for layer in frozen]
    return Profile(groups=groups, layers=layers, space=space, notes=(*left, *notes, *gainless_notes(job)))


def fastest_plan(profile: Profile, job: Job) -> PruningPlan:
    """The plan that should be fastest of the space: the most of all structures that save time on the deciding rig."""
    return profile.space.extreme(fast_structures(job))


def fast_structures(job: Job) -> tuple[str, ...]:
    """The structures whose zeros may save time on the deciding rig."""
    rig = job.deciding_rig
    if measures_modules(rig.name) and job.lower:
        sparse = rig.name == "cuda" and rig.precision in SPARSE_IN
        return (*BLOCKED, "shape", *((N_OF_M,) if sparse else ()))
    return (*BLOCKED, "shape") if lowers(job) else BLOCKED


def gainless_notes(job: Job) -> tuple[str, ...]:
    """Say before any training which structures of the job save no time on the deciding rig."""
    rig, fast = job.deciding_rig, fast_structures(job)
    return tuple(no_gain(structure, rig.name) for structure in job.structures if structure not in fast)


def require_reachable(budget: Budget, fastest: Measurement, job: Job) -> None:
    """Raises `BudgetUnreachable` when even the smallest shapes miss the budget; it tells their cautious figures."""
    if budget.met_by(fastest):
        return
    if any(structure in fast_structures(job) for structure in job.structures):
        mend = f"raise sparsity.max ({job.sparsity.max:g}), lower sparsity.align ({job.align}), or add layers"
    else:
        mend = f"or add the structure {BLOCKED[0]}: single zeros save no time there"
    raise BudgetUnreachable(
        f"the budget of {budget} cannot be met: the fastest reachable network takes {fastest.latency_high_ms:.4g} ms, "
        f"{fastest.speedup_low:.2f}x: ask for less, {mend}"
    )
