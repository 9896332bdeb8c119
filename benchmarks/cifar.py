"""ResNet-20, -56, -18 and VGG-16 on CIFAR-10: the papers' MACs and compression, with sparsities nobody set by hand.

A row is one network and ONE number, MACs or compression; ADMM finds the per-layer sparsities while it trains. Per seed:
train the dense network by the task's recipe, prune, retrain, and read the test set once. The network is trained on
45,000 images, 5,000 are kept for validation (the papers train on all 50,000); no figure here was chosen on either, the
schedules are untuned. Residual networks project their shortcuts by 1x1 convolutions where the shape changes, not by the
padding of He et al., whose filters could not be grouped: so the dense accuracy stands beside every figure.

Full schedules are for a GPU, which is taken where there is one (data resident on it). Without one, give a short
schedule of your own, `--dense-epochs`, `--iterations` and `--finetune-epochs` together, which the figures then state;
or see that a row runs at all: `--quick` for ResNet-20, `--tiny --rows NAME` for any of them. Needs torch,
torch-pruning, safetensors and NumPy only: neither Ray nor ONNX.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from cifar_rows import QUICK_ROWS, ROWS, Row, Schedule, schedule_of
from claim import Claim
from macs import reductions
from pruned import line_a_step, pruned
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from admm.compute import Compute, fastest_compute
from admm.slicing import prunable_layers
from search.errors import UserError
from search.tasks.base import PreparedTask, Task, prepare
from search.tasks.cifar10 import task
from search.tasks.cifar_files import SOURCE
from search.tasks.data import Arrays
from search.tasks.dense import DenseEpoch, build_model, train_dense, validate
from search.weights import prunable_weights

#: The folder of `cifar-10-batches-py`: under the environment variable's folder, else beside the repository.
DATA = Path(os.environ.get("PRUNEFRONT_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar10"
SHORTCUT = "1x1 projections where the shape changes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One seed of a row; accuracies in [0, 1]."""

    seed: int
    compression_x: float
    macs_ideal_x: float
    macs_kernels_x: float
    dense_val: float
    dense_test: float
    before_prune: float
    after_prune: float
    val: float
    test: float
    residual: float
    epochs: float
    dense_seconds: float
    seconds: float
    kept: dict[str, list[int]]
    """Layer -> shape of the shrunk weight, then its non-zero entries."""


class Dense:
    """Trained dense networks, one a network and seed; kept in a folder where one is given."""

    def __init__(self, data: Path, device: torch.device, schedule: Schedule, cache: Path | None) -> None:
        self._data, self._device, self._schedule, self._cache = data, device, schedule, cache
        self._tasks: dict[str, Task] = {}
        self._weights: dict[tuple[str, int], dict[str, Tensor]] = {}
        self.computes: dict[str, Compute] = {}
        self.seconds: dict[tuple[str, int], float] = {}

    def get(self, network: str, seed: int, verbose: bool) -> tuple[PreparedTask, nn.Module]:
        """(data on the device, trained network there); how to compute is in `computes`, the time in `seconds`."""
        if network not in self._tasks:
            made = task(str(self._data), network=network, limit=self._schedule.limit)
            if self._schedule.dense_epochs is not None and made.dense is not None:
                made = replace(made, dense=replace(made.dense, epochs=self._schedule.dense_epochs))
            if self._schedule.batch_size is not None:
                made = replace(made, batch_size=self._schedule.batch_size)
            self._tasks[network] = resident(made, self._device)
        prepared = prepare(self._tasks[network], seed)
        model = build_model(prepared).to(self._device)
        if network not in self.computes:
            choice = fastest_compute(model, next(iter(prepared.train_batches(0))), prepared.task.loss)
            print(f"{network}: {choice.note()}", flush=True)
            self.computes[network] = choice.compute
        model.load_state_dict(self._trained(prepared, model, network, seed, verbose))
        return prepared, model

    def _trained(
        self, prepared: PreparedTask, model: nn.Module, network: str, seed: int, verbose: bool
    ) -> dict[str, Tensor]:
        known = self._weights.get((network, seed))
        path = (
            None
            if self._cache is None
            else self._cache
            / f"{network}-{seed}-{prepared.task.dense.epochs if prepared.task.dense else 0}.safetensors"
        )
        started = time.perf_counter()
        if known is None and path is not None and path.exists():
            known = load_file(path)
        if known is None:
            recipe = prepared.task.dense
            assert recipe is not None

            def tell(epoch: DenseEpoch) -> None:
                if verbose:
                    print(f"  dense {epoch.epoch}: loss {epoch.loss:.4f} accuracy {epoch.accuracy:.4f}", flush=True)

            train_dense(prepared, model, recipe, forward=self.computes[network].forward, on_epoch=tell)
            known = {n: t.detach().cpu().contiguous().clone() for n, t in model.state_dict().items()}
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file(known, path)
        self._weights[network, seed] = known
        self.seconds.setdefault((network, seed), time.perf_counter() - started)
        return known


