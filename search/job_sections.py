"""The parts of a job, each a frozen group of settings with its bounds and defaults."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from search.objective_names import DEFAULT, require_objectives
from search.spelling import clipped, nearest

Structure: TypeAlias = Literal["filter", "channel", "shape", "unstructured", "n:m"]


class Section(BaseModel):
    """A part of a job: frozen, no unknown keys, no silent conversion of text into numbers."""

    # The strings under the fields are what an editor tells of them: they are part of the JSON schema.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _names_a_place(text: str | None) -> str | None:
    wrong = next((c for c in text or "" if c == "\0" or "\ud800" <= c <= "\udfff"), None)
    if wrong is not None:
        raise ValueError(f"holds the character #x{ord(wrong):04x}, which no file's name does: take it out")
    return text


#: Of a path or a URL: no NUL and no half of a pair of UTF-16, at which the operating system would stop.
PLACE = AfterValidator(_names_a_place)


class LayerSelection(Section):
    """Which layers may be pruned: name patterns (`block*.conv1`) or types (`type:Conv2d`); exclude wins."""

    include: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Empty: all prunable layers."""
    exclude: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Left whole, whatever `include` says."""


def _align(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    mend = "; did you mean 'auto'?" if isinstance(value, str) and nearest(value, ["auto"]) else ""
    got = str(value).lower() if isinstance(value, bool) else clipped(repr(value))
    raise ValueError(f"must be auto or a whole number of at least 1, got {got}{mend}")


_Align: TypeAlias = Annotated[int, Field(ge=1)] | Literal["auto"]


class SparsityRange(Section):
    """The sparsities that the search may ask for, as fractions of the dense layer."""

    min: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Never less than this of any layer or group that the search prunes: above 0 none of them stays dense."""
    max: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Never more than this of any layer or group."""
    step: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    """Distance between the sparsities tried of `shape` and `unstructured`; filters and channels go by blocks."""
    align: Annotated[int | str, BeforeValidator(_align, json_schema_input_type=_Align)] = "auto"
    """Kept counts of filters and channels are multiples of this: `auto` measures the device's block; 1 turns it off."""

    @model_validator(mode="after")
    def _ordered(self) -> SparsityRange:
        if self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: swap them")
        return self


class RigSpec(Section):
    """A rig to measure on: its name, threads and batch size."""

    name: Annotated[str, Field(min_length=1)]
    """Such as `onnxruntime-cpu`; the name alone will do where nothing else is said."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads of the runtime. On a processor one thread is timed by its own CPU time, several by wall time."""
    batch: Annotated[int, Field(ge=1)] = 1
    """Samples in one inference."""
    precision: Literal["fp32", "tf32", "fp16", "bf16"] | None = None
    """What a GPU's rig computes float32 in, or a rig of modules runs them in; None: its own choice. ONNX Runtime on a
    processor computes what the file says."""
    resource: Annotated[str | None, Field(pattern=r"^[A-Za-z]\w*$", max_length=100)] = "latency_rig"
    """On a cluster, the custom resource of the machines that may measure; rigs of one resource take turns. Without such
    a machine, and for None, it is the driver's."""


class Budget(Section):
    """What the pruned network may cost: a latency in milliseconds, or a speed-up against the dense network."""

    latency_ms: Annotated[float | None, Field(gt=0.0)] = None
    """Milliseconds, on the clock of the rig."""
    speedup: Annotated[float | None, Field(gt=1.0)] = None
    """Times as fast as the dense network on the same rig."""
    rig: str | None = None
    """None: the first rig of the job."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Budget:
        if self.latency_ms is None and self.speedup is None:
            raise ValueError("give latency_ms or speedup, or leave the budget out")
        if self.latency_ms is not None and self.speedup is not None:
            raise ValueError("give latency_ms or speedup, not both")
        return self


class AdmmSettings(Section):
    """The ADMM phase of a trial (Zhang et al. 2018, arXiv 1804.03294)."""

    iterations: Annotated[int, Field(ge=1)] = 6
    """Updates of Z and U; each follows `epochs_per_iteration` epochs of training."""
    epochs_per_iteration: Annotated[int, Field(ge=1)] = 1
    """Passes over the training data before Z and U are updated."""
    lr: Annotated[float, Field(gt=0.0)] = 0.01
    """Learning rate."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov's momentum, or AdamW."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Of SGD; AdamW has its own and leaves this aside."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    """Of the optimiser, on all that is trained."""
    rho_start: Annotated[float, Field(gt=0.0)] = 0.1
    """A multiple of the scale of the gradients, as is `rho_end`: rho rises from one to the other."""
    rho_end: Annotated[float, Field(gt=0.0)] = 10.0
    """Of the last iteration; at least `rho_start`."""
    progressive: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the iterations over which the sparsity grows to what is asked; 0 asks for all at once."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate over the whole phase; `cosine` falls to a tenth."""
    nearly_dead: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Filters and columns below this share of their layer's mean energy go at the hard prune."""
    max_grad_norm: Annotated[float | None, Field(gt=0.0)] = None
    """Gradients are clipped to this norm; null leaves them."""

    @model_validator(mode="after")
    def _rising(self) -> AdmmSettings:
        if self.rho_end < self.rho_start:
            raise ValueError(f"rho_end {self.rho_end:g} is below rho_start {self.rho_start:g}: rho must rise")
        return self


