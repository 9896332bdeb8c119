"""Lowering of modules on a rig whose figures are known: exact, never slower, and with a reason for what stays dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from evaluators.accuracy import Predict, module_predictor
from evaluators.errors import EvaluationError, RigError, RigUnavailable
from evaluators.kept_columns import KeptColumnsConv2d
from evaluators.lowering import LayerTimes
from evaluators.measurement import DeviceStamp, Measurement
from evaluators.module_form import KEPT_COLUMNS, TWO_OF_FOUR
from evaluators.module_lowering import candidates, layer_inputs, lower_module, rewritten_module
from evaluators.parity import LOWERED_TOLERANCE, compare_modules
from evaluators.rig import ModuleRig

MEASURED = Measurement(
    latency_ms=0.5, latency_low_ms=0.45, latency_high_ms=0.55, dense_latency_ms=1.0, speedup=2.0, speedup_low=1.9,
    speedup_high=2.1, wall_p50_ms=None, wall_p95_ms=None, wall_min_ms=None, pairs=9, rejected=0, converged=True,
    seconds=0.1,
    stamp=DeviceStamp(
        rig="torch-cpu", device="Abacus 3", isa="beads", runtime="torch 1", provider="fp32, eager", threads=1, batch=1,
        clock="thread_cpu", platform="wood",
    ),
)  # fmt: skip


class Rig:
    """`alone` says how much faster a layer is without its zeros, `whole` a network with so many such layers."""

    name, precision = "torch-cpu", "fp32"
    rewrites: tuple[str, ...] = (KEPT_COLUMNS,)

    def __init__(self, alone: Callable[[int], float], whole: Callable[[int], float] = lambda layers: 1.1) -> None:
        self.alone, self.whole = alone, whole
        self.layers, self.networks = 0, 0
        self.inputs: list[tuple[int, ...]] = []

    def stamp(self, batch: int) -> DeviceStamp:
        return MEASURED.stamp

    def predictor(self, module: nn.Module) -> Predict:
        return module_predictor(module)

    def measure_modules(
        self, candidate: nn.Module, reference: nn.Module, example_input: Tensor, *, batch: int = 1
    ) -> Measurement:
        lean = sum(isinstance(module, KeptColumnsConv2d) for module in candidate.modules())
        assert not any(isinstance(module, KeptColumnsConv2d) for module in reference.modules())
        if len(list(candidate.modules())) == 2:
            self.layers += 1
            self.inputs.append((batch, *example_input.shape))
            conv = next(m for m in reference.modules() if isinstance(m, nn.Conv2d))
            ratio = self.alone(conv.out_channels)
        else:
            self.networks += 1
            ratio = self.whole(lean)
        return replace(MEASURED, speedup=ratio, speedup_low=0.99 * ratio, speedup_high=1.01 * ratio)


def columns(conv: nn.Conv2d, dead: float) -> nn.Conv2d:
    """`conv` with that share of its columns zero."""
    mask = torch.rand(conv.weight.shape[1:], generator=torch.Generator().manual_seed(conv.out_channels)) >= dead
    with torch.no_grad():
        conv.weight.mul_(mask)
    return conv


def network(dead: float = 0.8) -> nn.Module:
    """Layers of 8, 16 and 24 filters with dead columns, one dense, one grouped."""
    torch.manual_seed(0)
    return nn.Sequential(
        columns(nn.Conv2d(4, 8, 3, padding=1), dead), nn.BatchNorm2d(8), nn.ReLU(),
        columns(nn.Conv2d(8, 16, 3, padding=1), dead), nn.ReLU(),
        columns(nn.Conv2d(16, 16, 3, padding=1, groups=2), dead), nn.Conv2d(16, 16, 1),
        columns(nn.Conv2d(16, 24, 3, stride=2), dead), nn.Flatten(), nn.Linear(24 * 9, 3),
    ).eval()  # fmt: skip


X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_only_layers_whose_zeros_can_be_left_out_are_looked_at() -> None:
    assert candidates(network(), (KEPT_COLUMNS,)) == {"0": KEPT_COLUMNS, "3": KEPT_COLUMNS, "7": KEPT_COLUMNS}
    assert candidates(network(0.0), (KEPT_COLUMNS,)) == {}
    assert candidates(network(), ()) == {}

    class Standardised(nn.Conv2d):
        """Uses its weight in another way."""

    mirrored = nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect")
    odd = nn.Sequential(columns(Standardised(4, 8, 3), 0.8), columns(mirrored, 0.8))
    assert candidates(odd, (KEPT_COLUMNS,)) == {}
    linear = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    linear.get_submodule("0").weight.data.view(-1, 4)[:, :2] = 0.0  # type: ignore[union-attr, operator]
    assert candidates(linear, (KEPT_COLUMNS, TWO_OF_FOUR)) == {"0": TWO_OF_FOUR}
    assert candidates(linear, (KEPT_COLUMNS,)) == {}


def test_the_layers_that_gain_are_kept_and_measured_on_what_arrives_at_them() -> None:
    rig = Rig(alone=lambda filters: {8: 2.0, 16: 1.02, 24: 3.0}[filters], whole=lambda layers: 1.5)
    assert isinstance(rig, ModuleRig)
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = lower_module(model, rig, X, batch=5)
    assert done.choices == {"0": KEPT_COLUMNS, "7": KEPT_COLUMNS}
    assert done.speedup == 1.5
    assert [layer.name for layer in done.layers] == ["0", "3", "7"]
    assert done.layers[1].reason == "kept-columns gains too little: 1.02x"
    assert done.layers[1].tried == {KEPT_COLUMNS: 1.02}
    assert rig.inputs == [(5, 1, 4, 8, 8), (5, 1, 8, 8, 8), (5, 1, 16, 8, 8)]
    assert type(model.get_submodule("0")) is nn.Conv2d
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_is_measured_once_for_all_networks() -> None:
    rig, times = Rig(alone=lambda filters: 2.0), LayerTimes()
    lower_module(network(), rig, X, known=times)
    first = rig.layers
    lower_module(network(), rig, X, known=times)
    assert (first, rig.layers, rig.networks) == (3, 3, 2)
    lower_module(network(0.5), rig, X, known=times)
    assert rig.layers == 6


def test_a_network_that_is_not_faster_loses_its_lesser_rewrites_first() -> None:
    gains = {8: 2.0, 16: 4.0, 24: 3.0}
    rig = Rig(alone=gains.__getitem__, whole=lambda layers: 1.2 if layers == 1 else 0.9)
    done = lower_module(network(), rig, X)
    assert done.choices == {"3": KEPT_COLUMNS}
    assert done.speedup == 1.2
    by_name = {layer.name: layer for layer in done.layers}
    assert (by_name["0"].reason or "").startswith("undone: with it the whole network ran 0.891x to 0.909x as fast")
    assert by_name["0"].tried == {KEPT_COLUMNS: 2.0}
    nothing = lower_module(network(), Rig(alone=gains.__getitem__, whole=lambda layers: 1.0), X)
    assert (nothing.choices, nothing.speedup) == ({}, 1.0)


def test_what_cannot_be_measured_stays_dense_with_the_reason() -> None:
    def broken(filters: int) -> float:
        raise RigError("the module cannot be captured as a CUDA graph")

    done = lower_module(network(), Rig(alone=broken), X)
    assert done.choices == {}
    assert {layer.reason for layer in done.layers} == {
        "it cannot be measured alone as kept-columns: the module cannot be captured as a CUDA graph"
    }
    done = lower_module(network(), Rig(alone=lambda filters: 2.0, whole=broken), X)
    assert done.choices == {}
    assert all("the whole network cannot be run with it" in (layer.reason or "") for layer in done.layers)

    def gone(filters: int) -> float:
        raise RigUnavailable("no device")

    with pytest.raises(RigUnavailable):
        lower_module(network(), Rig(alone=gone), X)


def test_a_layer_that_does_not_run_or_folds_the_batch_stays_dense() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = (columns(nn.Conv2d(1, 8, 3), 0.8) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.used(x.flatten(0, 1)[:, None])
            return y.mean((1, 2, 3))

    done = lower_module(Folded(), Rig(alone=lambda filters: 2.0), X)
    assert {layer.name: layer.reason for layer in done.layers} == {
        "used": "its input of 4 rows is not one sample",
        "unused": "it does not run",
    }


def test_what_arrives_is_that_of_the_first_call() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer).train()
    x = torch.randn(1, 3)
    assert torch.equal(layer_inputs(model, x, ("0",))["0"], x)
    assert model.training
    assert not layer._forward_pre_hooks


@settings(deadline=None, max_examples=25)
@given(dead=st.floats(0.1, 1.0), seed=st.integers(0, 1000), chosen=st.sets(st.sampled_from(["0", "3", "7"])))
def test_any_choice_of_layers_is_exact(dead: float, seed: int, chosen: set[str]) -> None:
    model = network(dead)
    lean = rewritten_module(model, dict.fromkeys(sorted(chosen), KEPT_COLUMNS))
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    assert compare_modules(model, lean, [x], tolerance=LOWERED_TOLERANCE).ok
    assert {n for n, m in lean.named_modules() if isinstance(m, KeptColumnsConv2d)} == chosen


def test_the_same_choices_make_the_same_module_to_the_last_bit() -> None:
    made = [rewritten_module(network(), {"3": KEPT_COLUMNS}) for _ in range(2)]
    states = [module.state_dict() for module in made]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"nobody": KEPT_COLUMNS}, "there is no layer 'nobody' to run as 'kept-columns': is this"),
        ({"": KEPT_COLUMNS}, "there is no layer ''"),
        ({"1": KEPT_COLUMNS}, "layer '1', a BatchNorm2d, cannot be run as 'kept-columns'"),
        ({"0": "faster"}, "layer '0', a Conv2d, cannot be run as 'faster'"),
        ({"5": KEPT_COLUMNS}, "need groups=1, got 2"),
        ({"9": TWO_OF_FOUR}, "2:4 runs in float16 or bfloat16"),
    ],
)
def test_choices_that_do_not_fit_are_one_line(choices: dict[str, str], words: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        rewritten_module(network(), choices)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
