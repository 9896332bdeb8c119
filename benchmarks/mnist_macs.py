"""LeNet-5 on MNIST, filters and columns: which of a few MAC reductions is the largest to cost at most 0.1 points.

`Target(mac_fraction=...)` is the ONE number asked for; ADMM finds filters and columns of every layer while it trains.
Fractions are tried from the largest reduction downwards; the first whose loss against the dense network, mean over the
seeds on the 5,000 validation images, is at most 0.1 points is kept, and the test set is then read once for it. Widths
are not aligned to the device's block (align 1): this row counts MACs, and the speed-up beside it is what stock ONNX
Runtime makes of such widths.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from claim import Claim
from macs import reductions
from mnist import DATA, QUICK_EPOCHS, ROWS, SOURCE, Dense, score
from pruned import line_a_step, pruned
from rich.console import Console
from rich.table import Table
from torch import nn

from admm.compute import Compute
from admm.settings import AdmmSettings, FinetuneSettings
from admm.target import Target
from evaluators.accuracy import OnnxPredictor, evaluate
from evaluators.lowering import lower
from evaluators.measurement import Measurement
from evaluators.onnx_export import export_onnx
from evaluators.parity import LOWERED_TOLERANCE, check_parity
from evaluators.rig import LatencyRig, make_rig
from search.errors import UserError
from search.tasks.base import PreparedTask

NETWORK, STRUCTURES = "lenet-5", ("filter", "shape")
#: Kept MACs / dense MACs, the largest reduction first.
FRACTIONS = (1 / 40, 1 / 30, 1 / 20, 1 / 16, 1 / 12, 1 / 10, 1 / 8)
#: Accuracy that may be lost, of 1.
ALLOWED = 0.001
#: Schedules of the rows of single weights: nothing is tuned for this row but the fraction.
ADMM, RETRAIN = ROWS["lenet-5-most"].admm, replace(ROWS["lenet-5-most"].finetune, lr=0.02)
#: What parity is checked on beside a batch of random numbers.
PARITY_IMAGES = 256
LOWERING = (
    "filters, and the inputs of Linear layers behind a Gather, are gone from the file; columns leave a convolution "
    "where its exact rewrite is measured to gain, and are zeros in its dense kernel elsewhere"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One seed at one fraction, judged on the validation images."""

    seed: int
    reduction: float
    """Dense MACs / ideal ones: columns removed count as gone."""
    kernels: float
    """Dense MACs / those of the shrunk dense kernels: only what is physically gone counts."""
    dense_val: float
    before_prune: float
    after_prune: float
    val: float
    residual: float
    """Largest ‖W−Z‖/‖W‖ when ADMM ended."""
    epochs: float
    dense_seconds: float
    seconds: float
    widths: dict[str, str]
    """Layer -> filters x inputs x kernel of the shrunk weight, and its non-zero columns."""

    @property
    def loss(self) -> float:
        """Validation accuracy lost against the dense network."""
        return self.dense_val - self.val


@dataclass(frozen=True, slots=True)
class Networks:
    """What a trial leaves for the last look: its data, the dense network and the small one."""

    prepared: PreparedTask
    dense: nn.Module
    small: nn.Module


def run_trial(
    fraction: float,
    seed: int,
    dense: Dense,
    *,
    compute: Compute | None,
    admm: AdmmSettings,
    finetune: FinetuneSettings,
    verbose: bool,
) -> tuple[Trial, Networks, Compute]:
    """Dense training, pruning to the fraction, retraining; the test set is not looked at."""
    torch.manual_seed(seed)
    prepared, model, compute, dense_seconds = dense.get(NETWORK, seed, compute)
    started = time.process_time()

    result = pruned(
        model,
        Target(mac_fraction=fraction, structures=STRUCTURES),
        prepared,
        evaluate=score,
        admm=admm,
        finetune=finetune,
        seed=seed,
        compute=compute,
        on_step=line_a_step(time.process_time) if verbose else None,
    )
    seconds = time.process_time() - started
    accuracies = result.trace.accuracies()
    macs = reductions(model, result.model, prepared.example_input)
    trial = Trial(
        seed=seed,
        reduction=macs["ideal"],
        kernels=macs["kernels"],
        dense_val=score(prepared, model),
        before_prune=accuracies["before_prune"] or 0.0,
        after_prune=accuracies["after_prune"] or 0.0,
        val=accuracies["after_finetune"] or 0.0,
        residual=round(result.trace.primal_residual or 0.0, 4),
        epochs=result.epochs,
        dense_seconds=dense_seconds,
        seconds=seconds,
        widths={n: _width(p) for n, p in result.model.named_parameters() if p.ndim > 1},
    )
    return trial, Networks(prepared, model, result.model), compute


def _width(weight: nn.Parameter) -> str:
    columns = int((weight != 0).any(0).sum())
    return f"{' x '.join(map(str, weight.shape))}, {columns} of {weight[0].numel()} columns"


