"""Weights taken from other trials: a plan is trained once for both precisions, and may begin where another ended."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import nn

from admm.compact import PLAN_FILE, WEIGHTS_FILE, load_pruned
from admm.errors import PruneError
from admm.inflate import inflate
from admm.kept import kept_of_json
from admm.outcome import PruneResult
from admm.plan import PruningPlan
from admm.trace import AdmmTrace
from search.result import TrialResult
from search.store import TRACE_NAME, RunStore, StoreError
from search.trial import Start, TrialSpec


def twin_of(store: RunStore, spec: TrialSpec, align: int) -> TrialResult | None:
    """The finished trial of the same plan, seed and alignment in another precision, whose weights are kept; or None."""
    if not isinstance(spec.plan, PruningPlan):
        return None
    digest = spec.plan.digest()
    known = store.results().values() if spec.twins is None else _still_there(store, spec.twins)
    for result in known:
        if (
            result.status == "complete"
            and (result.plan_digest, result.seed, result.stretch) == (digest, spec.seed, spec.stretch)
            and result.precision != spec.precision
            and _alignment(store.trial_dir(result.number)) == align
        ):
            return result
    return None


def _still_there(store: RunStore, numbers: Iterable[int]) -> Iterator[TrialResult]:
    for number in numbers:
        with contextlib.suppress(StoreError):  # damaged, or moved away since
            yield store.result(number)


def _alignment(folder: Path) -> int | None:
    """What the trial's plan was rounded to; None where its weights are gone."""
    try:
        recorded = json.loads((folder / PLAN_FILE).read_text())["align"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return recorded if isinstance(recorded, int) and (folder / WEIGHTS_FILE).exists() else None


def trained_in(store: RunStore, twin: TrialResult, dense: nn.Module) -> PruneResult | None:
    """What that trial trained, read back; None where its files cannot be read, and the plan is trained again.

    `dense` is the network before pruning: its weights are not used. No epoch is charged: the twin's record has them.
    """
    folder = store.trial_dir(twin.number)
    try:
        model = load_pruned(dense, folder)
        content = json.loads((folder / PLAN_FILE).read_text())
        return PruneResult(
            model=model,
            requested=PruningPlan(content["requested"]),
            effective=PruningPlan(content["effective"]),
            kept=kept_of_json(content["kept"], dense),
            trace=AdmmTrace.from_lines((folder / TRACE_NAME).read_text()),
            epochs=0.0,
            notes=(f"weights of trial {twin.number}, which trained this plan for {twin.precision}",),
        )
    except (PruneError, OSError, ValueError, KeyError, TypeError):
        return None


def epochs_seen(folder: Path) -> int:
    """The epochs of training data that a trial's weights have seen since the dense network; 0 where nothing says so."""
    try:
        seen = json.loads((folder / PLAN_FILE).read_text())["seen"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return seen if isinstance(seen, int) and seen >= 0 else 0


def first_weights(dense: nn.Module, start: Start | None) -> tuple[nn.Module, Start | None]:
    """(a network of the dense one's shape to be pruned, whose weights it has): a copy of `dense` where there is no
    start, or its files are gone or damaged, on which nothing depends but time."""
    if start is not None:
        try:
            return inflate(dense, start.folder), start
        except PruneError:
            pass
    return copy.deepcopy(dense), None
