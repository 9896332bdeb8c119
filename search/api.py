"""A search in ten lines of Python: what the commands do, with values given and returned. Mistakes are `UserError`s.

from search import Job, export, search
front = search(Job.from_yaml("job.yaml"))
for point in front:
    print(point.accuracy, point.latency_ms, point.plan)
export(front.best(speedup=2.0), "small")
"""

from __future__ import annotations

import contextlib
import html
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, overload

from rich.console import Console

from admm.errors import PruneError
from admm.plan import PruningPlan
from evaluators import Measurement, export_onnx, make_rig
from evaluators.errors import EvaluationError
from search.budget import Budget
from search.errors import UserError
from search.export import Exported, candidates
from search.export_command import export_from_run
from search.front import dense_result, front_results, status_line
from search.job import Job
from search.job_file import load_job
from search.objectives import Objectives
from search.on_rigs import seen_by
from search.precision import Precision
from search.result import TrialResult
from search.store import RunStore

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Columns of the table of a front, as a notebook shows it: field, head, format.
_SHOWN = (
    ("trial", "trial", ""),
    ("accuracy", "accuracy", ".4f"),
    ("accuracy_drop", "drop, pp", ".2f"),
    ("latency_ms", "latency, ms", ".4g"),
    ("speedup", "speed-up", ".2f"),
    ("compression_x", "compression", ".2f"),
)
#: What a point takes from a trial's record as it stands there.
_FIGURES = ("accuracy", "latency_ms", "speedup", "compression_x", "macs", "params", "precision")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured network of a run."""

    run: Path
    trial: int
    """-1 for the dense network."""
    accuracy: float
    """Mean of the task's metric over the validation data."""
    accuracy_drop: float
    """Dense minus this, in percentage points."""
    latency_ms: float
    speedup: float
    """Dense latency / this one's, measured in pairs on the deciding rig."""
    compression_x: float
    macs: int
    params: int
    precision: Precision
    within_budget: bool | None
    """None where the job has no budget."""
    plan: PruningPlan
    """As it was asked for; empty for the dense network."""