def hopeless(trials: list[Trial], seeds: int, allowed: float) -> bool:
    """Whether the seeds so far have lost more than all `seeds` together may: the others gain nothing on dense."""
    return sum(trial.loss for trial in trials) > allowed * seeds


def holds_loss(trials: list[Trial], seeds: int, allowed: float) -> bool:
    """Whether all seeds were run and their mean loss is at most `allowed`."""
    return len(trials) == seeds and statistics.fmean(trial.loss for trial in trials) <= allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class Final:
    """One seed of the fraction chosen: the test set, read once, and the clock; both of the ONNX files."""

    seed: int
    dense_test: float
    test: float
    parity: float
    """Largest difference between the small network and its ONNX file, relative to the largest output."""
    speed: Measurement


def finish(trial: Trial, networks: Networks, rig: LatencyRig, *, batch: int) -> Final:
    """Export both networks, hold the small one to parity, read the test set and measure."""
    prepared = networks.prepared
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            export_onnx(model, prepared.example_input, Path(folder) / f"{name}.onnx")
            for name, model in (("dense", networks.dense), ("small", networks.small))
        ]
        real = next(iter(prepared.val_batches()))[0][:PARITY_IMAGES]
        inputs = [real, torch.randn_like(real)]
        check_parity(networks.small, paths[1], inputs).require()
        paths[1].write_bytes(lower(paths[1], partial(rig.measure, batch=batch), batch=batch).content)
        report = check_parity(networks.small, paths[1], inputs, tolerance=LOWERED_TOLERANCE).require()
        scores = []
        for path in paths:
            batches = prepared.test_batches()
            assert batches is not None
            scores.append(evaluate(OnnxPredictor(path), batches, prepared.task.metric).value)
        speed = rig.measure(paths[1], paths[0], batch=batch)
    return Final(
        seed=trial.seed, dense_test=scores[0], test=scores[1], parity=report.max_abs / report.scale, speed=speed
    )


