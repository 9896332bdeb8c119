"""LeNet-300-100 and LeNet-5 on MNIST: the compression of the papers, with sparsities that nobody set by hand.

A row is one network and ONE number, the compression asked for; ADMM finds the per-layer sparsities while it trains
(`admm.budgeted`). Per seed: train the dense network by the task's recipe, prune, retrain, and read the test set once.
All that was chosen (schedules, and the compression of the rows without a paper's figure) was chosen on the 5,000
validation images. `compression_x` counts non-zero weights of the network that comes out, no biases.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from claim import Claim
from pruned import line_a_step, pruned
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from admm.compute import Compute, fastest_compute
from admm.settings import AdmmSettings, FinetuneSettings
from admm.target import Target
from evaluators.accuracy import evaluate, module_predictor
from search.errors import UserError
from search.tasks.base import PreparedTask, prepare
from search.tasks.dense import build_model, train_dense
from search.tasks.mnist import task
from search.weights import prunable_weights

#: Where the four idx files are looked for: the folder of the environment variable, else beside the repository.
DATA = Path(os.environ.get("PRUNEFRONT_DATA", Path(__file__).parents[2] / "shared" / "data")) / "mnist"
SOURCE = "MNIST's four idx .gz files: https://ossci-datasets.s3.amazonaws.com/mnist/"
#: CPU minutes that a seed of a row may take, dense training included: 20 on two cores.
MINUTES = 40
#: `--quick`: images and epochs of the smoke test, which shows that the row runs, not what it reaches.
QUICK_IMAGES, QUICK_EPOCHS = 2000, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is asked of one network, and what the literature has."""

    network: str
    compression_x: float
    accuracy: float
    """Mean test accuracy to reach."""
    published: str
    structures: tuple[str, ...] = ("unstructured",)
    admm: AdmmSettings
    finetune: FinetuneSettings


