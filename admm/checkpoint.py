"""Optimiser states and whole runs as tensors and JSON: what safetensors can hold, no pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from admm.errors import PruneError


def save_state(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write tensors and JSON-ready values as one safetensors file, by atomic replacement."""
    contiguous = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    content = save(contiguous, metadata={"values": json.dumps(values)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote. Raises `PruneError` for a torn or foreign file."""
    try:
        if not path.is_file():
            raise FileNotFoundError(f"no regular file at {path}")
        with safe_open(str(path), framework="pt") as file:
            values = json.loads(file.metadata()["values"])
            if not isinstance(values, dict):
                raise ValueError(f"it holds a {type(values).__name__}, not the state of a run")
            return {name: file.get_tensor(name) for name in file.keys()}, values  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise PruneError(f"cannot read the checkpoint {path}: {error}") from None


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as (tensors, JSON-ready values); tensors are named `<parameter index>.<key>`."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
    groups = [{k: v for k, v in g.items() if k != "params"} for g in state["param_groups"]]
    return tensors, {"groups": groups}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Put back what `pack_optimizer` took."""
    state = optimizer.state_dict()
    entries: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = tensor
    groups = [
        {**saved, "params": g["params"]} for saved, g in zip(values["groups"], state["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