def resident(made: Task, device: torch.device) -> Task:
    """The task with all its images on the device, so that batches are slices of one tensor there."""

    def moved(data: object) -> Arrays:
        assert isinstance(data, Arrays)
        return Arrays(data.x.to(device), data.y.to(device), augment=data.augment)

    return replace(made, train=moved(made.train), val=moved(made.val), test=moved(made.test))


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]] | None) -> float:
    """Share of right answers in evaluation mode, in float32."""
    assert batches is not None
    model.eval()
    right = samples = 0
    for inputs, targets in batches:
        right += int((model(inputs).argmax(1) == targets).sum())
        samples += len(inputs)
    return right / samples


def run_row(row: Row, seed: int, dense: Dense, schedule: Schedule, verbose: bool) -> Outcome:
    """One seed: dense training, pruning to the row's number, and one look at the test set."""
    torch.manual_seed(seed)
    prepared, model = dense.get(row.network, seed, verbose)
    started = time.perf_counter()

    result = pruned(
        model,
        row.target,
        prepared,
        evaluate=validate,
        admm=schedule.admm,
        finetune=schedule.finetune,
        seed=seed,
        compute=dense.computes[row.network],
        on_step=line_a_step(time.perf_counter) if verbose else None,
    )
    seconds = time.perf_counter() - started
    accuracies = result.trace.accuracies()
    layers = prunable_layers(result.model)
    macs = reductions(model, result.model, prepared.example_input)
    return Outcome(
        seed=seed,
        compression_x=round(prunable_weights(model) / max(prunable_weights(result.model), 1), 3),
        macs_ideal_x=macs["ideal"],
        macs_kernels_x=macs["kernels"],
        dense_val=validate(prepared, model),
        dense_test=accuracy(model, prepared.test_batches()),
        before_prune=accuracies["before_prune"] or 0.0,
        after_prune=accuracies["after_prune"] or 0.0,
        val=accuracies["after_finetune"] or 0.0,
        test=accuracy(result.model, prepared.test_batches()),
        residual=round(result.trace.primal_residual or 0.0, 4),
        epochs=result.epochs,
        dense_seconds=round(dense.seconds[row.network, seed], 1),
        seconds=round(seconds, 1),
        kept={n: [*layer.weight.shape, int(layer.weight.count_nonzero())] for n, layer in layers.items()},
    )


