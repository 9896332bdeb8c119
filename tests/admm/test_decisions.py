"""Control flow that depends on data: a trace follows one path, and what it says must hold on the others."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from admm.decisions import MOST, turned, turns
from admm.groups import find_groups

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Part(nn.Module):
    """A convolution of 8 channels, and code around it."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self.conv, x)


class Net(nn.Module):
    """[batch, 3, 8, 8] -> [batch, 4]: a stem, the part, a body that has nothing to do with it, a head."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.part = nn.Conv2d(3, 8, 3, padding=1), Part(forward)
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self.part(torch.relu(self.stem(x)))).mean((2, 3)))
        return scores


def skips(conv: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = conv(x) if x.mean() > 0.0 else x
    return y


def never_taken(conv: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = conv(x) if x.mean() < -1e9 else x
    return y


def by_number(conv: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = conv(x) if x.mean().item() > 0.0 else x
    return y


def spins(conv: nn.Module, x: Tensor) -> Tensor:
    for _ in range(int((x.amax() > 1e9).long()) + 1):
        x = conv(x)
    return x


def scales(conv: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = conv(x)
    return y * 2.0 if y.mean() > 0.0 else y + 1.0


def asserts(conv: nn.Module, x: Tensor) -> Tensor:
    assert torch.isfinite(x).all()
    assert not bool((x > 1e9).any())
    y: Tensor = conv(x)
    return y


def asks_nothing(conv: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = conv(torch.where(x > 0.0, x, -x))
    return y


@pytest.mark.parametrize("forward", [skips, never_taken, by_number, spins])
def test_layers_that_another_path_couples_are_named_and_the_rest_is_pruned(
    forward: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    groups = find_groups(Net(forward), X[:1])
    assert set(groups.groups) == {"body.0", "body.2"}
    assert list(groups.excluded) == ["stem", "part.conv", "head"]
    named = "the path depends on the data in module 'part' (Part), and on the other one the compacted network does not"
    assert groups.excluded["stem"].startswith(named)
    if forward is never_taken:
        assert "not seen on the way" in groups.excluded["part.conv"]
    else:
        assert groups.excluded["part.conv"].startswith(named)
    assert all("\n" not in reason for reason in groups.excluded.values())


@pytest.mark.parametrize("forward", [scales, asserts, asks_nothing])
def test_what_holds_on_every_path_is_pruned(forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
    groups = find_groups(Net(forward), X[:1])
    assert set(groups.groups) == {"stem", "part.conv", "body.0", "body.2"}
    assert list(groups.excluded) == ["head"]


def test_each_answer_and_its_place() -> None:
    assert [(t.place, t.answer, t.module) for t in turns(Net(never_taken), X)] == [(0, True, "module 'part' (Part)")]
    assert [t.answer for t in turns(Net(spins), X)] == [1]
    first, second = turns(Net(by_number), X)
    assert first.answer == -(second.answer - 1.0)
    assert turns(Net(asserts), X) == (), "an answer that ends in an error is no path"
    assert turns(Net(asks_nothing), X) == ()


def test_a_question_of_the_network_itself_and_a_value_of_its_own() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.bias.sum() > 0.0:  # no data: whatever comes in, the path is the same
                x = x * 2.0
            return super().forward(x) if x.sum() > 0.0 else x[:, :2]

    (turn,) = turns(Own(3, 2), torch.ones(1, 3))
    assert (turn.place, turn.answer, turn.module) == (0, False, "the network")
    assert turned(Own(3, 2), torch.ones(1, 3), turn).shape == (1, 2)


def test_a_long_loop_is_asked_about_a_few_times() -> None:
    class Samples(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([row * 2.0 if row.sum() > 0.0 else row for row in x])

    assert len(turns(Samples(), torch.randn(200, 3))) == MOST


def test_the_network_is_left_as_it_was() -> None:
    net = Net(skips)
    before = copy.deepcopy(net.state_dict())
    found = turns(net, X)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert type(net(X)) is Tensor
    other = turned(net, X, found[0])
    assert not torch.equal(other.as_subclass(Tensor), net(X)), "the other path was taken"


def test_code_that_takes_no_other_kind_of_tensor_is_believed_as_before() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if type(x) is not Tensor:
                raise TypeError("a plain tensor, please")
            return x * 2.0 if x.mean() > 0.0 else x

    assert turns(Picky(), X) == ()
