"""A network that returns a mapping, a dataclass or a tuple becomes one that returns the tensor meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from search.errors import UserError

#: What libraries call the tensor that loss and metric are asked of.
LOGITS = "logits"
#: Parts that an error lists before it stops.
_MOST = 8


def with_one_output(model: nn.Module, example_input: Tensor, wanted: str | int | None, name: str) -> nn.Module:
    """`model`, changed in place so that its `forward` gives one tensor; returned for convenience.

    `wanted` is `Task.output`: a key, a field or a place in a tuple. Without it that is `logits`, or the only tensor
    there is. The class is replaced by a subclass of itself: a module around it would change every parameter's name, a
    function on the instance would not survive `copy.deepcopy`. A network that returns a tensor keeps its class. One
    that fails on the input is left to whoever runs it next. Raises `UserError` naming the parts there are.
    """
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        # Not inference_mode: what a network keeps of its first input must still be fit for training.
        with torch.no_grad():
            outputs = model(example_input)
    except Exception:
        return model
    finally:
        for part, training in modes:
            part.training = training
    if isinstance(outputs, Tensor):
        # in training such a network may give more, as torchvision's GoogLeNet does
        return model if wanted is None else _picking(model, wanted)
    return _picking(model, _which(_parts(outputs), wanted, outputs, name))


def pick(outputs: Any, key: str | int) -> Tensor:
    """The tensor called `key` in what a network returned; a tensor is itself."""
    if isinstance(outputs, Tensor):
        return outputs
    by_name = isinstance(key, str) and not isinstance(outputs, Mapping)
    picked = getattr(outputs, str(key)) if by_name else outputs[key]
    assert isinstance(picked, Tensor), f"output {key!r} is {type(picked).__name__}, not a tensor"
    return picked


def _picking(model: nn.Module, key: str | int) -> nn.Module:
    base = type(model)

    # one named argument: exporters take the names and the number of inputs from here
    def forward(self: nn.Module, inputs: Tensor) -> Tensor:
        return pick(base.forward(self, inputs), key)

    made = type(base.__name__, (base,), {"forward": forward, "__module__": base.__module__, "__doc__": base.__doc__})
    try:
        model.__class__ = made
    except TypeError as error:  # TorchScript's, for one
        raise UserError(
            f"the network's class {base.__name__} cannot be extended ({error}): return one tensor from its forward"
        ) from None
    return model


def _parts(outputs: Any) -> dict[str | int, Any]:
    """What a network returned, by key, field or place; empty for what has no parts."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        return {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return dict(zip(outputs._fields, outputs, strict=True))
    return dict(enumerate(outputs)) if isinstance(outputs, list | tuple) else {}


def _which(parts: Mapping[str | int, Any], wanted: str | int | None, outputs: object, name: str) -> str | int:
    kind = type(outputs).__name__
    tensors = [key for key, value in parts.items() if isinstance(value, Tensor)]
    if not tensors:
        raise UserError(
            f"task {name!r}: the network must return one tensor, or a dict, dataclass or tuple with one: got {kind}"
            + (f" with no tensor in it, only {_some(parts)}" if parts else "")
        )
    if wanted is not None:
        if wanted in tensors:
            return wanted
        what = "is no tensor" if wanted in parts else "is not among them"
        raise UserError(
            f"task {name!r}: the network returns {kind} with {_some(tensors)}, and Task.output {wanted!r} {what}: "
            f"name one of these"
        )
    if LOGITS in tensors:
        return LOGITS
    if len(tensors) == 1:
        return tensors[0]
    raise UserError(
        f"task {name!r}: the network returns {kind} with the tensors {_some(tensors)}: say which one counts with "
        f"Task(output={tensors[0]!r}, ...)"
    )


def _some(keys: Mapping[str | int, Any] | list[str | int]) -> str:
    listed = [repr(key) for key in keys]
    return ", ".join(listed[:_MOST]) + (", ..." if len(listed) > _MOST else "")
