"""Which part of a model stopped its export, and why, in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from evaluators.errors import one_line

#: What torch.export raises where Python asks a tensor for its value: `if x.mean() > 0`, `range(int(x.max()))`.
_BY_DATA = re.compile(r"data-dependent|GuardOnDataDependent")
#: How the exporter names what it has no ONNX form of.
_NODE = re.compile(r"Error when translating node %(\w+)")


def failure(model: nn.Module, example: Tensor, error: BaseException) -> str:
    """`in module 'gate' (Gate), whose path depends on the data: ...`: the place and the innermost cause of `error`.

    The model is traced once more to find the place; where that does not tell, the cause stands alone.
    """
    chain = list(_chain(error))
    said = " ".join(f"{type(one).__name__} {one}" for one in chain)
    node = _NODE.search(said)
    try:
        name = _entered(model, example) if node is None else _owner(model, example, node[1])
    except Exception:  # the place is a help, and not worth another failure
        name = None
    why = ", whose path depends on the data" if node is None and _BY_DATA.search(said) else ""
    cause = f"{type(chain[-1]).__name__}: {one_line(_first_line(chain[-1]))}"
    if name is None:
        return f"its path depends on the data: {cause}" if why else cause
    part = type(model.get_submodule(name)).__name__
    place = f"in module {name!r} ({part})" if name else f"in the forward of {part} itself"
    return f"{place}{why}: {cause}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from: the exporter wraps the cause in pages of advice."""
    yield error
    if error.__cause__ is not None:
        yield from _chain(error.__cause__)


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")


def _entered(model: nn.Module, example: Tensor) -> str | None:
    """The innermost module whose forward was left by the error when the model is traced."""
    open_: list[str] = []

    def enter(name: str) -> None:
        open_.append(name)

    def leave() -> None:
        open_.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        handles.append(module.register_forward_hook(lambda *_: leave()))
    try:
        torch.export.export(model, (example,), strict=False)
    except Exception:
        return open_[-1] if open_ else None
    finally:
        for handle in handles:
            handle.remove()
    return None


def _owner(model: nn.Module, example: Tensor, node: str) -> str | None:
    """The module in whose forward a node of the traced graph was called."""
    program = torch.export.export(model, (example,), strict=False)
    traced = list(program.graph.nodes)
    found = [one for one in traced if one.name == node]
    found = found or [one for one in program.run_decompositions().graph.nodes if one.name == node]
    # the exporter takes some operators apart in a way of its own: special_bessel_j0 becomes bessel_j0
    found = found or [one for one in traced if node.strip("_") in one.name]
    stack = found[0].meta.get("nn_module_stack") if found else None
    return str(next(reversed(stack.values()))[0]) if stack else None