def main() -> int:
    """Run the rows asked for, print a table beside the published figures, and the claim as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="all of them; with --quick or --tiny ResNet-20's")
    parser.add_argument("--seeds", nargs="+", type=int, help="0 1 2; with --quick or --tiny 0")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of cifar-10-batches-py")
    parser.add_argument("--quick", action="store_true", help="a few images and epochs: shows that it runs, on any CPU")
    parser.add_argument(
        "--tiny", action="store_true", help="fewer still: any row in a minute or two, figures mean nothing"
    )
    parser.add_argument("--record", action="store_true", help="add the figures to results/cifar.json")
    parser.add_argument("--verbose", action="store_true", help="a line for each epoch")
    parser.add_argument("--cache", type=Path, help="keep the dense networks in this folder, and use those there")
    parser.add_argument("--threads", type=int, help="of the CPU; torch's own choice where it is left out")
    short = parser.add_argument_group("a short schedule, stated with the figures")
    short.add_argument("--dense-epochs", type=int)
    short.add_argument("--iterations", type=int, help="of ADMM, an epoch each")
    short.add_argument("--finetune-epochs", type=int)
    options = parser.parse_args()
    options.quick |= options.tiny
    if options.record and options.quick:
        parser.error("--record keeps figures of the full benchmark only")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    schedule = schedule_of(options, device)
    if isinstance(schedule, str):
        print(schedule, file=sys.stderr)
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # accuracies and the parity of masked and compacted are of float32
    rows = options.rows or (QUICK_ROWS if options.quick else list(ROWS))
    seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
    dense = Dense(options.data, device, schedule, options.cache)
    outcomes: dict[str, list[Outcome]] = {}
    try:
        for name in rows:
            for seed in seeds:
                row = ROWS[name]
                print(
                    f"{name}: {row.network}, {row.target.asked} by {' and '.join(row.target.structures)}, seed {seed}"
                )
                outcome = run_row(row, seed, dense, schedule, options.verbose)
                print(f"  {asdict(outcome)}", flush=True)
                outcomes.setdefault(name, []).append(outcome)
    except UserError as error:
        print(f"skipped: {error} ({SOURCE})")
        return 2
    report(outcomes, options, schedule, dense, device)
    return 0


def report(
    outcomes: dict[str, list[Outcome]],
    options: argparse.Namespace,
    schedule: Schedule,
    dense: Dense,
    device: torch.device,
) -> None:
    """The table and the claim."""
    print(f"\n{'row':<16} {'weights':>8} {'MACs':>7} {'kernels':>8}  {'test %':<20} {'dense test %':<20} published")
    details: dict[str, Any] = {
        "quick": options.quick,
        "tiny": options.tiny,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "compute": {network: str(compute) for network, compute in dense.computes.items()},
        "short_schedule": schedule.short,
        "dense_epochs": schedule.dense_epochs or "the recipe's",
        "admm": asdict(schedule.admm),
        "finetune": asdict(schedule.finetune),
        "shortcut": SHORTCUT,
    }
    kept = []
    for name, found in outcomes.items():
        row = ROWS[name]
        test, whole = [o.test for o in found], [o.dense_test for o in found]
        holds = row.holds(statistics.fmean(test), statistics.fmean(whole)) and not options.quick
        kept.append(holds)
        print(
            f"{name:<16} {min(o.compression_x for o in found):>7.1f}x {min(o.macs_ideal_x for o in found):>6.2f}x "
            f"{min(o.macs_kernels_x for o in found):>7.2f}x  {_spread(test):<20} {_spread(whole):<20} {row.published}"
        )
        details[name] = {
            "network": row.network,
            "target": row.target.to_dict(),
            "published": row.published,
            "bar": row.bar,
            "holds": holds,
            "test_mean": round(statistics.fmean(test), 5),
            "dense_test_mean": round(statistics.fmean(whole), 5),
            "seeds": [asdict(o) for o in found],
        }
    if schedule.short:
        print("A short schedule: the dense networks are not what the recipe gives, and ADMM trains them further.")
    claim = Claim(
        claim="the papers' MACs and compression on CIFAR-10 within each row's bar (figure: rows that hold)",
        figure=float(sum(kept)),
        unit="rows",
        bar=float(len(kept)),
        holds=all(kept),
        details=details,
    )
    if options.record:
        claim.record("cifar", packages=("torch", "torch-pruning", "numpy"))
    print(claim.to_json())


def _spread(values: list[float]) -> str:
    """Mean and range in per cent."""
    return f"{100 * statistics.fmean(values):.2f} ({100 * min(values):.2f}-{100 * max(values):.2f})"


if __name__ == "__main__":
    raise SystemExit(main())