_ADMM = AdmmSettings(iterations=30, lr=0.02, progressive=0.6, rho_start=0.03, rho_end=3.0)
_RETRAIN = FinetuneSettings(epochs=40, lr=0.02, schedule="one-cycle", distillation_weight=0.0, weight_decay=0.0)
# Convolutions cost more an epoch, so there are fewer. Longer schedules gained next to nothing on the validation
# images, a higher rate in retraining a little.
_ADMM_5 = replace(_ADMM, iterations=20)
_RETRAIN_5 = replace(_RETRAIN, epochs=24, lr=0.06)
ROWS = {
    "lenet-300-100-22.9x": Row(
        network="lenet-300-100",
        compression_x=22.9,
        accuracy=0.984,
        published="22.9x at 98.4 % (Zhang et al., ECCV 2018)",
        admm=_ADMM,
        finetune=_RETRAIN,
    ),
    "lenet-300-100-most": Row(
        network="lenet-300-100",
        compression_x=70.0,
        accuracy=0.984,
        published="60x at 98.4 % (the largest we know of)",
        admm=_ADMM,
        finetune=_RETRAIN,
    ),
    "lenet-5-71.2x": Row(
        network="lenet-5",
        compression_x=71.2,
        accuracy=0.992,
        published="71.2x at 99.2 % (Zhang et al., ECCV 2018)",
        admm=_ADMM_5,
        finetune=_RETRAIN_5,
    ),
    "lenet-5-167x": Row(
        network="lenet-5",
        compression_x=167.0,
        accuracy=0.990,
        published="167x at 99.0 % (Ye et al. 2019, arXiv 1903.09769)",
        admm=_ADMM_5,
        finetune=_RETRAIN_5,
    ),
    "lenet-5-most": Row(
        network="lenet-5",
        compression_x=250.0,
        accuracy=0.990,
        published="246x at 99.0 % (Ye et al. 2019, arXiv 1903.09769)",
        admm=_ADMM_5,
        finetune=_RETRAIN_5,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One seed of a row."""

    seed: int
    compression_x: float
    dense_val: float
    dense_test: float
    before_prune: float
    after_prune: float
    val: float
    test: float
    epochs: float
    dense_seconds: float
    seconds: float
    kept: dict[str, int]


class Dense:
    """Trained dense networks, one a network and seed; kept in a folder where one is given."""

    def __init__(self, data: Path, *, quick: bool, cache: Path | None) -> None:
        self._data, self._quick, self._cache = data, quick, cache
        self._tasks: dict[str, Any] = {}

    def get(self, network: str, seed: int, compute: Compute | None) -> tuple[PreparedTask, nn.Module, Compute, float]:
        """(data, trained network, how to compute, CPU seconds of its training)."""
        if network not in self._tasks:
            limit, epochs = (QUICK_IMAGES, QUICK_EPOCHS) if self._quick else (None, None)
            self._tasks[network] = task(str(self._data), network=network, limit=limit, epochs=epochs)
        prepared = prepare(self._tasks[network], seed)
        model = build_model(prepared)
        batch = next(iter(prepared.train_batches(0)))
        if compute is None:
            choice = fastest_compute(model, batch, prepared.task.loss)
            print(choice.note(), flush=True)
            compute = choice.compute
        name = f"{network}-{seed}{'-quick' if self._quick else ''}.safetensors"
        path = None if self._cache is None else self._cache / name
        started = time.process_time()
        if path is not None and path.exists():
            model.load_state_dict(load_file(path))
            with safe_open(path, framework="pt") as file:
                return prepared, model, compute, float((file.metadata() or {}).get("cpu_seconds", 0.0))
        assert prepared.task.dense is not None
        train_dense(prepared, model, prepared.task.dense, forward=compute.forward)
        seconds = time.process_time() - started
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            state = {n: t.contiguous() for n, t in model.state_dict().items()}
            save_file(state, path, metadata={"cpu_seconds": str(seconds)})
        return prepared, model, compute, seconds


def score(prepared: PreparedTask, model: nn.Module, *, test: bool = False) -> float:
    """Accuracy in [0, 1] on the validation images, or on the test images."""
    batches = prepared.test_batches() if test else prepared.val_batches()
    assert batches is not None
    return evaluate(module_predictor(model), batches, prepared.task.metric).value


def run_row(
    row: Row, seed: int, dense: Dense, *, compute: Compute | None, quick: bool, read_test: bool, verbose: bool
) -> tuple[Outcome, Compute]:
    """One seed: dense training, pruning to the row's compression, and one look at the test set."""
    torch.manual_seed(seed)
    prepared, model, compute, dense_seconds = dense.get(row.network, seed, compute)
    admm, finetune = row.admm, row.finetune
    if quick:
        admm, finetune = replace(admm, iterations=QUICK_EPOCHS), replace(finetune, epochs=QUICK_EPOCHS)
    started = time.process_time()

    result = pruned(
        model,
        Target(compression_x=row.compression_x, structures=row.structures),
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
    weights = {n: int(p.count_nonzero()) for n, p in result.model.named_parameters() if p.ndim > 1}
    outcome = Outcome(
        seed=seed,
        compression_x=prunable_weights(model) / max(prunable_weights(result.model), 1),
        dense_val=score(prepared, model),
        dense_test=score(prepared, model, test=True) if read_test else float("nan"),
        before_prune=accuracies["before_prune"] or 0.0,
        after_prune=accuracies["after_prune"] or 0.0,
        val=accuracies["after_finetune"] or 0.0,
        test=score(prepared, result.model, test=True) if read_test else float("nan"),
        epochs=result.epochs,
        dense_seconds=dense_seconds,
        seconds=seconds,
        kept=weights,
    )
    return outcome, compute


def main() -> int:
    """Run the rows asked for, print a table beside the published figures, and the claim as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=sorted(ROWS), default=sorted(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of the four idx files")
    parser.add_argument("--quick", action="store_true", help="a few images and epochs: shows that it runs")
    parser.add_argument("--record", action="store_true", help="add the figures to results/mnist.json")
    parser.add_argument("--verbose", action="store_true", help="a line for each epoch")
    chosen = parser.add_argument_group("choosing on the validation images (the test set is not read)")
    chosen.add_argument("--validation-only", action="store_true")
    chosen.add_argument("--compression", type=float, help="in place of the rows' own")
    chosen.add_argument("--iterations", type=int)
    chosen.add_argument("--finetune-epochs", type=int)
    chosen.add_argument("--ema", type=float, default=0.0, help="decay of averaged weights in retraining, such as 0.99")
    chosen.add_argument("--distillation", type=float, default=0.0, help="weight of the dense network's answers, 0 to 1")
    parser.add_argument("--cache", type=Path, help="keep the dense networks in this folder, and use those there")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    choosing = options.validation_only
    changed = [options.compression, options.iterations, options.finetune_epochs, options.ema, options.distillation]
    if not choosing and any(changed):
        parser.error(
            "--compression, --iterations, --finetune-epochs, --ema and --distillation are for choosing: "
            "add --validation-only"
        )
    if options.record and (options.quick or choosing or len(set(options.seeds)) < 3):
        parser.error("--record keeps figures of the full benchmark only: three seeds, not --quick")
    torch.set_num_threads(options.threads)
    console = Console(width=110)
    dense = Dense(options.data, quick=options.quick, cache=options.cache)
    outcomes: dict[str, list[Outcome]] = {}
    computes: dict[str, Compute] = {}
    try:
        for name in options.rows:
            row = _asked(ROWS[name], options)
            for seed in options.seeds:
                console.print(f"{name}: {row.network} {row.compression_x:g}x, seed {seed}")
                outcome, computes[row.network] = run_row(
                    row,
                    seed,
                    dense,
                    compute=computes.get(row.network),
                    quick=options.quick,
                    read_test=not choosing,
                    verbose=options.verbose,
                )
                console.print(f"  {asdict(outcome)}", soft_wrap=True)
                outcomes.setdefault(name, []).append(outcome)
    except UserError as error:
        console.print(f"skipped: {error} ({SOURCE})", soft_wrap=True)
        return 2
    report(console, outcomes, options, computes)
    return 0


def _asked(row: Row, options: argparse.Namespace) -> Row:
    if options.compression:
        row = replace(row, compression_x=options.compression)
    if options.iterations:
        row = replace(row, admm=replace(row.admm, iterations=options.iterations))
    if options.finetune_epochs:
        row = replace(row, finetune=replace(row.finetune, epochs=options.finetune_epochs))
    if options.ema or options.distillation:
        wanted = replace(row.finetune, ema=options.ema, distillation_weight=options.distillation)
        row = replace(row, finetune=wanted)
    return row


def report(
    console: Console, outcomes: dict[str, list[Outcome]], options: argparse.Namespace, computes: dict[str, Compute]
) -> None:
    """The table and the claim."""
    table = Table("row", "published", "ours, x", "test %", "dense %", "val %", "after prune", "CPU min a seed")
    details: dict[str, Any] = {"quick": options.quick, "compute": {n: str(c) for n, c in computes.items()}}
    holds = not options.quick
    for name, found in outcomes.items():
        row = ROWS[name]
        test = [o.test for o in found]
        minutes = max(o.seconds + o.dense_seconds for o in found) / 60
        table.add_row(
            name,
            row.published,
            f"{min(o.compression_x for o in found):.1f}",
            _spread(test),
            _spread([o.dense_test for o in found]),
            _spread([o.val for o in found]),
            _spread([o.after_prune for o in found]),
            f"{minutes:.1f}",
        )
        kept = statistics.fmean(test) >= row.accuracy and all(o.compression_x >= row.compression_x for o in found)
        kept = kept and minutes <= MINUTES
        holds = holds and kept
        details[name] = {
            "published": row.published,
            "holds": kept,
            "bar": row.accuracy,
            "test_mean": round(statistics.fmean(test), 5),
            "seeds": [asdict(o) for o in found],
        }
    console.print(table)
    claim = Claim(
        claim="the compression asked for, at the paper's accuracy or better, for each row (figure: rows that hold)",
        figure=float(sum(bool(d["holds"]) for d in details.values() if isinstance(d, dict) and "holds" in d)),
        unit="rows",
        bar=float(len(outcomes)),
        holds=holds,
        details=details,
    )
    if options.record:
        claim.record("mnist", packages=("torch", "torch-pruning", "numpy"))
    print(claim.to_json())


def _spread(values: list[float]) -> str:
    """Mean and range in per cent."""
    mean = 100 * statistics.fmean(values)
    return f"{mean:.2f} ({100 * min(values):.2f}-{100 * max(values):.2f})"


if __name__ == "__main__":
    raise SystemExit(main())
