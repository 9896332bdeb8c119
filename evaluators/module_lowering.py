"""Lowering of modules: layers run without their zeros where that is faster, each measured on the rig.

A convolution with dead columns may compute with its kept ones alone (`kept_columns`), a linear layer that obeys 2:4 by
sparse tensor cores (`semi_structured`). As in `lowering`, the fastest way of each layer is kept only where it gains,
and the whole network at the end must not be slower: dense is always one of the choices.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from evaluators.errors import EvaluationError, RigUnavailable, one_line
from evaluators.kept_columns import KeptColumnsConv2d
from evaluators.lowering import LayerTimes, LoweredLayer
from evaluators.modes import evaluating
from evaluators.module_form import KEPT_COLUMNS, PRECISIONS, TWO_OF_FOUR
from evaluators.parity import LOWERED_TOLERANCE
from evaluators.rig import ModuleRig
from evaluators.semi_structured import obeys_two_of_four, to_semi_structured

#: Fewer dead columns than this pay for no other kernel: not measured.
LEAST_DEAD = 0.1
#: Design: a form of a module on a rig of this precision against the fp32 module, as a fraction of max|y|. On another
#: device or in another kernel sums are in another order even in fp32, lowered or not.
TOLERANCES: Mapping[str, float] = {"fp32": LOWERED_TOLERANCE, "tf32": 5e-3, "fp16": 2e-2, "bf16": 2e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredModule:
    """What became of each layer of a network, and what that gained."""

    layers: tuple[LoweredLayer, ...]
    """Those with zeros that a rewrite might leave out."""
    speedup: float
    """Measured, the whole lowered network over the unlowered one; 1.0 where nothing was rewritten."""

    @property
    def choices(self) -> dict[str, str]:
        """Layer -> rewrite, without the layers that stay dense: what `rewritten_module` takes."""
        return {layer.name: layer.choice for layer in self.layers if layer.choice != "dense"}


def lower_module(
    module: nn.Module,
    rig: ModuleRig,
    example_input: Tensor,
    *,
    batch: int = 1,
    least_gain: float = 0.03,
    known: LayerTimes | None = None,
) -> LoweredModule:
    """Choose for each layer of `module` what is surely as fast on `rig`; nothing is changed.

    `example_input` [1, ...] is one sample, measured as `batch` of them; `known` layers are read and added to. A layer
    that cannot be measured alone stays dense, with the reason. Raises `RigUnavailable` where the device is gone.
    """
    times = LayerTimes() if known is None else known
    found = candidates(module, rig.rewrites)
    inputs = layer_inputs(module, example_input, tuple(found)) if found else {}
    outcomes = []
    for name, rewrite in found.items():
        x = inputs.get(name)
        if x is None or len(x) != 1:
            why = "it does not run" if x is None else f"its input of {len(x)} rows is not one sample"
            outcomes.append(_dense(name, why))
            continue
        outcomes.append(_judged(name, module.get_submodule(name), rewrite, rig, x, batch, least_gain, times))
    return _whole(module, rig, example_input, batch, outcomes)


def candidates(module: nn.Module, rewrites: tuple[str, ...]) -> dict[str, str]:
    """Layer -> the one of `rewrites` that could leave out some of its zeros; most networks have few such layers."""
    found: dict[str, str] = {}
    for name, layer in module.named_modules():
        if not name:
            continue
        if KEPT_COLUMNS in rewrites and _takes_columns(layer) and _dead_columns(layer.weight) >= LEAST_DEAD:
            found[name] = KEPT_COLUMNS
        elif TWO_OF_FOUR in rewrites and type(layer) is nn.Linear and obeys_two_of_four(layer.weight):
            found[name] = TWO_OF_FOUR
    return found


def rewritten_module(module: nn.Module, choices: Mapping[str, str], precision: str = "fp32") -> nn.Module:
    """A copy of `module` with each layer named run in its way: always the same for the same weights and choices.

    A network with 2:4 layers is on CUDA and of the precision's type afterwards, since those can be neither moved nor
    converted. Raises `EvaluationError` in one line for a layer or a way that does not fit, for `choices` may come from
    a file.
    """
    made = copy.deepcopy(module).eval().requires_grad_(False)
    sparse: list[str] = []
    layers = dict(made.named_modules())
    for name, choice in choices.items():
        layer = layers.get(name) if name else None
        if layer is None:
            raise EvaluationError(f"there is no layer {name!r} to run as {choice!r}: is this the network it is for?")
        if choice == KEPT_COLUMNS and isinstance(layer, nn.Conv2d):
            made.set_submodule(name, KeptColumnsConv2d.from_conv(layer).eval().requires_grad_(False))
        elif choice == TWO_OF_FOUR and isinstance(layer, nn.Linear):
            sparse.append(name)
        else:
            raise EvaluationError(f"layer {name!r}, a {type(layer).__name__}, cannot be run as {choice!r}")
    if not sparse:
        return made
    converted, names = to_semi_structured(made, dtype=PRECISIONS[precision][0], only=tuple(sparse))
    refused = sorted(set(sparse) - set(names))
    if refused:
        raise EvaluationError(f"layer {refused[0]!r} cannot be run as {TWO_OF_FOUR!r}: its weights or sizes do not fit")
    return converted


def layer_inputs(module: nn.Module, example_input: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """What arrives at each layer named, the first time it runs on the example."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def note(layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            if inputs:
                seen.setdefault(name, inputs[0].detach().clone())

        handles.append(module.get_submodule(name).register_forward_pre_hook(note))
    try:
        with evaluating(module):
            module(example_input)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _judged(
    name: str,
    layer: nn.Module,
    rewrite: str,
    rig: ModuleRig,
    x: Tensor,
    batch: int,
    least_gain: float,
    times: LayerTimes,
) -> LoweredLayer:
    """The layer alone, both ways, measured or looked up."""
    key = f"{_geometry(layer, x)} -> {rewrite}"
    if key not in times.speedups:
        alone = nn.Sequential(layer)
        try:
            lean = rewritten_module(alone, {"0": rewrite}, rig.precision)
            times.speedups[key] = rig.measure_modules(lean, alone, x, batch=batch).speedup
        except RigUnavailable:
            raise
        except EvaluationError as error:
            return _dense(name, f"it cannot be measured alone as {rewrite}: {one_line(error)}")
    gain = times.speedups[key]
    if not gain > 1.0 + least_gain:
        return replace(_dense(name, f"{rewrite} gains too little: {gain:.3g}x"), tried={rewrite: gain})
    return LoweredLayer(name=name, choice=rewrite, speedup=gain, tried={rewrite: gain})


