"""A run goes on with a rig that it did not have: the dense network and the trials whose files are kept are measured.

Nothing is trained. A record is added to, trial by trial, so that a kill in between costs one measurement; what cannot
be measured (its files are gone, its network fails a check there) stays as it is, and is passed over by `on_rigs`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from admm.compact import PLAN_FILE, WEIGHTS_FILE, load_pruned, read_kept
from admm.errors import PruneError
from evaluators.errors import EvaluationError
from evaluators.rig import measures_modules
from search.atomic import json_text, write_atomic
from search.bench import Prepared, dense_forms, local_measure, local_modules
from search.errors import UserError
from search.job import Job, RigSpec
from search.module_artefact import plan_entry, ship_forms
from search.objective_names import SIZE
from search.on_rigs import judged_on, listed, measured_on, seen_by
from search.payload import Payload, module_forms
from search.profile import Profile
from search.result import Baseline, TrialResult
from search.store import MODEL_NAME, RunStore, StoreError
from search.tasks.dense import build_model
from search.trial import Bench


def catch_up(store: RunStore, job: Job, prepared: Prepared, profile: Profile, say: Callable[[str], None]) -> Baseline:
    """The dense network and all complete trials on all rigs of the job, for the holder of the driver's lock.

    `prepared.model` holds the dense weights. From here on the store's results are as the job sees them. Raises
    `UserError` where the dense network cannot be measured.
    """
    baseline = _dense(store, job, prepared, say)
    lacking = {n: r for n, r in store.results().items() if r.status == "complete" and _lacks(job, r)}
    kept = {n: r for n, r in lacking.items() if _is_kept(store.trial_dir(n))}
    if kept:
        missing = [spec for spec in job.rigs if any(not measured_on(r.measurements, spec) for r in kept.values())]
        what = f"on {', '.join(map(judged_on, missing))}" if missing else "for the sizes of their files"
        say(f"looking at {len(kept)} finished trial{'s' if len(kept) > 1 else ''} {what}; nothing is trained")
        bench = _bench(store, job, prepared, profile, baseline)
        for number, result in kept.items():
            try:
                store.amend(_completed(bench, store.trial_dir(number), result))
            except StoreError:
                raise
            except (EvaluationError, PruneError, UserError, OSError, ValueError, KeyError, TypeError) as error:
                say(f"trial {number} was not measured: {error}")
    store.see_through(partial(seen_by, job))
    if gone := sorted((set(lacking) - set(kept)) & set(store.unseen())):
        say(f"trial{'s' if len(gone) > 1 else ''} {listed(gone)}: passed over, for the networks are not kept")
    return baseline


def _lacks(job: Job, result: TrialResult) -> bool:
    """Whether the record, which names the rigs it was measured on, does not tell all that the job asks."""
    if not result.measurements:
        return False
    unsized = SIZE in job.search.objectives and job.deciding_rig.name not in result.sizes
    return unsized or any(not measured_on(result.measurements, spec) for spec in job.rigs)


def _is_kept(folder: Path) -> bool:
    return (folder / WEIGHTS_FILE).exists() and (folder / PLAN_FILE).exists()


def _bench(store: RunStore, job: Job, prepared: Prepared, profile: Profile, baseline: Baseline) -> Bench:
    modules, forms = local_modules(job, prepared.task), dense_forms(store, job)
    return Bench(
        job=job,
        task=prepared.task,
        dense=prepared.model,
        profile=profile,
        baseline=baseline,
        file=forms.file,
        measure=local_measure(job, forms, modules),
        modules=modules,
        device=torch.device("cpu"),
    )


def _dense(store: RunStore, job: Job, prepared: Prepared, say: Callable[[str], None]) -> Baseline:
    """The dense network's record with the figures of every rig of the job, the deciding one's on top."""
    before = store.read_baseline()
    missing = [spec for spec in job.rigs if not measured_on(before.measurements, spec)]
    decided = [name for name, of in before.measurements.items() if of.get("latency_ms") == before.latency_ms]
    accuracies = dict.fromkeys(decided[:1], before.accuracy) | dict(before.accuracies)
    measurements = dict(before.measurements)
    if missing:
        say(f"measuring the dense network on {', '.join(map(judged_on, missing))}")
        modules = local_modules(job, prepared.task)
        accuracies |= _dense_accuracies(store, job, prepared, missing, accuracies)
        forms = dense_forms(store, job)
        measure = local_measure(job, forms, modules)
        measurements |= {spec.name: measure(spec.name, forms.of(spec.name)).to_dict() for spec in missing}
    rig = job.deciding_rig.name
    size = before.size_bytes
    if missing or (SIZE in job.search.objectives and (size is None or rig not in decided[:1])):
        size = len(dense_forms(store, job).of(rig))
    baseline = replace(
        before,
        accuracy=accuracies.get(rig, before.accuracy),
        latency_ms=float(measurements[rig]["latency_ms"]),
        measurements=measurements,
        accuracies=accuracies if missing else before.accuracies,
        size_bytes=size,
    )
    if baseline != before:
        store.write_baseline(baseline)
    return baseline


def _dense_accuracies(
    store: RunStore, job: Job, prepared: Prepared, missing: Sequence[RigSpec], known: dict[str, float]
) -> dict[str, float]:
    """Of the dense network in the forms of these rigs; its ONNX file is made where there is none yet."""
    found: dict[str, float] = {}
    path = store.baseline_dir / MODEL_NAME
    for spec in missing:
        alike = [a for name, a in known.items() if measures_modules(name) == measures_modules(spec.name)]
        if alike and (measures_modules(spec.name) or path.exists()):
            found[spec.name] = known.get(spec.name, alike[0])
            continue
        with TemporaryDirectory(dir=store.baseline_dir) as folder:
            made = Path(folder) / MODEL_NAME
            alone = job.model_copy(update={"rigs": (spec,)})
            forms = ship_forms(alone, prepared.task, prepared.model, {}, made, local_modules(alone, prepared.task))
            if made.exists() and not path.exists():
                os.replace(made, path)
        found[spec.name] = forms[spec.name].score.value
    return found


def _completed(bench: Bench, folder: Path, result: TrialResult) -> TrialResult:
    """The record with a measurement, an accuracy and a size for every rig of the job.

    Raises `EvaluationError` or `PruneError` for a network that fails a check, or whose files are damaged.
    """
    measurements, accuracies, sizes = dict(result.measurements), dict(result.accuracies), dict(result.sizes)
    for spec in bench.job.rigs:
        rig = spec.name
        measured = measured_on(measurements, spec)
        if measured and rig in sizes:
            continue
        of_module = measures_modules(rig)
        content, accuracy = (_module if of_module else _file)(bench, folder, result, spec)
        if not measured:
            measurements[rig] = bench.measure(rig, content).to_dict()
        if accuracy is not None:
            accuracies[rig] = accuracy
        sizes[rig] = len(content)
    return replace(result, measurements=measurements, accuracies=accuracies, sizes=sizes)


def _file(bench: Bench, folder: Path, result: TrialResult, spec: RigSpec) -> tuple[bytes, float | None]:
    """The trial's ONNX file and its accuracy; of a trial that shipped modules alone it is made from its weights."""
    path = folder / MODEL_NAME
    if path.exists():
        return path.read_bytes(), result.accuracy_on(spec.name)
    with TemporaryDirectory(dir=folder.parent / ".partial") as staged:
        made = Path(staged) / MODEL_NAME
        forms = ship_forms(
            bench.job.model_copy(update={"rigs": (spec,)}),
            bench.task,
            _network(bench, folder),
            {},
            made,
            None,
            form=partial(bench.form, precision=result.precision),
        )
        os.replace(made, path)
    return path.read_bytes(), forms[spec.name].score.value


def _module(bench: Bench, folder: Path, result: TrialResult, spec: RigSpec) -> tuple[bytes, float | None]:
    """The trial's module in this rig's form and its accuracy; what is found for the form is added to plan.json."""
    plan = json.loads((folder / PLAN_FILE).read_bytes())
    if spec.name in module_forms(plan) and spec.name in result.accuracies:
        return Payload.of_trial(folder, spec.name).to_bytes(), result.accuracies[spec.name]
    forms = ship_forms(
        bench.job.model_copy(update={"rigs": (spec,)}),
        bench.task,
        _network(bench, folder),
        read_kept(build_model(bench.task), folder),
        folder / MODEL_NAME,  # not written: no rig here takes a file
        bench.modules,
        lower=bench.job.lower,
    )
    entry = {**module_forms(plan), **plan_entry(forms).get("modules", {})}
    write_atomic(folder / PLAN_FILE, json_text({**plan, "modules": entry}))
    return forms[spec.name].content, forms[spec.name].score.value


def _network(bench: Bench, folder: Path) -> nn.Module:
    return load_pruned(build_model(bench.task), folder)
