"""A pruned module as bytes: its weights, what it keeps of the dense network, and how layers are run. No pickle.

What `weights.safetensors` and `plan.json` say of a trial, as one safetensors file that travels to a rig, which builds
the dense network anew and makes it smaller by it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from admm.bounded import HEADER_BYTES, PLAN_BYTES, read_bounded
from admm.compact import PLAN_FILE, WEIGHTS_FILE, plain_state, rebuild
from admm.errors import PruneError
from admm.kept import Kept
from evaluators.errors import EvaluationError, one_line

#: A rig takes no larger network: what is asked of it goes through its machine's memory a few times.
MOST_BYTES = 2**31
#: The one entry of the metadata: of several, safetensors does not say the order.
_ENTRY, _SCHEMA = "prunefront", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A pruned network without its code: `module` gives the network for a freshly built dense one."""

    state: Mapping[str, Tensor]
    kept: Any
    """As JSON gave it: checked against the network, when there is one."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """Layer -> how it runs without its zeros; the others run dense (`evaluators.module_lowering`)."""

    @classmethod
    def of(cls, model: nn.Module, kept: Kept, choices: Mapping[str, str] | None = None) -> Payload:
        """Of a pruned network at hand."""
        return cls(state=plain_state(model), kept=kept, choices=dict(choices or {}))

    @classmethod
    def of_trial(cls, folder: Path, rig: str) -> Payload:
        """Of a finished trial's folder, in the form that this rig measured; plain where it did not."""
        try:
            plan = json.loads(read_bounded(folder / PLAN_FILE, PLAN_BYTES))
            choices = module_forms(plan).get(rig, {}).get("lowering", {})
            return cls(state=_read(folder / WEIGHTS_FILE), kept=plan["kept"], choices=_choices(choices))
        except OSError as error:
            raise EvaluationError(f"its weights or plan are gone: {one_line(error)}") from None
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise EvaluationError(f"the pruned network in {folder} is damaged: {one_line(error)}") from None

    def to_bytes(self) -> bytes:
        """For a rig. Raises `EvaluationError` for a network that is too large to be sent."""
        size = sum(value.numel() * value.element_size() for value in self.state.values())
        if size > MOST_BYTES:
            raise EvaluationError(
                f"the weights take {size / 2**30:.3g} GiB and a rig of modules takes {MOST_BYTES / 2**30:g}: "
                f"measure this network as an ONNX file"
            )
        said = json.dumps({"schema": _SCHEMA, "kept": self.kept, "choices": dict(self.choices)})
        return save(dict(self.state), metadata={_ENTRY: said})

    @classmethod
    def from_bytes(cls, content: bytes) -> Payload:
        """Read what `to_bytes` wrote; raises `EvaluationError` for anything else."""
        if len(content) > MOST_BYTES + HEADER_BYTES:
            raise EvaluationError(f"not a module for a rig: it holds {len(content)} bytes, at most {MOST_BYTES}")
        try:
            # github.com/huggingface/safetensors: eight bytes with the length of the JSON header, then the header.
            length = int.from_bytes(content[:8], "little")
            module = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_ENTRY])
            if module["schema"] != _SCHEMA:
                raise ValueError(f"its schema is {str(module['schema'])[:40]}, this version reads {_SCHEMA}")
            return cls(state=load(content), kept=module["kept"], choices=_choices(module["choices"]))
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise EvaluationError(f"not a module for a rig: {one_line(error)}") from None

    def module(self, dense: nn.Module) -> nn.Module:
        """The pruned network, unlowered, in eval mode; `dense` is a freshly built one and is left alone."""
        try:
            return rebuild(dense, self.kept, self.state, "the module")
        except PruneError as error:
            raise EvaluationError(str(error)) from None


def module_forms(plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rig -> {"precision", "lowering"} as a trial's plan.json records them; {} where no rig measured the module."""
    forms = plan.get("modules", {})
    if not isinstance(forms, dict) or not all(isinstance(form, dict) for form in forms.values()):
        raise ValueError("modules maps rigs to forms")
    return forms


def _choices(content: Any) -> dict[str, str]:
    if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
        raise ValueError("the choices of a module map layers to ways of running them")
    return content


def _read(path: Path) -> dict[str, Tensor]:
    return load(read_bounded(path, MOST_BYTES + HEADER_BYTES))


def dense_payload(path: Path) -> bytes:
    """The dense network of a run, from its weights file."""
    try:
        return Payload(state=_read(path), kept={}).to_bytes()
    except (OSError, SafetensorError) as error:
        raise EvaluationError(f"{path} cannot be read, and every network is measured against it: {error}") from None
