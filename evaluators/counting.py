"""Counting what a network costs on paper: multiply-accumulates and parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evaluators.modes import evaluating, module_output

_Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def count_macs(module: nn.Module, example_input: Tensor) -> int:
    """Multiply-accumulates of one sample in convolutions, transposed ones and linear layers, zeros included.

    `example_input` is [batch, ...]; a layer used twice counts twice. What dense kernels would do: biases,
    norms, activations and functional calls are not counted. The module and the random state stay as they
    were.
    """
    total = 0

    def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal total
        # Every weight of a transposed convolution meets every input position, of the others every output
        # position.
        positions = inputs[0] if isinstance(layer, _Transposed) else output
        weight = layer.weight
        assert isinstance(weight, Tensor)
        per_position = weight[0].numel()
        total += positions.numel() * per_position

    layers = [m for m in module.modules() if isinstance(m, (*_Convolution, *_Transposed, nn.Linear))]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        with evaluating(module), torch.random.fork_rng(devices=[]):
            module_output(module, example_input)
    finally:
        for handle in handles:
            handle.remove()
    return total // len(example_input)


def count_params(module: nn.Module) -> int:
    """Number of parameters, shared ones once, frozen ones included; buffers are not parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
