"""Multiply-accumulates of a network that came out of pruning: ideal ones, and those of its dense kernels."""

from __future__ import annotations

from torch import Tensor, nn

from admm.cost import output_positions
from admm.slicing import prunable_layers
from evaluators.counting import count_macs


def ideal_macs(model: nn.Module, example_input: Tensor) -> int:
    """Of one sample, zeros free wherever they stand: what `Target(mac_fraction=...)` bounds. No biases, no norms."""
    positions = output_positions(model, example_input)
    return sum(int(layer.weight.count_nonzero()) * positions[name] for name, layer in prunable_layers(model).items())


def reductions(dense: nn.Module, small: nn.Module, example_input: Tensor) -> dict[str, float]:
    """Dense MACs / `small`'s: `ideal`, and `kernels` as dense kernels compute them, zeros included."""
    whole = count_macs(dense, example_input)
    return {
        "ideal": round(whole / ideal_macs(small, example_input), 3),
        "kernels": round(whole / count_macs(small, example_input), 3),
    }