def main() -> int:
    """Choose on the validation images, then read the test set and the clock; the claim is the last line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the four idx files")
    parser.add_argument("--batch", type=int, default=1, help="images a call that ONNX Runtime is timed with")
    parser.add_argument("--quick", action="store_true", help="one seed, one fraction, a few images: shows that it runs")
    parser.add_argument("--record", action="store_true", help="add the figures to results/mnist_macs.json")
    parser.add_argument("--verbose", action="store_true", help="a line for each epoch")
    chosen = parser.add_argument_group("choosing on the validation images (the test set is not read)")
    chosen.add_argument("--validation-only", action="store_true")
    chosen.add_argument("--fractions", nargs="+", type=float, help=f"in place of {named(FRACTIONS)}")
    chosen.add_argument("--iterations", type=int)
    chosen.add_argument("--finetune-epochs", type=int)
    chosen.add_argument("--distillation", type=float, help="weight of the dense network's answers, 0 to 1")
    parser.add_argument("--cache", type=Path, help="keep the dense networks in this folder, and use those there")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    changed = [options.fractions, options.iterations, options.finetune_epochs, options.distillation]
    if any(option is not None for option in changed) and not options.validation_only:
        parser.error(
            "--fractions, --iterations, --finetune-epochs and --distillation are for choosing: add --validation-only"
        )
    if options.record and (options.quick or options.validation_only):
        parser.error("--record keeps figures of the full benchmark only")
    torch.set_num_threads(options.threads)
    console = Console(width=110)
    admm = replace(ADMM, iterations=options.iterations or ADMM.iterations)
    finetune = replace(RETRAIN, epochs=RETRAIN.epochs if options.finetune_epochs is None else options.finetune_epochs)
    if options.distillation is not None:
        finetune = replace(finetune, distillation_weight=options.distillation)
    if options.quick:
        admm, finetune = replace(admm, iterations=QUICK_EPOCHS), replace(finetune, epochs=QUICK_EPOCHS)
    allowed = ALLOWED if not options.quick else 1.0
    try:
        tried, kept = choose(console, options, admm=admm, finetune=finetune, allowed=allowed)
        rig = make_rig("onnxruntime-cpu")
        finals = []
        if kept is not None and not options.validation_only:
            trials = tried[kept[0]]
            finals = [finish(t, n, rig, batch=options.batch) for t, n in zip(trials, kept[1], strict=True)]
    except UserError as error:
        console.print(f"skipped: {error} ({SOURCE})", soft_wrap=True)
        return 2
    settings = {"allowed_loss": allowed, "admm": asdict(admm), "finetune": asdict(finetune)}
    report(console, tried, None if kept is None else kept[0], finals, settings, options)
    return 0


def choose(
    console: Console,
    options: argparse.Namespace,
    *,
    admm: AdmmSettings,
    finetune: FinetuneSettings,
    allowed: float,
) -> tuple[dict[float, list[Trial]], tuple[float, list[Networks]] | None]:
    """What was tried, and the smallest fraction that holds the loss with its networks; None where none does."""
    seeds, fractions = options.seeds, options.fractions or list(FRACTIONS)
    if options.quick:
        seeds, fractions = seeds[:1], [max(fractions)]
    dense = Dense(options.data, quick=options.quick, cache=options.cache)
    compute: Compute | None = None
    tried: dict[float, list[Trial]] = {}
    for fraction in sorted(fractions):
        trials: list[Trial] = []
        left: list[Networks] = []
        for seed in seeds:
            console.print(f"MACs / {1 / fraction:.3g}, seed {seed}")
            trial, networks, compute = run_trial(
                fraction, seed, dense, compute=compute, admm=admm, finetune=finetune, verbose=options.verbose
            )
            console.print(f"  loss {100 * trial.loss:+.2f} points; {asdict(trial)}", soft_wrap=True)
            trials.append(trial)
            left.append(networks)
            if hopeless(trials, len(seeds), allowed):
                break
        tried[fraction] = trials
        if holds_loss(trials, len(seeds), allowed):
            return tried, (fraction, left)
    return tried, None


def report(
    console: Console,
    tried: dict[float, list[Trial]],
    kept: float | None,
    finals: list[Final],
    settings: dict[str, Any],
    options: argparse.Namespace,
) -> None:
    """The tables and the claim."""
    offered = tuple(sorted(options.fractions or FRACTIONS))
    table = Table("MACs asked for", "seeds", "ideal, x", "dense kernels, x", "val %", "dense val %", "loss, points", "")
    for fraction, trials in tried.items():
        table.add_row(
            named([fraction]),
            str(len(trials)),
            f"{min(t.reduction for t in trials):.1f}",
            f"{min(t.kernels for t in trials):.1f}",
            _spread([t.val for t in trials]),
            _spread([t.dense_val for t in trials]),
            f"{100 * statistics.fmean(t.loss for t in trials):+.2f}",
            ("kept, whatever its loss" if options.quick else "kept") if fraction == kept else "",
        )
    console.print(table)
    console.print(verdict(tried, kept, offered, settings["allowed_loss"], quick=options.quick), soft_wrap=True)
    loss = statistics.fmean(f.dense_test - f.test for f in finals) if finals else None
    if finals:
        table = Table("seed", "test %", "dense test %", f"ONNX Runtime, x (batch {options.batch})", "ms", "dense ms")
        for final in finals:
            speed = final.speed
            table.add_row(
                str(final.seed),
                f"{100 * final.test:.2f}",
                f"{100 * final.dense_test:.2f}",
                f"{speed.speedup:.2f} ({speed.speedup_low:.2f}-{speed.speedup_high:.2f})",
                f"{speed.latency_ms:.4f}",
                f"{speed.dense_latency_ms:.4f}",
            )
        console.print(table)
        console.print(f"Latency is {finals[0].speed.stamp.clock}; {LOWERING}.", soft_wrap=True)
    best = min((t.reduction for t in tried[kept]), default=1.0) if kept is not None else 1.0
    claim = Claim(
        claim=(
            "the largest MAC reduction of LeNet-5 by filters and columns, of these fractions of its MACs "
            f"({named(offered)}), at a mean loss of at most 0.1 points on the validation images (figure 1: none of "
            "them holds; bar: the least on offer, none is published; holds: the test set agrees)"
        ),
        figure=best,
        unit="dense MACs / ideal MACs",
        bar=round(1 / max(offered), 3),
        holds=not options.quick and loss is not None and loss <= ALLOWED,
        details={
            "quick": options.quick,
            "structures": list(STRUCTURES),
            "align": 1,
            **settings,
            "fraction": kept,
            "test_loss": None if loss is None else round(loss, 5),
            "speedup": [round(f.speed.speedup, 3) for f in finals],
            "note": LOWERING,
            "final": [{**asdict(f), "speed": f.speed.to_dict()} for f in finals],
            "tried": [
                {"fraction": fraction, "trials": [{**asdict(t), "loss": round(t.loss, 5)} for t in trials]}
                for fraction, trials in tried.items()
            ],
        },
    )
    if options.record:
        claim.record("mnist_macs", packages=("torch", "torch-pruning", "numpy", "onnx", "onnxruntime"))
    print(claim.to_json())


def named(fractions: Iterable[float]) -> str:
    """Fractions as people write them."""
    return ", ".join(f"1/{1 / fraction:.3g}" for fraction in fractions)


def verdict(
    tried: Iterable[float], kept: float | None, offered: Iterable[float], allowed: float, *, quick: bool
) -> str:
    """One line: which fraction was kept, or that none was."""
    if quick:
        return "A reduced form, one fraction, kept whatever its loss: it decides nothing."
    if kept is None:
        return (
            f"None of the fractions {named(tried)} holds: each loses more than {100 * allowed:g} points on validation."
        )
    return f"{named([kept])} is the largest reduction that holds on validation, of these fractions: {named(offered)}."


def _spread(values: list[float]) -> str:
    """Mean and range in per cent."""
    return f"{100 * statistics.fmean(values):.2f} ({100 * min(values):.2f}-{100 * max(values):.2f})"


if __name__ == "__main__":
    raise SystemExit(main())
