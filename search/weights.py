"""Counting what `compression_x` counts: the non-zero prunable weights, no bias, no normalisation."""

from __future__ import annotations

from torch import nn

from admm.slicing import prunable_layers


def prunable_weights(model: nn.Module) -> int:
    """Non-zero entries in the weights of convolutions and Linear layers; a layer used twice counts once."""
    return sum(int(layer.weight.count_nonzero()) for layer in prunable_layers(model).values())
