"""Random mixed plans over the zoo, and what it takes to project them: shared by the tests of the mathematics."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from admm.groupmap import GroupMap
from admm.groups import find_groups
from admm.plan import STRUCTURES, PruningPlan
from admm.projector import Masks, Projector
from admm.slicing import filter_axis
from admm.validate import weight_obstacle
from admm.verify import randomise
from tests.admm.zoo import ZOO

SPARSITIES = (0.0, 0.25, 0.5, 0.75, 0.95)


@lru_cache
def groups_of(name: str) -> GroupMap:
    return find_groups(ZOO[name].factory(), ZOO[name].example_input)


def random_model(name: str, seed: int) -> nn.Module:
    """A network of the zoo in float64, no weight or statistic of which is zero or one."""
    model = ZOO[name].factory().double()
    randomise(model, torch.Generator().manual_seed(seed))
    return model


def random_plan(name: str, rng: random.Random, structures: Sequence[str] = STRUCTURES) -> PruningPlan:
    """Any mixture of the structures that each layer of this network can have."""
    model, groups = ZOO[name].factory(), groups_of(name)
    plan: dict[str, dict[str, float]] = {}
    for layer in groups.layers:
        for structure in structures:
            if structure == "filter":
                possible = layer in groups.groups
            else:
                possible = weight_obstacle(model, layer, structure) is None
            if possible:
                plan.setdefault(layer, {})[structure] = rng.choice(SPARSITIES)
    return PruningPlan(plan)


def values_of(model: nn.Module, projector: Projector) -> dict[str, Tensor]:
    """The tensors that a projection needs."""
    return {name: p.detach() for name, p in model.named_parameters() if name in projector.variables}


def kept_energy(masks: Masks, values: dict[str, Tensor], rho: dict[str, float]) -> float:
    """sum_t rho_t ||mask_t V_t||^2: what is left of ||V||^2 is the squared distance of the projection."""
    return sum(rho[name] * float((values[name] * mask).square().sum()) for name, mask in masks.parameters.items())


def canonical(model: nn.Module, layer: str, value: Tensor) -> Tensor:
    """A weight, or a mask of it, as [filters, channels, *kernel]."""
    return value.transpose(0, 1) if filter_axis(model.get_submodule(layer)) == 1 else value
