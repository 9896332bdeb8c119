"""Proof by experiment: on a copy with random weights, does the masked network equal the compacted one?

A wrong dependency graph is wrong on nearly every random input, so agreement to 1e-9 in float64 on random weights,
random input and random removals is the test that no group skips.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from admm.compact import compact, mask_removed
from admm.decisions import Turn, turned, turns
from admm.errors import GroupError, PruneError
from admm.groupmap import Group
from admm.kept import Kept
from admm.messages import one_line

#: Largest difference allowed, relative to the largest output; float64 rounding stays about 1e-13.
TOLERANCE = 1e-9
#: A removal that changes the outputs by less than this proves nothing.
VISIBLE = 1e-12


@dataclass(frozen=True, slots=True)
class Comparison:
    """Masked against compacted outputs: `reason` is None where they agree; `visible` whether removal changed them."""

    reason: str | None
    visible: bool


class Prover:
    """Holds a randomised float64 copy of a model, and compares what masking and compacting make of it.

    Raises `PruneError` when the copy does not run or gives values that are not finite.
    """

    def __init__(self, model: nn.Module, example_input: Tensor, *, seed: int = 0) -> None:
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self.model = copy.deepcopy(model).cpu().double().eval()
        self.example = example_input.detach().cpu()
        self.refresh()

    def refresh(self) -> None:
        """New random weights and a new random input (an integer example is used as it is)."""
        randomise(self.model, self.generator)
        self.input = _random_like(self.example, self.generator)
        self._turns: tuple[Turn, ...] | None = None  # looked for when first asked for
        self.dense = self._outputs(self.model)
        if not all(bool(torch.isfinite(y).all()) for y in self.dense):
            raise PruneError("with random weights its outputs are not finite: nothing can be proved")

    def compare(self, kept: Kept) -> Comparison:
        """Mask one copy, compact another, run both on the same input."""
        masked = copy.deepcopy(self.model)
        try:
            mask_removed(masked, kept)
            small = compact(self.model, kept)
        except GroupError as error:
            return Comparison(str(error), visible=False)
        try:
            expected = self._outputs(masked)
        except Exception as error:
            return Comparison(f"the masked network does not run: {one_line(error)}", visible=False)
        visible = _difference(expected, self.dense) > VISIBLE
        return Comparison(self._apart(expected, small) or self._apart_elsewhere(masked, small), visible)

    def _apart(self, expected: list[Tensor], small: nn.Module, turn: Turn | None = None) -> str | None:
        """Why the compacted network does not say what the masked one said; None where it does."""
        try:
            outputs = self._outputs(small, turn)
        except Exception as error:
            return f"the compacted network does not run: {one_line(error)}"
        if [y.shape for y in outputs] != [y.shape for y in expected]:
            return "its filters are the network's output"
        difference = _difference(outputs, expected)
        if difference == float("inf"):
            return "with its filters removed the outputs are not finite"
        if difference > TOLERANCE:
            return (
                f"masked and compacted outputs differ by {difference:.1e} of the largest one: "
                "the traced dependencies do not hold"
            )
        return None

    def _apart_elsewhere(self, masked: nn.Module, small: nn.Module) -> str | None:
        """The same on the paths that the network's code does not take on this input, but may on another."""
        if self._turns is None:
            self._turns = turns(self.model, self.input)
        for turn in self._turns:
            try:
                expected = self._outputs(masked, turn)
            except Exception:  # no path of the masked network: there is nothing to compare with
                continue
            reason = self._apart(expected, small, turn)
            if reason is not None:
                return f"the path depends on the data in {turn.module}, and on the other one {reason}"
        return None

    @torch.no_grad()
    def _outputs(self, model: nn.Module, turn: Turn | None = None) -> list[Tensor]:
        # The same seed for every run, so that a network that draws random numbers is compared fairly.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            said = model(self.input) if turn is None else turned(model, self.input, turn)
            return [y.as_subclass(Tensor).detach().double() for y in _tensors(said)]


@torch.no_grad()
def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Random weights of unit gain and random norm statistics: no zero or one is left that could hide an error."""

    def normal(like: Tensor, scale: float) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64) * scale

    def uniform(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=torch.float64) + 0.5

    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            if not value.is_floating_point():
                continue
            if value.ndim >= 2:
                fan_in = max(1, value[0].numel())
                value.copy_(normal(value, (2.0 / fan_in) ** 0.5))
            elif name == "bias":
                value.copy_(normal(value, 0.3))
            else:
                value.copy_(uniform(value))
        if isinstance(module, _NormBase):
            if module.running_mean is not None:
                module.running_mean.copy_(normal(module.running_mean, 0.3))
            if module.running_var is not None:
                module.running_var.copy_(uniform(module.running_var))


def random_slots(group: Group, generator: torch.Generator, keep: float = 0.5) -> tuple[bool, ...] | None:
    """Keep flags [slots]: about `keep` of them, at least one removed, no member empty; None where impossible."""
    flags = (torch.rand(group.slots, generator=generator) < keep).tolist()
    for member in group.members:
        if _empties(member.slot, len(set(member.index)) == member.width, flags):
            flags[member.slot[_draw(len(member.slot), generator)]] = True
    if all(flags):
        for slot in torch.randperm(group.slots, generator=generator).tolist():
            flags[slot] = False
            if not any(_empties(m.slot, len(set(m.index)) == m.width, flags) for m in group.members):
                return tuple(flags)
            flags[slot] = True
        return None
    return tuple(flags)


def _empties(slots: tuple[int, ...], whole: bool, flags: list[bool]) -> bool:
    return whole and not any(flags[slot] for slot in slots)


def _draw(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (1,), generator=generator))


def _random_like(example: Tensor, generator: torch.Generator) -> Tensor:
    if not example.is_floating_point():
        return example.clone()
    return torch.randn(example.shape, generator=generator, dtype=torch.float64)


def _tensors(outputs: object) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from _tensors(value)


def _difference(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest |a - b| over largest |b|, per output, the worst of them; infinite where anything is not finite."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape or not bool(torch.isfinite(x).all() & torch.isfinite(y).all()):
            return float("inf")
        if y.numel():
            scale = max(float(y.abs().max()), torch.finfo(torch.float64).tiny)
            worst = max(worst, float((x - y).abs().max()) / scale)
    return worst
