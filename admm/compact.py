"""Make a network physically smaller, or zero what would go: both ways give the same outputs."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from admm.bounded import PLAN_BYTES, read_bounded, weight_bytes
from admm.errors import GroupError
from admm.kept import Kept, kept_from_slots, kept_of_json
from admm.messages import one_line
from admm.plan import PruningPlan
from admm.slicing import channel_axis, filter_axis, input_axis, removed, slice_module, width_of

__all__ = [
    "Kept",
    "SelectedInput",
    "compact",
    "kept_from_slots",
    "kept_of_json",
    "load_pruned",
    "mask_removed",
    "plain_state",
    "rebuild",
    "save_pruned",
]

PLAN_FILE = "plan.json"
WEIGHTS_FILE = "weights.safetensors"
SCHEMA = 1


class SelectedInput(nn.Module):
    """A layer that reads some of the channels that arrive: `layer(x.index_select(axis, index))`.

    The index is no part of the state dict: it comes from `Kept` alone, so weights and plan cannot disagree.
    """

    index: Tensor

    def __init__(self, layer: nn.Module, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index, persistent=False)
        self.layer = layer
        self.axis = input_axis(layer)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layer(x.index_select(self.axis, self.index)))

    def extra_repr(self) -> str:
        return f"channels={len(self.index)}, axis={self.axis}"


@torch.no_grad()
def mask_removed(model: nn.Module, kept: Kept) -> None:
    """Zero in place everything that `kept` removes, so that the model computes what `compact` would give.

    Of a removed filter: its weights, bias, norm weight, norm bias and running mean (running variance becomes
    1); of its consumers: the input channels, so that no activation brings it back (sigmoid(0) is not 0).
    """
    for name, sides in kept_of_json(kept, model).items():
        module = model.get_submodule(name)
        if "out" in sides:
            for key, value in (*module._parameters.items(), *module._buffers.items()):
                if value is None or value.ndim == 0:
                    continue
                gone = removed(sides["out"], width_of(module, "out"), value.device)
                axis = filter_axis(module) if key == "weight" else 0
                value.index_fill_(axis, gone, float(key == "running_var"))
        for side in ("in", "select"):
            if side in sides:
                weight = cast(Tensor, module.weight)
                gone = removed(sides[side], width_of(module, "in"), weight.device)
                weight.index_fill_(channel_axis(module), gone, 0.0)


def compact(model: nn.Module, kept: Kept) -> nn.Module:
    """A deep copy of plain smaller modules that hold only what `kept` keeps; the model is left alone.

    A consumer whose own `select` drops channels that still arrive becomes a `SelectedInput`. Training mode
    and requires_grad are kept. Raises `GroupError` for indices that do not fit the model.
    """
    small = copy.deepcopy(model)
    for name, sides in kept_of_json(kept, model).items():
        module = small.get_submodule(name)
        device = cast(Tensor, module.weight).device if module._parameters.get("weight") is not None else None
        out = _tensor(sides["out"], device) if "out" in sides else None
        if "in" not in sides and "select" not in sides:
            slice_module(module, out, None)
            continue
        arriving = sides.get("in") or list(range(width_of(module, "in")))
        chosen = sorted(set(arriving) & set(sides.get("select", arriving)))
        slice_module(module, out, _tensor(chosen, device))
        if len(chosen) < len(arriving):
            position = {channel: i for i, channel in enumerate(arriving)}
            selected = SelectedInput(module, _tensor([position[c] for c in chosen], device))
            selected.training = module.training
            small = _replace(small, module, selected)
    return small


def save_pruned(
    folder: Path,
    model: nn.Module,
    kept: Kept,
    requested: PruningPlan,
    effective: PruningPlan,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the compacted `model` as weights.safetensors and plan.json, each by atomic replace.

    plan.json holds schema, requested, effective, kept, the digest of `requested`, and `extra` (JSON types; it
    must not use these names).
    """
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "requested": requested.to_dict(),
        "effective": effective.to_dict(),
        "kept": kept,
        "digest": requested.digest(),
    }
    clash = sorted(set(content) & set(extra or {}))
    if clash:
        raise ValueError(f"extra may not say {clash[0]!r}: plan.json holds it already")
    folder.mkdir(parents=True, exist_ok=True)
    _replace_file(folder / WEIGHTS_FILE, safetensors.torch.save(plain_state(model)))
    _replace_file(folder / PLAN_FILE, json.dumps({**content, **(extra or {})}, indent=1).encode())


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as safetensors takes it: on the host, contiguous, and no tensor an alias of another."""
    return {
        name: value.detach().clone(memory_format=torch.contiguous_format).cpu()
        for name, value in model.state_dict().items()
    }


def load_pruned(model: nn.Module, folder: Path | str) -> nn.Module:
    """Rebuild a pruned network, in eval mode, from a freshly built *dense* `model` and what `save_pruned` wrote.

    Raises `GroupError`, in one line, where a file is missing or damaged or belongs to another network.
    """
    folder = Path(folder)
    kept = read_kept(model, folder)
    try:
        state = safetensors.torch.load(read_bounded(folder / WEIGHTS_FILE, weight_bytes(model)))
    except OSError as error:
        raise GroupError(f"cannot read the pruned network: {error.strerror}: {error.filename}") from None
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise GroupError(f"the pruned network in {folder} is damaged: {one_line(error)}") from None
    return rebuild(model, kept, state, str(folder))


def rebuild(model: nn.Module, kept: Any, state: Mapping[str, Tensor], where: str) -> nn.Module:
    """The pruned network, in eval mode, from a freshly built *dense* `model`, what is kept of it and its weights.

    `kept` is as JSON gave it and not trusted; `where` it came from is named in errors. Raises `GroupError`, in one
    line, for weights or indices of another network.
    """
    small = compact(model, kept_of_json(kept, model))
    expected = small.state_dict()
    missing, foreign = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or foreign:
        what = f"lack {missing[0]!r}" if missing else f"hold {foreign[0]!r}, which the model has not"
        raise GroupError(f"the weights in {where} {what}: build the same dense model as when it was pruned")
    for name, value in expected.items():
        if value.shape != state[name].shape or value.dtype != state[name].dtype:
            raise GroupError(
                f"{name!r} in {where} is {list(state[name].shape)} {state[name].dtype}, the model needs "
                f"{list(value.shape)} {value.dtype}: build the same dense model as when it was pruned"
            )
    small.load_state_dict(dict(state), strict=True)
    return small.eval()


def read_kept(model: nn.Module, folder: Path | str) -> Kept:
    """What the pruned network in `folder` keeps of the dense `model`. Raises `GroupError`, in one line."""
    path = Path(folder) / PLAN_FILE
    try:
        content = json.loads(read_bounded(path, PLAN_BYTES))
    except OSError as error:
        raise GroupError(f"cannot read the pruned network: {error.strerror}: {error.filename}") from None
    except (ValueError, RecursionError) as error:
        raise GroupError(f"the pruned network in {folder} is damaged: {one_line(error)}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or "kept" not in content:
        raise GroupError(f"{path} is no plan of a pruned network (schema {SCHEMA})")
    return kept_of_json(content["kept"], model)


def _tensor(index: list[int], device: torch.device | None) -> Tensor:
    return torch.tensor(index, dtype=torch.int64, device=device)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put `new` wherever `old` is registered: a layer used under two names stays one layer."""
    if model is old:
        return new
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is old and parent is not new:
                parent._modules[key] = new
    return model


def _replace_file(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
