"""What the user asks for: the `Job`, validated, with every default. `search.job_file` reads it from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, PrivateAttr, ValidationError, model_validator
from pydantic.functional_validators import BeforeValidator

from admm.plan import N_OF_M
from evaluators.opset import DEFAULT_OPSET, LEAST_OPSET, MOST_OPSET
from search.errors import UserError
from search.job_logging import LoggingSettings
from search.job_sections import (
    PLACE,
    AdmmSettings,
    Budget,
    ComputeSettings,
    FinetuneSettings,
    LayerSelection,
    Resources,
    RigSpec,
    SearchSettings,
    Section,
    SparsityRange,
    Structure,
)
from search.objective_names import require_rigs
from search.precision import PRECISIONS, Precision
from search.spelling import clipped, suggest

if TYPE_CHECKING:
    from search.tasks.base import Task

__all__ = [
    "AdmmSettings",
    "Budget",
    "FinetuneSettings",
    "Job",
    "LayerSelection",
    "Resources",
    "RigSpec",
    "SearchSettings",
    "SparsityRange",
    "Structure",
    "locate",
    "match_layers",
]

Place: TypeAlias = tuple[str | int, ...]
"""Where a value stands in a job: `("rigs", 0, "threads")`."""


def _named_rig(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class Job(Section):
    """A whole search, as a job file describes it."""

    task: str
    """`module:function`, which returns a `search.tasks.Task`."""
    task_args: dict[str, Any] = Field(default_factory=dict)
    """Arguments for that function, by name."""
    base_dir: Annotated[str, PLACE] = "."
    """The folder that holds the user's modules; a job file's own folder unless it says otherwise."""
    structures: Annotated[tuple[Structure, ...], Field(strict=False, min_length=1)] = ("filter",)
    """What may be removed together: whole filters, input channels, columns of a convolution, single weights, or single
    weights by the pattern n:m. A layer may mix them; n:m goes with filter only."""
    layers: LayerSelection = LayerSelection()
    sparsity: SparsityRange = SparsityRange()
    rigs: Annotated[
        tuple[Annotated[RigSpec, BeforeValidator(_named_rig, json_schema_input_type=RigSpec | str)], ...],
        Field(strict=False, min_length=1),
    ] = (RigSpec(name="onnxruntime-cpu"),)
    """The first decides; the others are measured too."""
    budget: Budget | None = None
    admm: AdmmSettings = AdmmSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    compute: ComputeSettings = ComputeSettings()
    lower: bool = True
    """Whether layers are rewritten, exactly, where that turns their zeros into time on the deciding rig."""
    quantize: Literal["off", "int8", "search"] = "off"
    """`int8`: static quantisation as the last step of every trial, calibrated on training data. `search`: each plan is
    tried in fp32 or in int8, and both kinds stand on one front; a plan is trained once for the two."""
    opset: Annotated[int, Field(ge=LEAST_OPSET, le=MOST_OPSET)] = DEFAULT_OPSET
    """The ONNX operator set of every file that the run writes: lower it for a runtime that does not read this one."""
    search: SearchSettings = SearchSettings()
    resources: Resources = Resources()
    logging: LoggingSettings = LoggingSettings()
    storage: Annotated[str, Field(min_length=1), PLACE] = "runs"
    """The folder for run folders, relative to the current folder; or a URL (`s3://bucket/runs`) where copies of those
    in `runs` are kept."""

    _source: str = PrivateAttr(default="")
    _lines: dict[Place, int] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Job:
        for what, names in (("structures", self.structures), ("rigs", [rig.name for rig in self.rigs])):
            twice = [name for index, name in enumerate(names) if name in names[:index]]
            if twice:
                raise ValueError(f"{what}: {twice[0]!r} is named twice")
        mixed = [name for name in self.structures if name not in ("filter", N_OF_M)]
        if N_OF_M in self.structures and mixed:
            raise ValueError(f"structures: {N_OF_M!r} goes with 'filter' only, not with {mixed[0]!r}: leave one out")
        rigs = [rig.name for rig in self.rigs]
        try:
            require_rigs(self.search.objectives, rigs)
        except ValueError as error:
            raise ValueError(f"search.objectives: {error}") from None
        asked = None if self.budget is None else self.budget.rig
        if asked is not None and asked not in rigs:
            raise ValueError(f"budget.rig: {asked!r} is not among the rigs; {suggest(asked, rigs)}")
        return self

    def __eq__(self, other: object) -> bool:
        # What is asked for counts, not which file and line it was read from.
        return isinstance(other, Job) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]

    @property
    def folder(self) -> Path:
        """`base_dir` as an absolute path."""
        return Path(self.base_dir).resolve()

    @property
    def deciding_rig(self) -> RigSpec:
        """The rig whose latency is searched on: the first."""
        return self.rigs[0]

    def rig(self, name: str) -> RigSpec:
        """The rig of this name. Raises `KeyError` for one that the job does not have."""
        for spec in self.rigs:
            if spec.name == name:
                return spec
        raise KeyError(name)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What the files of trials may compute in."""
        meant: dict[str, tuple[Precision, ...]] = {"off": ("fp32",), "int8": ("int8",), "search": PRECISIONS}
        return meant[self.quantize]

    @property
    def align(self) -> int:
        """The block that kept counts are multiples of; raises `ValueError` while it is `auto`, see `aligned`."""
        if not isinstance(self.sparsity.align, int):
            raise ValueError("sparsity.align is auto: the device's block was not measured yet")
        return self.sparsity.align

    def aligned(self, block: int) -> Job:
        """This job with `auto` replaced by the block measured."""
        if self.sparsity.align != "auto":
            return self
        return self.model_copy(update={"sparsity": self.sparsity.model_copy(update={"align": block})})

    def place(self, key: str) -> str:
        """`examples/digits.yaml:12: rigs.0.name`: where `key` stands in the job file, for an error line."""
        place: Place = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        return locate(self._source, self._lines, place)

    def error(self, key: str, message: str) -> UserError:
        """A `UserError` about the value at `key` (such as `rigs.0.name`), with its place in the job file."""
        return UserError(f"{self.place(key)}: {message}")

    def load_task(self) -> Task:
        """The task that the job names; raises `UserError` with the place in the job file."""
        from search.shipping import arrived
        from search.tasks.base import load_task

        try:
            return load_task(self.task, self.task_args, arrived(self.folder))
        except UserError as error:
            # What is wrong with these keys is mended in the job file, anything else in the user's code.
            key, _, message = str(error).partition(": ")
            if key.partition(".")[0] in ("task", "task_args", "base_dir"):
                raise self.error(key, message) from error
            raise

    def match_layers(self, types: Mapping[str, str]) -> list[str]:
        """`match_layers` of this job's selection; errors carry the place in the job file."""
        try:
            return match_layers(self.layers, types)
        except UserError as error:
            key, _, message = str(error).partition(": ")
            raise self.error(key, message) from None

    def with_overrides(
        self,
        *,
        trials: int | None = None,
        latency_ms: float | None = None,
        speedup: float | None = None,
        seed: int | None = None,
        storage: str | None = None,
        align: int | None = None,
        rig: str | None = None,
        objectives: str | None = None,
    ) -> Job:
        """This job with what the command line says instead; None leaves a value as it is.

        A latency or speed-up replaces the budget and keeps its rig. `rig` decides from now on, and the others are
        measured after it; `objectives` are named with commas between them. Raises `UserError` naming the option.
        """
        if latency_ms is not None and speedup is not None:
            raise UserError("--latency-ms and --speedup: give one of them, not both")
        content = self.model_dump()
        search = {"trials": trials, "seed": seed}
        content["search"].update({key: value for key, value in search.items() if value is not None})
        if latency_ms is not None or speedup is not None:
            asked_on = None if self.budget is None else self.budget.rig
            content["budget"] = {"latency_ms": latency_ms, "speedup": speedup, "rig": asked_on}
        if rig is not None:
            known = {spec["name"]: spec for spec in content["rigs"]}
            if rig not in known:
                _require_rig(rig)
            own = known.get(rig, {"name": rig})
            content["rigs"] = [own, *(spec for spec in content["rigs"] if spec["name"] != rig)]
        if objectives is not None:
            content["search"]["objectives"] = [name.strip() for name in objectives.split(",")]
        if align is not None:
            content["sparsity"]["align"] = align
        if storage is not None:
            content["storage"] = str(storage)
        try:
            job = Job.model_validate(content)
        except ValidationError as error:
            from search.job_explain import explain

            place, message = explain(error, {})
            option = place[-1] if place else ""
            raise UserError(f"--{str(option).replace('_', '-')}: {message}") from None
        job._source, job._lines = self._source, self._lines
        return job

    @classmethod
    def from_yaml(cls, path: str | Path) -> Job:
        """The job in a YAML file; raises `UserError`, one line with its place in the file."""
        from search.job_file import load_job

        return load_job(Path(path))

    def to_yaml(self) -> str:
        """The job with every default written out; `load_job` reads it back to an equal one."""
        from search.job_file import dump_yaml

        return dump_yaml({**self.model_dump(mode="json"), "base_dir": str(self.folder)})


