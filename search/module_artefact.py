"""A network in every form that a job's rigs measure: as an ONNX file, and as the module that its folder gives back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from admm.bounded import PLAN_BYTES, read_bounded
from admm.compact import PLAN_FILE, load_pruned
from admm.groupmap import GroupMap
from admm.kept import Kept
from admm.plan import PruningPlan
from admm.shapes import kept_by_magnitude
from evaluators import ParityReport, Score
from evaluators.lowering import Lowered
from evaluators.module_form import prepared_module, require_precision
from evaluators.module_lowering import rewritten_module
from evaluators.rig import measures_modules
from search.artefact import Artefact, ship
from search.errors import UserError
from search.job import Job
from search.module_rigs import Modules, of_files, of_modules
from search.payload import Payload, module_forms
from search.shipped import Form
from search.tasks.base import PreparedTask

#: What a rig computes in where the job does not say.
PLAIN = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleArtefact:
    """A module that says, on its rig, what the pruned network says."""

    content: bytes
    """The payload, with the layers rewritten that gain on this rig."""
    parity: ParityReport
    score: Score
    precision: str
    lowered: Lowered | None = None
    """What was rewritten; None where the job leaves layers as they are."""

    def to_dict(self) -> dict[str, Any]:
        """What plan.json says of this form: enough for `load_measured`."""
        return {"precision": self.precision, "lowering": dict(Payload.from_bytes(self.content).choices)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseForms:
    """The dense network of a run, as each kind of rig takes it; None where no rig of the job does."""

    file: bytes | None = None
    module: bytes | None = None

    def of(self, rig: str) -> bytes:
        """What this rig measures everything else against."""
        content = self.module if measures_modules(rig) else self.file
        if content is None:
            raise UserError(f"the dense network is not at hand in the form that rig {rig!r} takes")
        return content


def ship_forms(
    job: Job,
    task: PreparedTask,
    model: nn.Module,
    kept: Kept,
    path: Path,
    modules: Modules | None,
    *,
    form: Callable[[bytes], Form] | None = None,
    lower: bool = False,
) -> dict[str, Artefact | ModuleArtefact]:
    """The network `model`, pruned to `kept`, in the form of each rig, by the rig's name: checked and scored.

    An ONNX file is written to `path` only where a rig measures it; `form` may rewrite it, `lower` lets a module's
    layers be rewritten. Raises `EvaluationError`.
    """
    forms: dict[str, Artefact | ModuleArtefact] = {}
    if of_files(job):
        file = ship(model, task, path, form=form, opset=job.opset)
        forms |= {spec.name: file for spec in of_files(job)}
    for spec in of_modules(job):
        if modules is None:
            raise UserError(f"rig {spec.name!r} measures modules, and nothing here answers for it")
        content, lowered = Payload.of(model, kept).to_bytes(), None
        if lower:
            lowered = modules.lower(spec.name, content)
            content = lowered.content
        judged = modules.judge(spec.name, content)
        forms[spec.name] = ModuleArtefact(
            content=content,
            parity=judged.parity,
            score=judged.score,
            precision=spec.precision or PLAIN,
            lowered=lowered,
        )
    return forms


def shapes_module(job: Job, rig: str, model: nn.Module, groups: GroupMap, plan: PruningPlan, modules: Modules) -> bytes:
    """The module that a plan leads to, as a trial of it would ship it; weights by magnitude: for latency alone."""
    small, kept = kept_by_magnitude(model, groups, plan, align=job.align)
    content = Payload.of(small, kept).to_bytes()
    return modules.lower(rig, content).content if job.lower and len(plan) else content


def load_measured(model: nn.Module, folder: Path | str, rig: str | None = None) -> nn.Module:
    """The very module that a rig measured, from a freshly built *dense* `model` and a trial's or an export's folder.

    `load_pruned` gives the pruned network in float32, as plain layers; this turns it into the rig's precision and runs
    the layers that gained by it without their zeros. `rig` may be left out where only one measured the module. Raises
    `UserError` where none did, `GroupError` or `EvaluationError` for a folder of another network.
    """
    folder = Path(folder)
    small = load_pruned(model, folder)
    try:
        forms = module_forms(json.loads(read_bounded(folder / PLAN_FILE, PLAN_BYTES)))
        known = ", ".join(forms) or "none: load_pruned gives the pruned network"
        if rig is None and len(forms) != 1:
            raise UserError(f"{folder}: say which rig's module to load, those that measured it are {known}")
        name = rig or next(iter(forms))
        if name not in forms:
            raise UserError(f"{folder}: rig {name!r} did not measure this module, those that did are {known}")
        choices, precision = dict(forms[name]["lowering"]), str(forms[name]["precision"])
        require_precision(precision)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / PLAN_FILE} is damaged: its modules: {error}") from None
    lean = rewritten_module(small, choices, precision)
    return prepared_module(lean, precision, channels_last=name == "cuda")


def plan_entry(forms: Mapping[str, Artefact | ModuleArtefact]) -> dict[str, Any]:
    """What plan.json says of the modules measured: nothing where there are none."""
    entry = {rig: form.to_dict() for rig, form in forms.items() if isinstance(form, ModuleArtefact)}
    return {"modules": entry} if entry else {}


def accuracy_notes(forms: Mapping[str, Artefact | ModuleArtefact], deciding: str) -> tuple[str, ...]:
    """The accuracy of a form that is shipped too and answers otherwise than the one that decides."""
    decided = forms[deciding].score.value
    return tuple(
        f"accuracy in the form that {rig} measures: {form.score.value:.4f}, on {deciding} {decided:.4f}"
        for rig, form in forms.items()
        if form.score.value != decided
    )
