"""The rigs of a job that measure modules: what they are asked, and what answers on the machine that has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

from evaluators import Measurement, ParityError, ParityReport, Score, evaluate, module_predictor
from evaluators.accuracy import Predict
from evaluators.errors import EvaluationError, RigError, one_line
from evaluators.lowering import LayerTimes, Lowered
from evaluators.module_lowering import TOLERANCES, lower_module, rewritten_module
from evaluators.parity import FLOOR, compare
from evaluators.rig import ModuleRig, measures_modules
from search.alignment import open_module_rig
from search.artefact import RANDOM, REAL, random_like
from search.elsewhere import machine_of
from search.errors import UserError
from search.job import Job, RigSpec
from search.payload import Payload
from search.tasks.base import PreparedTask
from search.tasks.dense import build_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A module as its rig runs it: does it say what the fp32 module says, and how well does it do?"""

    parity: ParityReport
    """Of the lowered module in the rig's precision, against the plain one in fp32 on the host."""
    score: Score
    """Validation metric of what is measured."""


class Modules(Protocol):
    """What a rig of modules is asked, here or on another machine; modules are `Payload.to_bytes()`."""

    def measure(self, rig: str, candidate: bytes, reference: bytes) -> Measurement:
        """Latency of a module, paired with the reference's."""
        ...

    def lower(self, rig: str, content: bytes) -> Lowered:
        """The module with the layers rewritten that gain by it; its `content` is a payload again."""
        ...

    def judge(self, rig: str, content: bytes) -> Judged:
        """Parity and validation score on the rig's device. Raises `ParityError`."""
        ...


def of_modules(job: Job) -> tuple[RigSpec, ...]:
    """The rigs of the job that measure modules."""
    return tuple(spec for spec in job.rigs if measures_modules(spec.name))


def of_files(job: Job) -> tuple[RigSpec, ...]:
    """The rigs of the job that measure ONNX files."""
    return tuple(spec for spec in job.rigs if not measures_modules(spec.name))


#: Asks a rig's actor: (method, rig, arguments).
Ask: TypeAlias = Callable[..., Any]


class AskedModules:
    """Asks the actors of rigs on another machine, or in another process; implements `Modules`."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def measure(self, rig: str, candidate: bytes, reference: bytes) -> Measurement:
        return Measurement.from_dict(self._ask("measure", rig, candidate, reference))

    def lower(self, rig: str, content: bytes) -> Lowered:
        said, lowered = self._ask("lower", rig, content)
        return Lowered.from_dict(said, lowered)

    def judge(self, rig: str, content: bytes) -> Judged:
        parity, score = self._ask("judge", rig, content)
        return Judged(parity=ParityReport(**parity), score=Score(**score))


class EitherModules:
    """Asks for each rig who has it: `far` for the rigs named, `near` for the others; implements `Modules`."""

    def __init__(self, far: Modules, rigs: Sequence[str], near: Modules) -> None:
        self._far, self._rigs, self._near = far, rigs, near

    def _of(self, rig: str) -> Modules:
        return self._far if rig in self._rigs else self._near

    def measure(self, rig: str, candidate: bytes, reference: bytes) -> Measurement:
        return self._of(rig).measure(rig, candidate, reference)

    def lower(self, rig: str, content: bytes) -> Lowered:
        return self._of(rig).lower(rig, content)

    def judge(self, rig: str, content: bytes) -> Judged:
        return self._of(rig).judge(rig, content)


def opened_modules(specs: Sequence[RigSpec], load: Callable[[], PreparedTask]) -> Modules:
    """Who answers for these rigs of modules, here or where `search.elsewhere` says."""
    far = {spec.name: machine for spec in specs if (machine := machine_of(spec.name)) is not None}
    near = LocalModules([spec for spec in specs if spec.name not in far], load)
    if not far:
        return near
    return EitherModules(AskedModules(next(iter(far.values())).ask), list(far), near)


class LocalModules:
    """Answers in this process, with the rigs of this machine; implements `Modules`.

    `load` gives the task whose code builds the network, and is called when the first module comes. Raises
    `RigUnavailable` for a rig that this machine lacks.
    """

    def __init__(self, specs: Sequence[RigSpec], load: Callable[[], PreparedTask]) -> None:
        self._rigs = {spec.name: (open_module_rig(spec), spec.batch) for spec in specs if measures_modules(spec.name)}
        self._times = {name: LayerTimes() for name in self._rigs}
        self._load = load
        self._task: PreparedTask | None = None
        self._dense: nn.Module | None = None

    def measure(self, rig: str, candidate: bytes, reference: bytes) -> Measurement:
        opened, batch = self._open(rig)
        example = random_like(self._prepared().example_input, 1)
        forms = [self._measured(opened, Payload.from_bytes(content)) for content in (candidate, reference)]
        return opened.measure_modules(forms[0], forms[1], example, batch=batch)

    def lower(self, rig: str, content: bytes) -> Lowered:
        opened, batch = self._open(rig)
        payload = Payload.from_bytes(content)
        example = random_like(self._prepared().example_input, 1)
        done = lower_module(self._plain(payload), opened, example, batch=batch, known=self._times[rig])
        changed = bool(done.choices)
        if changed:
            content = replace(payload, choices=done.choices).to_bytes()
        return Lowered(content=content, layers=done.layers, speedup=done.speedup, changed=changed)

    def judge(self, rig: str, content: bytes) -> Judged:
        opened, _ = self._open(rig)
        task, payload = self._prepared(), Payload.from_bytes(content)
        predict = self.predictor(rig, payload)
        real, _ = next(iter(task.val_batches()))
        inputs = [random_like(task.example_input, RANDOM), real[:REAL]]
        plain = module_predictor(self._plain(payload))
        parity = compare(plain, predict, inputs, TOLERANCES[opened.precision], FLOOR)
        if not parity.ok:
            raise ParityError(replace(parity, reason=f"{rig} in {opened.precision}: {parity.reason}"))
        return Judged(parity=parity, score=evaluate(predict, task.val_batches(), task.task.metric))

    def test(self, rig: str, content: bytes) -> Score:
        """The metric on the test data. Raises `UserError` for a task without them."""
        task = self._prepared()
        if task.test_source is None:
            raise UserError(f"task {task.task.name!r} gives no test data on the rig's machine")
        return evaluate(self.predictor(rig, Payload.from_bytes(content)), task.test_source.batches(), task.task.metric)

    def predictor(self, rig: str, payload: Payload) -> Predict:
        """What the module answers as its rig runs it; its errors are `RigError`s."""
        opened, _ = self._open(rig)
        predict = opened.predictor(self._measured(opened, payload))

        def told(batch: Tensor) -> Tensor:
            try:
                return predict(batch)
            except EvaluationError:
                raise
            except (RuntimeError, TypeError) as error:
                raise RigError(f"the module cannot be run on {rig}: {one_line(error)}") from error

        return told

    def _open(self, rig: str) -> tuple[ModuleRig, int]:
        if rig not in self._rigs:
            raise RigError(f"rig {rig!r} is none of this job's rigs of modules: {', '.join(self._rigs) or 'none'}")
        return self._rigs[rig]

    def _prepared(self) -> PreparedTask:
        if self._task is None:
            self._task = self._load()
        return self._task

    def _plain(self, payload: Payload) -> nn.Module:
        if self._dense is None:
            self._dense = build_model(self._prepared())
        return payload.module(self._dense)

    def _measured(self, rig: ModuleRig, payload: Payload) -> nn.Module:
        return rewritten_module(self._plain(payload), payload.choices, rig.precision)
