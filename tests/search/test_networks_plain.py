"""VGG-16, AlexNet and C3D: the sizes the papers state, the shapes they give, the groups that can be pruned."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn

from admm.groups import find_groups
from search.tasks.networks import CIFAR_INPUT
from search.tasks.networks_plain import C3D, IMAGENET_INPUT, VGG16, VGG16_WIDTHS, VIDEO_INPUT, AlexNet

#: Han et al. 2015 (arXiv 1506.02626, table 4): 35K, 307K, 885K, 663K, 442K, 38M, 17M, 4M; 61M in all.
CAFFENET = {
    "conv1": 34_848,
    "conv2": 307_200,
    "conv3": 884_736,
    "conv4": 663_552,
    "conv5": 442_368,
    "fc1": 37_748_736,
    "fc2": 16_777_216,
    "fc3": 4_096_000,
}
OUTPUT = "its filters are the network's output"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights_of(model: nn.Module) -> dict[str, int]:
    kinds = nn.Conv2d | nn.Conv3d | nn.Linear
    return {name: m.weight.numel() for name, m in model.named_modules() if isinstance(m, kinds)}


def meta_alexnet(grouped: bool) -> AlexNet:
    with torch.device("meta"):
        return AlexNet(grouped=grouped)


def test_caffenet_has_the_papers_weights() -> None:
    assert weights_of(meta_alexnet(grouped=True)) == CAFFENET
    assert sum(CAFFENET.values()) == 60_954_656


def test_without_groups_the_three_grouped_layers_double() -> None:
    doubled = {name: 2 * CAFFENET[name] for name in ("conv2", "conv4", "conv5")}
    found = weights_of(meta_alexnet(grouped=False))
    assert found == CAFFENET | doubled
    assert sum(found.values()) == 62_367_776


@pytest.mark.parametrize("grouped", [True, False])
def test_alexnet_gives_one_score_a_class(grouped: bool) -> None:
    assert meta_alexnet(grouped)(torch.empty(2, *IMAGENET_INPUT, device="meta")).shape == (2, 1000)
    model = AlexNet(7, grouped=grouped, shrink=16).eval()
    with torch.no_grad():
        scores = model(torch.randn(2, *IMAGENET_INPUT, generator=torch.Generator().manual_seed(0)))
    assert scores.shape == (2, 7)
    assert torch.isfinite(scores).all()


def test_vgg16_has_thirteen_convolutions_and_one_linear_layer() -> None:
    found = weights_of(VGG16())
    inputs = [3, *(width for stage in VGG16_WIDTHS for width in stage)]
    convolutions = [9 * a * b for a, b in pairwise(inputs)]
    assert list(found.values()) == [*convolutions, 512 * 10]
    assert len(convolutions) == 13
    # 14,728,266 parameters as published elsewhere with biases, less 4,224 of these, 8,448 of BatchNorm and 10
    assert sum(found.values()) == 14_728_266 - 4_224 - 8_448 - 10


def test_c3d_has_the_weights_it_states() -> None:
    assert sum(weights_of(C3D()).values()) == 27 * (3 * 16 + 16 * 32 + 32 * 64 + 2 * 64 * 64) + 640 == 292_240


@pytest.mark.parametrize(("model", "shape"), [(VGG16(7, shrink=8), CIFAR_INPUT), (C3D(7), VIDEO_INPUT)])
def test_gives_one_score_a_class(model: nn.Module, shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        scores = model.eval()(torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))
    assert scores.shape == (2, 7)
    assert torch.isfinite(scores).all()


def test_every_convolution_of_vgg16_is_a_group() -> None:
    groups = find_groups(VGG16(shrink=16), torch.zeros(1, *CIFAR_INPUT))
    slots = [width // 16 for stage in VGG16_WIDTHS for width in stage]
    assert [group.slots for group in groups.groups.values()] == slots
    assert groups.excluded == {"head": OUTPUT}


def test_every_convolution_of_c3d_is_a_group() -> None:
    groups = find_groups(C3D(), torch.zeros(1, *VIDEO_INPUT))
    slots = {"conv1": 16, "conv2": 32, "conv3": 64, "conv4": 64, "conv5": 64}
    assert {name: group.slots for name, group in groups.groups.items()} == slots
    assert groups.excluded == {"head": OUTPUT}


def test_alexnet_without_groups_is_prunable_all_through() -> None:
    groups = find_groups(AlexNet(7, shrink=16), torch.zeros(1, *IMAGENET_INPUT))
    slots = {"conv1": 6, "conv2": 16, "conv3": 24, "conv4": 24, "conv5": 16, "fc1": 256, "fc2": 256}
    assert {name: group.slots for name, group in groups.groups.items()} == slots
    consumer = next(m for m in groups.groups["conv5"].members if m.module == "fc1")
    assert [consumer.slot.count(slot) for slot in range(16)] == [36] * 16


def test_caffenets_grouped_convolutions_are_refused_by_name() -> None:
    groups = find_groups(AlexNet(7, grouped=True, shrink=16), torch.zeros(1, *IMAGENET_INPUT))
    assert set(groups.groups) == {"fc1", "fc2"}
    assert set(groups.excluded) == {"conv1", "conv2", "conv3", "conv4", "conv5", "fc3"}
    for name in ("conv2", "conv4", "conv5"):
        assert "is a grouped convolution (groups=2)" in groups.excluded[name]
