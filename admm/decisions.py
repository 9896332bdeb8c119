"""Where a network's own code asks its data for a value (`if x.mean() > 0`, `range(int(x.max()))`), and other answers.

A trace follows one path. What it says of channels must hold on the others as well, so that the proof of a group runs
them too: each value that was asked for is answered otherwise, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Answer: TypeAlias = bool | int | float
#: What turns a tensor into a number of Python's.
_ASKS = (Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.item)
#: Values that are answered otherwise; a loop over samples may ask for many more.
MOST = 12


@dataclass(frozen=True, slots=True)
class Turn:
    """One value that was asked for, and another answer to it."""

    place: int
    """Which question of a run it is, counted from 0."""
    answer: Answer
    module: str
    """The innermost module whose forward asked: `module 'gate' (Gate)`."""


@dataclass
class _Run:
    """What one run of a network asks for; `turn` is the answer that is given otherwise."""

    turn: Turn | None = None
    asked: list[tuple[Answer, str]] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)

    def answer(self, value: Any) -> Any:
        if not isinstance(value, bool | int | float):
            return value
        self.asked.append((value, self.inside[-1] if self.inside else "the network"))
        turned = self.turn is not None and self.turn.place == len(self.asked) - 1
        return self.turn.answer if turned and self.turn is not None else value


_runs: list[_Run] = []


class _Asked(Tensor):
    """A tensor that tells when its value is asked for; what is computed from it does too."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        out = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        return _runs[-1].answer(out) if _runs and func in _ASKS else out


def turned(model: nn.Module, inputs: Tensor, turn: Turn) -> Any:
    """What `model` gives where one question of its code is answered otherwise. Raises what the model raises."""
    with _running(_Run(turn=turn)):
        return model(inputs.as_subclass(_Asked))


def turns(model: nn.Module, inputs: Tensor) -> tuple[Turn, ...]:
    """Other answers to what the code of `model` asks its data for, with which it runs; none where it asks nothing.

    An answer with which it does not run (an assertion, a check for NaN) is no path of it.
    """
    run = _Run()
    handles = []
    for name, module in model.named_modules():
        label = f"module {name!r} ({type(module).__name__})" if name else "the network"
        handles.append(module.register_forward_pre_hook(lambda *_, label=label: run.inside.append(label)))
        handles.append(module.register_forward_hook(lambda *_: _leave(run)))
    try:
        with _running(run):
            model(inputs.as_subclass(_Asked))
    except Exception:  # code that takes no subclass of a tensor: nothing is known of its questions
        return ()
    finally:
        for handle in handles:
            handle.remove()
    wanted = [Turn(place, other, where) for place, (value, where) in enumerate(run.asked) for other in _others(value)]
    return tuple(turn for turn in wanted[:MOST] if _runs_with(model, inputs, turn))


def _leave(run: _Run) -> None:
    run.inside.pop()


def _others(value: Answer) -> list[Answer]:
    """Of a truth the other one, of a count one more and one less, of a number the other sign and one more."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, *([value - 1] if value > 0 else [])]
    return [-value or 1.0, value + 1.0]


def _runs_with(model: nn.Module, inputs: Tensor, turn: Turn) -> bool:
    try:
        turned(model, inputs, turn)
    except Exception:
        return False
    return True


@contextmanager
def _running(run: _Run) -> Iterator[None]:
    _runs.append(run)
    try:
        with torch.no_grad():
            yield
    finally:
        _runs.pop()
