"""2:4 sparsity on CUDA: linear layers whose weights obey it, run by torch's semi-structured tensors."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

from evaluators.errors import RigError, RigUnavailable, one_line

_TYPES = (torch.float16, torch.bfloat16)


def obeys_two_of_four(weight: Tensor) -> bool:
    """Whether each four consecutive weights of a row of [outputs, inputs] hold two zeros at least."""
    if weight.ndim != 2 or weight.shape[1] % 4 or not weight.numel():
        return False
    return bool((weight.reshape(-1, 4) != 0).sum(1).le(2).all())


def to_semi_structured(
    model: nn.Module, *, dtype: torch.dtype = torch.float16, only: tuple[str, ...] | None = None
) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy of `model` on CUDA in `dtype` and eval mode, with its 2:4 linear layers converted, and their names.

    `only` names the layers to convert; None takes all that obey. Layers that do not obey 2:4 stay dense, and so does
    one whose sizes the kernels cannot take. Raises `RigUnavailable` without a CUDA device that has sparse tensor cores,
    `RigError` if no layer can be converted.
    """
    if dtype not in _TYPES:
        raise RigError(f"2:4 runs in float16 or bfloat16, got {dtype}")
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    wanted = [name for name in linear if only is None or name in only]
    fitting = [name for name in wanted if obeys_two_of_four(linear[name].weight)]
    if not fitting:
        raise RigError(
            f"none of the {len(wanted)} linear layers has two zeros in every four weights of a row: prune it"
        )
    if not torch.cuda.is_available():
        raise RigUnavailable(
            f"2:4 needs a CUDA device with sparse tensor cores, and torch {torch.__version__} has none"
        )
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) < (8, 0):
        raise RigUnavailable(f"2:4 needs sparse tensor cores, compute capability 8.0 or more, this is {major}.{minor}")
    converted = copy.deepcopy(model).to("cuda", dtype).eval().requires_grad_(False)
    refused: dict[str, str] = {}
    for name in fitting:
        layer = converted.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the interface is a prototype
                sparse = to_sparse_semi_structured(layer.weight.detach().contiguous())
        except RuntimeError as error:
            refused[name] = one_line(error)
            continue
        layer.weight = nn.Parameter(sparse, requires_grad=False)
    if len(refused) == len(fitting):
        raise RigError(f"no 2:4 layer fits the kernels: {fitting[0]}: {refused[fitting[0]]}")
    return converted, tuple(name for name in fitting if name not in refused)


def holds_semi_structured(model: nn.Module) -> bool:
    """Whether any weight of `model` is a semi-structured tensor already."""
    return any(isinstance(value, SparseSemiStructuredTensor) for value in model.parameters())