class FinetuneSettings(Section):
    """Masked retraining after the hard prune, optionally distilled from the dense network."""

    epochs: Annotated[int, Field(ge=0)] = 4
    """Epochs of retraining; 0 leaves it out."""
    lr: Annotated[float, Field(gt=0.0)] = 0.01
    """Learning rate."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov's momentum, or AdamW."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Of SGD; AdamW has its own and leaves this aside."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    """Of the optimiser, on all that is trained."""
    max_grad_norm: Annotated[float | None, Field(gt=0.0)] = None
    """Gradients are clipped to this norm; null leaves them."""
    distillation_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share of the loss that follows the dense network's soft outputs; 0 trains on the labels alone."""
    temperature: Annotated[float, Field(gt=0.0)] = 4.0
    """Of the softmax in distillation."""
    schedule: Literal["cosine", "constant", "one-cycle"] = "cosine"
    """The learning rate, step by step; `one-cycle` rises over the first tenth before it falls along the cosine."""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Decay of a moving average of the weights, which is then the result; 0 turns it off."""


class ComputeSettings(Section):
    """How training steps are computed; the default is plain float32. What pays is the machine's own: measure it."""

    autocast: Literal["off", "bf16"] = "off"
    """`bf16`: convolutions and matrix products in bfloat16; needs hardware for it."""
    channels_last: bool = False
    """The layout of images; often faster for convolutions on a CPU."""


#: No schedule is longer than so many times the job's.
LONGEST = 100.0


class SearchSettings(Section):
    """How many plans to try, and who proposes them."""

    trials: Annotated[int, Field(ge=1)] = 32
    """Trials in all. Not counted: plans over the budget by their shapes, plans trained already for the other precision,
    and the long schedule of the final front."""
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    """Which of Optuna's samplers proposes plans: TPE, NSGA-II or random."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the sampler and of the training."""
    objectives: Annotated[tuple[str, ...], Field(strict=False)] = DEFAULT
    """`accuracy`, and one or two of `latency` (on the deciding rig), `latency:RIG` (on another one of the job), `size`
    (bytes of what is shipped for the deciding rig) and `macs`."""
    early_stopping: bool = True
    """Whether trials that others dominate halfway are stopped."""
    warm_start: bool = True
    """Whether the first plans come from what is known before training: each dimension's damage to the loss, measured
    once, and the latency forecast."""
    inherit: bool = True
    """Whether trials go on from the weights of finished ones: a new plan from those of the nearest less pruned plan,
    and a plan of the front, trained once more, from its own."""
    final_stretch: Annotated[float, Field(ge=1.0, le=LONGEST)] = 2.0
    """When all trials are done, the plans of the front are trained on from their own weights until they have had so
    many times the iterations and epochs of a trial; 1 leaves it out."""
    final_trials: Annotated[int, Field(ge=1)] = 8
    """At most so many plans, spread over the front (over what keeps the budget, where there is one)."""
    remeasure: bool = True
    """Whether the final front and the dense network are measured again, in a fresh process, when all is trained."""
    keep_weights: Literal["all", "front"] = "all"
    """`front`: when a search is complete, the weights and the ONNX files of trials that nothing wants any more are
    removed. What stays of such a trial is its result, its plan and its trace."""
    study: Annotated[
        str,
        Field(pattern=r"^(sqlite|sqlite:///.+|journal:.+|(postgresql|mysql)(\+[a-z0-9]+)?://.+)$"),
        PLACE,
    ] = "sqlite"
    """`sqlite` (study.db in the run folder), a `sqlite:///` URL, `journal:PATH` for shared file systems, or the URL of
    a server: `postgresql://` or `mysql://`, with its Python driver installed."""

    @model_validator(mode="after")
    def _known_objectives(self) -> SearchSettings:
        try:
            require_objectives(self.objectives)
        except ValueError as error:
            raise ValueError(f"objectives: {error}") from None
        return self


class Resources(Section):
    """What Ray reserves for one trial, and how many run at a time."""

    cpus_per_trial: Annotated[float, Field(gt=0.0)] = 1.0
    """Processor cores; a part of one or a whole number."""
    gpus_per_trial: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs; a part of one, so that trials share it, or a whole number."""
    processes_per_trial: Annotated[int | None, Field(ge=1, le=1024)] = None
    """Processes that train one trial together, each with its part of every batch; None: one for each whole GPU of it,
    or one."""
    max_concurrent: Annotated[int | None, Field(ge=1)] = None
    """Trials at a time; null: as many as the machines hold."""

    @property
    def processes(self) -> int:
        """Processes that train one trial."""
        return self.processes_per_trial or max(1, int(self.gpus_per_trial))

    def of_a_process(self) -> dict[str, float]:
        """What Ray reserves for each process of a trial."""
        return {"CPU": self.cpus_per_trial / self.processes, "GPU": self.gpus_per_trial / self.processes}

    @model_validator(mode="after")
    def _whole_beyond_one(self) -> Resources:
        # Ray shares one device between trials, but hands out several only as whole ones.
        for name in ("cpus_per_trial", "gpus_per_trial"):
            value = getattr(self, name)
            if value > 1.0 and value != int(value):
                raise ValueError(f"{name} must be a whole number above 1, got {value:g}: try {int(value)}")
        return self

    @model_validator(mode="after")
    def _fit_the_processes(self) -> Resources:
        count = self.processes
        if count > 1 and self.gpus_per_trial not in (0.0, float(count)):
            raise ValueError(
                f"processes_per_trial {count} with gpus_per_trial {self.gpus_per_trial:g}: each process has a GPU of "
                f"its own, or none: take gpus_per_trial {count}"
            )
        share = self.cpus_per_trial / count
        if count > 1 and share > 1.0 and share != int(share):
            raise ValueError(
                f"cpus_per_trial must be a multiple of its {count} processes, got {self.cpus_per_trial:g}: try "
                f"{int(share) * count}"
            )
        return self