def _require_rig(name: str) -> None:
    from evaluators.rig import RigUnavailable, require_rig_name

    try:
        require_rig_name(name)
    except RigUnavailable as error:
        raise UserError(f"--rig: {error}") from None


def locate(source: str, lines: Mapping[Place, int], place: Place) -> str:
    """`source:line: a.b.0` for a value, by the line of the value or of the nearest thing around it."""
    key = ".".join(clipped(str(part)) for part in place)
    if not source:
        return key
    around = place
    while around and around not in lines:
        around = around[:-1]
    where = f"{source}:{lines[around]}" if around else source
    return f"{where}: {key}" if key else where


def match_layers(selection: LayerSelection, types: Mapping[str, str]) -> list[str]:
    """The names among `types` (layer name -> type name) that the selection takes, in the order of `types`.

    Raises `UserError` beginning with the key (`layers.include.0: ...`) for a pattern that matches nothing, and
    if no layer is left.
    """
    matched: dict[str, set[str]] = {"include": set(), "exclude": set()}
    for part, patterns in (("include", selection.include), ("exclude", selection.exclude)):
        for index, pattern in enumerate(patterns):
            by_type = pattern.startswith("type:")
            wanted = pattern.removeprefix("type:")
            names = {n for n, kind in types.items() if fnmatchcase(kind if by_type else n, wanted)}
            if not names:
                what = "layer type" if by_type else "layer"
                mend = suggest(wanted, types.values() if by_type else types)
                raise UserError(f"layers.{part}.{index}: no {what} matches {wanted!r}; {mend}")
            matched[part] |= names
    left = [
        name
        for name in types
        if (not selection.include or name in matched["include"]) and name not in matched["exclude"]
    ]
    if not left:
        raise UserError("layers: no layer is left to prune: exclude fewer")
    return left
