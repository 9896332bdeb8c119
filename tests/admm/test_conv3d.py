"""Convolutions over time and space, end to end: a small C3D on clips of moving blobs, plan in, smaller network out."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from admm.compact import SelectedInput, load_pruned, save_pruned
from admm.outcome import PruneResult
from admm.pipeline import prune
from admm.plan import PruningPlan
from admm.settings import AdmmSettings, FinetuneSettings
from tests.admm.toys import Batch, accuracy, epochs_of, trained

torch.set_num_threads(1)
FRAMES, SIZE = 8, 8


class SmallC3D(nn.Module):
    """C3D in small (Tran et al., ICCV 2015): 3x3x3 kernels, the first pooling leaves time alone, two Linear last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv3d(8, 12, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(12)
        self.conv3 = nn.Conv3d(12, 12, 3, padding=1)
        self.fc = nn.Linear(12 * 2 * 2 * 2, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool3d(torch.relu(self.conv1(x)), (1, 2, 2))
        x = nn.functional.max_pool3d(torch.relu(self.bn2(self.conv2(x))), 2)
        x = nn.functional.max_pool3d(torch.relu(self.conv3(x)), (2, 1, 1))
        return self.head(torch.relu(self.fc(x.flatten(1))))  # type: ignore[no-any-return]


def clips(samples: int, seed: int) -> Batch:
    """A blob that leaves the middle to the right, left, bottom or top: [samples, 1, frames, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (samples,), generator=generator)
    step = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])[labels]
    place = torch.randint(3, 5, (samples, 2), generator=generator)
    frame = torch.arange(FRAMES).reshape(1, -1, 1)
    path = place[:, None] + frame // 2 * step[:, None]
    grid = torch.arange(SIZE)
    rows = torch.exp(-((grid - path[..., :1]).float() ** 2) / 2)
    columns = torch.exp(-((grid - path[..., 1:]).float() ** 2) / 2)
    video = rows[..., :, None] * columns[..., None, :]
    noise = 0.2 * torch.randn(video.shape, generator=generator)
    return (video + noise).unsqueeze(1), labels


TRAIN, VALIDATION = clips(256, 1), clips(128, 2)
PLAN = PruningPlan(
    {
        "conv1": {"filter": 0.25},
        "conv2": {"filter": 0.5, "shape": 0.5},
        "conv3": {"filter": 0.25, "shape": 0.75},
        "fc": {"unstructured": 0.8},
        "head": {"channel": 0.25},
    }
)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.set_num_threads(1)
    return trained(SmallC3D, TRAIN, epochs=8)


@pytest.fixture(scope="module")
def result(dense: nn.Module) -> PruneResult:
    return prune(
        dense,
        PLAN,
        train_batches=epochs_of(TRAIN),
        example_input=TRAIN[0][:1],
        evaluate=lambda model: accuracy(model, VALIDATION),
        admm=AdmmSettings(iterations=4, lr=0.02),
        finetune=FinetuneSettings(epochs=3, lr=0.02),
        steps_per_epoch=8,
    )


def test_the_clips_are_learned(dense: nn.Module) -> None:
    assert accuracy(dense, VALIDATION) > 0.9
    still = TRAIN[0][:, :, :1].expand(-1, -1, FRAMES, -1, -1)
    assert accuracy(dense, (still, TRAIN[1])) < 0.5  # motion tells them apart, not the first frame


def test_widths_and_zeros_are_as_planned(result: PruneResult) -> None:
    shapes = {name: tuple(p.shape) for name, p in result.model.named_parameters() if name.endswith("weight")}
    assert shapes["conv1.weight"] == (6, 1, 3, 3, 3)
    assert shapes["conv2.weight"] == (6, 6, 3, 3, 3)
    assert shapes["bn2.weight"] == (6,)
    assert shapes["conv3.weight"][0] == 9
    columns = {name: _live_columns(result.model, name) for name in ("conv2", "conv3")}
    assert columns["conv2"] <= 8 * 27 // 2
    assert columns["conv3"] <= 12 * 27 // 4
    assert columns["conv2"] > 6 * 27 // 4
    assert columns["conv3"] > 6 * 27 // 8
    alive = int((result.model.get_parameter("fc.weight") != 0).sum())
    assert 200 < alive <= 231  # a fifth of 16 x (9 x 8), but for what purification found dead
    head = result.model.head
    assert (head.layer if isinstance(head, SelectedInput) else head).in_features == 12  # type: ignore[union-attr]


def _live_columns(model: nn.Module, layer: str) -> int:
    module = model.get_submodule(layer)
    weight = (module.layer if isinstance(module, SelectedInput) else module).weight
    return int(weight.detach().flatten(1).any(0).sum())  # type: ignore[union-attr, operator]


def test_the_loss_falls_and_the_small_network_is_as_good(dense: nn.Module, result: PruneResult) -> None:
    records = result.trace.records
    assert records[-1].worst[1] < records[0].worst[1]
    accuracies = result.trace.accuracies()
    assert accuracies["after_finetune"] == accuracy(result.model, VALIDATION)
    assert accuracy(result.model, VALIDATION) > accuracy(dense, VALIDATION) - 0.05
    assert _loss(result.model) < 0.5
    untrained = SmallC3D()
    assert _loss(result.model) < 0.5 * _loss(untrained)


def _loss(model: nn.Module) -> float:
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model.eval()(TRAIN[0]), TRAIN[1]))


def test_the_masked_dense_network_says_what_the_small_one_says(result: PruneResult) -> None:
    """Rebuilt from the kept indices alone: the small weights put back into the dense shapes, zeros elsewhere."""
    wide = SmallC3D().eval()
    with torch.no_grad():
        for name, module in wide.named_modules():
            if not any(True for _ in module.parameters(recurse=False)):
                continue
            small = result.model.get_submodule(name)
            small = small.layer if isinstance(small, SelectedInput) else small
            sides = result.kept.get(name, {})
            for key, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                source = getattr(small, key)
                if value.ndim == 0:
                    continue
                value.fill_(float(key == "running_var"))
                index = [torch.arange(n) for n in value.shape]
                index[0] = torch.tensor(sides.get("out", range(value.shape[0])))
                if key == "weight" and value.ndim > 1:
                    arriving = set(sides.get("in", range(value.shape[1]))) & set(
                        sides.get("select", range(value.shape[1]))
                    )
                    index[1] = torch.tensor(sorted(arriving))
                value[torch.meshgrid(*index, indexing="ij")] = source
        difference = (wide(VALIDATION[0]) - result.model(VALIDATION[0])).abs().max()
    assert float(difference) < 1e-4


def test_what_is_saved_is_loaded_into_the_dense_network(result: PruneResult, tmp_path: Path) -> None:
    save_pruned(tmp_path, result.model, result.kept, result.requested, result.effective)
    again = load_pruned(SmallC3D(), tmp_path)
    with torch.no_grad():
        assert torch.equal(again(VALIDATION[0]), result.model(VALIDATION[0]))
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in SmallC3D().parameters()) / 2


def test_single_weights_of_a_3d_kernel(dense: nn.Module) -> None:
    before = copy.deepcopy(dense.state_dict())
    plan = PruningPlan({name: {"unstructured": 0.75} for name in ("conv2", "conv3", "fc")})
    pruned = prune(
        dense,
        plan,
        train_batches=epochs_of(TRAIN),
        example_input=TRAIN[0][:1],
        admm=AdmmSettings(iterations=3, lr=0.02),
        finetune=FinetuneSettings(epochs=2, lr=0.02),
        steps_per_epoch=8,
    ).model
    for name in ("conv2", "conv3", "fc"):
        small = pruned.get_submodule(name)
        weight = (small.layer if isinstance(small, SelectedInput) else small).weight
        assert int((weight != 0).sum()) <= before[f"{name}.weight"].numel() // 4  # type: ignore[arg-type]
        assert int((weight != 0).sum()) > before[f"{name}.weight"].numel() // 5  # type: ignore[arg-type]
    assert accuracy(pruned, VALIDATION) > accuracy(dense, VALIDATION) - 0.05
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
