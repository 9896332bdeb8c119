from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from evaluators.counting import count_macs, count_params
from tests.evaluators.models import ZOO


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(3, 5), (3,), 15),
        (nn.Linear(3, 5), (7, 3), 7 * 15),
        (nn.Conv2d(3, 8, 3, padding=1), (3, 6, 6), 36 * 8 * 27),
        (nn.Conv2d(4, 8, 3, stride=2, groups=2), (4, 7, 7), 9 * 8 * 2 * 9),
        (nn.Conv1d(2, 4, 5), (2, 10), 6 * 4 * 10),
        (nn.Conv3d(2, 4, (1, 2, 3)), (2, 2, 3, 4), 2 * 2 * 2 * 4 * 12),
        (nn.ConvTranspose2d(3, 4, 3, stride=2), (3, 5, 5), 25 * 3 * 4 * 9),
        (nn.ConvTranspose2d(4, 8, 3, groups=2), (4, 5, 5), 25 * 4 * 4 * 9),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_layers_by_hand(layer: nn.Module, shape: tuple[int, ...], macs: int, batch: int) -> None:
    assert count_macs(layer, torch.randn(batch, *shape)) == macs


@pytest.mark.parametrize("name", ZOO)
def test_zoo_against_the_flop_counter_of_torch(name: str) -> None:
    factory, shape = ZOO[name]
    model, example = factory().eval(), torch.randn(1, *shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    expected = counter.get_total_flops() // 2
    assert count_macs(model, example) == expected


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.tied(self.layer(self.layer(x)))
        return output


def test_use_counts_macs_and_sharing_counts_params() -> None:
    model = Twice()
    assert count_macs(model, torch.randn(1, 4)) == 3 * 16
    assert count_params(model) == 16 + 4 + 4
    model.layer.weight.requires_grad_(False)
    assert count_params(model) == 24


@pytest.mark.parametrize("broken", [False, True])
def test_the_module_is_left_as_it_was(broken: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4)).train()
    state = torch.get_rng_state()
    run: Callable[[], int] = lambda: count_macs(model, torch.ones(1, 5 if broken else 4))  # noqa: E731
    if broken:
        with pytest.raises(RuntimeError):
            run()
    else:
        assert run() == 16
    assert all(part.training for part in model.modules())
    assert not any(part._forward_hooks for part in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