def _whole(
    module: nn.Module, rig: ModuleRig, example: Tensor, batch: int, outcomes: list[LoweredLayer]
) -> LoweredModule:
    """The whole network; while it is not surely as fast, without the lesser half of its rewrites."""
    chosen = sorted((o for o in outcomes if o.choice != "dense"), key=lambda o: -o.speedup)
    undone: dict[str, str] = {}
    while chosen:
        try:
            lean = rewritten_module(module, {o.name: o.choice for o in chosen}, rig.precision)
            measured = rig.measure_modules(lean, module, example, batch=batch)
        except RigUnavailable:
            raise
        except EvaluationError as error:
            undone |= {o.name: f"undone: the whole network cannot be run with it: {one_line(error)}" for o in chosen}
            break
        if measured.speedup_low >= 1.0:
            return LoweredModule(layers=_without(outcomes, undone), speedup=measured.speedup)
        interval = f"{measured.speedup_low:.3g}x to {measured.speedup_high:.3g}x"
        for outcome in chosen[len(chosen) // 2 :]:
            undone[outcome.name] = f"undone: with it the whole network ran {interval} as fast as the unlowered one"
        chosen = chosen[: len(chosen) // 2]
    return LoweredModule(layers=_without(outcomes, undone), speedup=1.0)


def _without(outcomes: list[LoweredLayer], undone: Mapping[str, str]) -> tuple[LoweredLayer, ...]:
    return tuple(replace(_dense(o.name, undone[o.name]), tried=o.tried) if o.name in undone else o for o in outcomes)


def _dense(name: str, reason: str) -> LoweredLayer:
    return LoweredLayer(name=name, choice="dense", speedup=1.0, tried={}, reason=reason)


def _takes_columns(layer: nn.Module) -> bool:
    """A subclass may use its weight in another way."""
    return type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"


def _dead_columns(weight: Tensor) -> float:
    """Fraction of the columns of [filters, channels, kh, kw] that are zero in every filter."""
    return 1.0 - float((weight != 0).any(0).float().mean())


def _geometry(layer: nn.Module, x: Tensor) -> str:
    """All that the time of a layer depends on, but for the very places of its kept columns."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    where = f"{list(weight.shape)} on {list(x.shape)}"
    if not isinstance(layer, nn.Conv2d):
        return f"linear {where}"
    kept = int((weight != 0).any(0).sum())
    return f"conv {where} stride {layer.stride} padding {layer.padding} dilation {layer.dilation} columns {kept}"
