"""What each process of `test_team.py` runs: `python -m tests.admm.team_worker RANK SIZE FOLDER`."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from admm.errors import PruneError
from admm.groups import find_groups
from admm.pipeline import PruneRun
from admm.plan import PruningPlan
from admm.settings import AdmmSettings, FinetuneSettings
from admm.team import Team
from admm.training import train_epoch
from tests.admm.toys import Tiny3d, TinyResNet, accuracy, patterns, seeded

PLANS = {
    "plain": PruningPlan({"conv1": {"filter": 0.25}, "conv2": {"filter": 0.5, "unstructured": 0.3}}),
    "norms": PruningPlan({"stem": {"filter": 0.25}, "conv1": {"filter": 0.25, "shape": 0.3}}),
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {"plain": Tiny3d, "norms": TinyResNet}
SIZES = (37, 24, 35)
"""Of the batches: parts differ by one sample."""


def data_of(name: str) -> tuple[Tensor, Tensor]:
    x, y = patterns()
    x, y = x[: sum(SIZES)], y[: sum(SIZES)]
    return (x[:, :1, :4, :4].unsqueeze(2).repeat(1, 1, 4, 1, 1), y) if name == "plain" else (x, y)


def batches(name: str) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    x, y = data_of(name)

    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(number))
        for index in order.split(SIZES):
            yield x[index], y[index]

    return epoch


def run_of(name: str, team: Team | None) -> PruneRun:
    """Distilled, clipped, with averaged weights: all that a step may do."""
    model, (x, y) = seeded(NETWORKS[name]), data_of(name)
    return PruneRun(
        copy.deepcopy(model),
        PLANS[name],
        train_batches=batches(name),
        groups=find_groups(model, x[:1]),
        evaluate=lambda m: accuracy(m, (x, y)),
        admm=AdmmSettings(iterations=3, lr=0.02, max_grad_norm=1.0),
        finetune=FinetuneSettings(epochs=2, lr=0.02, ema=0.5),
        steps_per_epoch=len(SIZES),
        team=team,
    )


def finish(run: PruneRun) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All of the state after each step, and what a result says of it."""
    tensors: dict[str, Tensor] = {}
    reports = []
    while run.phase != "done":
        report = run.step()
        reports.append([report.loss, report.accuracy])
        state, _ = run.state()
        tensors |= {f"{len(reports)}.{name}": value.clone().contiguous() for name, value in state.items()}
    kept = {layer: str(indices) for layer, indices in run.result().kept.items()}
    return tensors, {"reports": reports, "kept": kept, "epochs": run.epochs}


def said(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except PruneError as error:
        return str(error)
    return ""


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    team = Team()
    facts: dict[str, Any] = {}
    for name in PLANS:
        tensors, facts[name] = finish(run_of(name, team))
        save_file(tensors, folder / f"{name}-{rank}.safetensors")
    facts["same"] = said(lambda: team.require_same({"a": torch.ones(3), "b": torch.full((2,), float(rank))}, "now"))
    facts["first"] = team.first(lambda: 0.25 + rank)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    few = [(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))]
    loss = nn.functional.cross_entropy
    facts["few"] = said(lambda: train_epoch(model, few, loss, optimizer, phase="a test", team=team))
    (folder / f"facts-{rank}.json").write_text(json.dumps(facts))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