class Front(Sequence[Point]):
    """The points of a run that no other beats in accuracy and cost, by descending latency; as the run stands now."""

    def __init__(self, run: Path | str) -> None:
        """Open a run folder, finished or still searching. Raises `UserError`."""
        with _errors():
            store = RunStore.open(Path(run))
            job = load_job(store.job_path)
            store.see_through(partial(seen_by, job))
            baseline = store.read_baseline()
            results = store.results()
            front = front_results(baseline, results, Objectives.of(job, baseline))
        self.run = Path(run)
        self.job = job
        self._baseline, self._results = baseline, results
        self._points = tuple(self._point(result) for result in front)

    @property
    def dense(self) -> Point:
        """The network that was pruned."""
        return self._point(dense_result(self._baseline))

    @property
    def trials(self) -> str:
        """`32 trials: 20 complete, 12 infeasible`."""
        return status_line(self._results)

    def best(
        self, *, latency_ms: float | None = None, speedup: float | None = None, max_drop: float | None = None
    ) -> Point:
        """The most accurate point within `latency_ms` or `speedup`, or the fastest that drops `max_drop` at most.

        A latency counts by the cautious end of its interval, a drop in percentage points. Raises `UserError` unless
        exactly one is given, `BudgetUnreachable` where no point keeps it.
        """
        _require_one({"latency_ms": latency_ms, "speedup": speedup, "max_drop": max_drop})
        budget = None
        if max_drop is None:
            budget = Budget(latency_ms=latency_ms, speedup=speedup, rig=self.job.deciding_rig.name)
        return self._point(candidates(self._baseline, self._results, budget=budget, max_drop=max_drop)[0])

    def to_pandas(self) -> Any:
        """A `DataFrame`: the dense network, then one row a point. Raises `UserError` where pandas is not installed."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise UserError("to_pandas needs pandas, which is not installed here: pip install pandas") from None
        return pandas.DataFrame([_row(point) for point in (self.dense, *self._points)])

    @overload
    def __getitem__(self, index: int) -> Point: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Point, ...]: ...
    def __getitem__(self, index: int | slice) -> Point | tuple[Point, ...]:
        return self._points[index]

    def __len__(self) -> int:
        return len(self._points)

    def __repr__(self) -> str:
        return f"Front({str(self.run)!r}: {len(self)} points, {self.trials})"

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        heads = "".join(f"<th>{head}</th>" for _, head, _ in _SHOWN)
        rows = "".join(
            "<tr>" + "".join(f"<td>{_cell(point, name, form)}</td>" for name, _, form in _SHOWN) + "</tr>"
            for point in (self.dense, *self._points)
        )
        told = html.escape(f"{self.run}: {self.trials}")
        return f"<table><caption>{told}</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"

    def _point(self, result: TrialResult) -> Point:
        known = {name: getattr(result, name) for name in _FIGURES}
        assert None not in known.values(), "a complete trial has all of them"
        drop, budget = result.accuracy_drop, Budget.of(self.job)
        return Point(
            run=self.run,
            trial=result.number,
            accuracy_drop=100.0 * (self._baseline.accuracy - known["accuracy"]) if drop is None else drop,
            within_budget=None if budget is None else budget.holds(result),
            plan=PruningPlan(result.requested),
            **known,
        )


def search(
    job: Job | Path | str,
    *,
    storage: Path | str | None = None,
    name: str | None = None,
    trials: int | None = None,
    seconds: float | None = None,
    latency_ms: float | None = None,
    speedup: float | None = None,
    seed: int | None = None,
    address: str | None = None,
    show: bool = True,
) -> Front:
    """Search a job, its file or a begun run (its folder) to the end, or for `seconds`; returns the front.

    What is given here counts before what the job says. `address` is a Ray cluster's. Raises `UserError` for what must
    be mended, `KeyboardInterrupt` where the search was interrupted: `search(run)` goes on with it.
    """
    from search.search_command import run_or_resume

    with _errors():
        run = run_or_resume(
            job,
            name=name,
            storage=None if storage is None else str(storage),
            trials=trials,
            seconds=seconds,
            latency_ms=latency_ms,
            speedup=speedup,
            seed=seed,
            address=address,
            console=Console(highlight=False, quiet=not show),
        )
        return Front(run)


def export(
    source: Front | Point | Path | str,
    out: Path | str,
    *,
    latency_ms: float | None = None,
    speedup: float | None = None,
    max_drop: float | None = None,
    trial: int | None = None,
    int8: bool = False,
    fp16: bool = False,
    show: bool = False,
) -> Exported:
    """Write one network of a front or run folder to the new folder `out`, measured once more; a point is itself.

    Of a front or a run say exactly one of the four, as in `Front.best`, or a trial by its number. Raises `UserError`.
    """
    asked = {"latency_ms": latency_ms, "speedup": speedup, "max_drop": max_drop, "trial": trial}
    if isinstance(source, Point):
        given = [key for key, value in asked.items() if value is not None]
        if given:
            raise UserError(f"a point is exported as it is: leave out {given[0]}, or export its front")
        if source.trial < 0:
            raise UserError("the dense network lies in the run's baseline folder already: export a point of the front")
        asked["trial"] = trial = source.trial
    _require_one(asked)
    run = source if isinstance(source, Path | str) else source.run
    with _errors():
        return export_from_run(
            Path(run),
            Path(out),
            latency_ms=latency_ms,
            speedup=speedup,
            max_drop=max_drop,
            trial=trial,
            int8=int8,
            fp16=fp16,
            console=Console(highlight=False, quiet=not show),
        )


def measure(
    model: nn.Module | Path | str | bytes,
    against: nn.Module | Path | str | bytes | None = None,
    *,
    example_input: Tensor | None = None,
    rig: str = "onnxruntime-cpu",
    threads: int = 1,
    batch: int = 1,
) -> Measurement:
    """Latency of a network, in pairs with that of another (without one with itself: the A/A control).

    Each is an ONNX file, its bytes, or a module, which is exported by `example_input` [1, ...]. Raises `UserError`.
    """
    with _errors(), TemporaryDirectory() as folder:

        def file(network: nn.Module | Path | str | bytes, name: str) -> Path | bytes:
            if isinstance(network, bytes):
                return network
            if isinstance(network, Path | str):
                if not Path(network).is_file():
                    raise UserError(f"{network}: no such file: name an ONNX file")
                return Path(network)
            if example_input is None:
                raise UserError("a module is measured as an ONNX file: give an example_input of shape [1, ...]")
            return export_onnx(network, example_input, Path(folder) / name)

        first = file(model, "model.onnx")
        other = first if against is None else file(against, "against.onnx")
        return make_rig(rig, threads=threads).measure(first, other, batch=batch)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """What ends a command with one line is a `UserError` here; Ctrl-C is what it always is in Python."""
    try:
        yield
    except (PruneError, EvaluationError) as error:
        raise UserError(str(error)) from error
    except SystemExit as error:
        raise KeyboardInterrupt from error


def _require_one(asked: Mapping[str, float | None]) -> None:
    given = [key for key, value in asked.items() if value is not None]
    if len(given) != 1:
        said = " and ".join(given) or "nothing"
        raise UserError(f"say which network by exactly one of {', '.join(asked)}: got {said}")
    value = asked[given[0]]
    if value is not None and given[0] in ("latency_ms", "speedup") and not 0.0 < value < float("inf"):
        raise UserError(f"{given[0]} must be a number above 0, got {value!r}")


def _row(point: Point) -> dict[str, Any]:
    values = {field.name: getattr(point, field.name) for field in fields(point) if field.name != "run"}
    return values | {"trial": "dense" if point.trial < 0 else point.trial, "plan": point.plan.to_dict()}


def _cell(point: Point, name: str, form: str) -> str:
    value = _row(point)[name]
    return html.escape(format(value, form) if form else str(value))
