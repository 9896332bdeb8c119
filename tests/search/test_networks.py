"""The networks of the papers: the sizes the papers state, and groups that can be pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from admm.groups import find_groups
from search.tasks.networks import CIFAR_INPUT, MNIST_INPUT, LeNet5, LeNet300, resnet18, resnet20, resnet56

LENETS: list[Callable[..., nn.Module]] = [LeNet300, LeNet5]
RESNETS: list[Callable[..., nn.Module]] = [resnet20, resnet56, resnet18]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights_of(model: nn.Module) -> dict[str, int]:
    return {n: m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


@pytest.mark.parametrize(
    ("network", "weights", "layers"),
    [
        (LeNet300, 784 * 300 + 300 * 100 + 100 * 10, 3),
        (LeNet5, 20 * 25 + 50 * 20 * 25 + 800 * 500 + 500 * 10, 4),
        # 6n + 2 layers and two projections; the sizes of the option-B networks as published elsewhere, less BatchNorm
        (resnet20, 272_474 - 1_568 - 10, 20 + 2),
        (resnet56, 855_770 - 4_256 - 10, 56 + 2),
        (resnet18, 11_173_962 - 9_600 - 10, 18 + 3),
    ],
)
def test_has_the_papers_weights(network: Callable[[], nn.Module], weights: int, layers: int) -> None:
    found = weights_of(network())
    assert sum(found.values()) == weights
    assert len(found) == layers


def test_lenets_have_the_papers_totals() -> None:
    assert sum(weights_of(LeNet300()).values()) == 266_200
    assert sum(weights_of(LeNet5()).values()) == 430_500


@pytest.mark.parametrize("network", LENETS + RESNETS)
def test_gives_one_score_a_class(network: Callable[..., nn.Module]) -> None:
    model = network(classes=7).eval()
    with torch.no_grad():
        outputs = model(torch.randn(2, *(MNIST_INPUT if network in LENETS else CIFAR_INPUT)))
    assert outputs.shape == (2, 7)
    assert torch.isfinite(outputs).all()


@pytest.mark.parametrize(
    ("network", "slots"),
    [(LeNet300, {"fc1": 300, "fc2": 100}), (LeNet5, {"conv1": 20, "conv2": 50, "fc1": 500})],
)
def test_every_hidden_layer_of_a_lenet_is_a_group(network: Callable[[], nn.Module], slots: dict[str, int]) -> None:
    groups = find_groups(network(), torch.zeros(1, *MNIST_INPUT))
    assert {name: group.slots for name, group in groups.groups.items()} == slots
    assert len(groups.excluded) == 1


def test_a_flattened_channel_takes_its_sixteen_inputs_along() -> None:
    group = find_groups(LeNet5(), torch.zeros(1, *MNIST_INPUT)).groups["conv2"]
    consumer = next(m for m in group.members if m.module == "fc1")
    assert [consumer.slot.count(slot) for slot in range(50)] == [16] * 50


def test_a_stage_of_a_resnet_is_one_group_and_each_block_has_an_inner_one() -> None:
    groups = find_groups(resnet20(), torch.zeros(1, *CIFAR_INPUT))
    inner = {f"stages.{s}.{b}.conv1": 16 << s for s in range(3) for b in range(3)}
    shared = {"stem": 16, "stages.1.0.conv2": 32, "stages.2.0.conv2": 64}
    assert {name: group.slots for name, group in groups.groups.items()} == inner | shared
    assert list(groups.excluded) == ["head"]
    second = {m.module for m in groups.groups["stages.1.0.conv2"].owners}
    assert second == {f"stages.1.{b}.conv2" for b in range(3)} | {"stages.1.0.shortcut.0"}
