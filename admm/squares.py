"""Squares of the tensors that one allocation looks at, and what their rows and columns hold.

An allocation asks for the energy of rows and columns many hundred times, each time with other units gone. Those sums
are products of a matrix of squares and a vector of flags, with nothing as large as a weight written.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from admm.connections import canonical

#: Numbers that are widened to float64 at once.
PIECE = 1 << 18
#: Sums of one side of one layer that are remembered: the flags of turns that follow each other are often the same.
REMEMBERED = 4


class Squares:
    """Squares of `values` (name -> tensor); those of the weights of `modules` as [filters, channels x kernel].

    `hold` keeps each matrix for as long as this object lives (as much memory as the weights in float32); without it
    each is made anew.
    """

    def __init__(self, modules: Mapping[str, nn.Module], values: Mapping[str, Tensor], *, hold: bool) -> None:
        self._modules, self._values, self._hold = modules, values, hold
        self._matrices: dict[str, Tensor] = {}
        self._wholes: dict[str, float] = {}
        self._sums: dict[tuple[str, str], dict[bytes, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self._values.values())).device

    def whole(self, name: str) -> float:
        """||V||^2 of one tensor, summed in float64."""
        if name not in self._wholes:
            self._wholes[name] = energy(self._values[name])
        return self._wholes[name]

    def vector(self, name: str) -> Tensor:
        """Squares of a parameter of one number a channel (a bias, a norm's scale): its shape, float64."""
        return self._values[name].detach().double().square()

    def matrix(self, layer: str) -> Tensor:
        """Squares of a layer's weight: [filters, channels x kernel], float32 or float64."""
        if layer in self._matrices:
            return self._matrices[layer]
        value = canonical(self._modules[layer], self._values[f"{layer}.weight"].detach())
        value = value.to(torch.promote_types(value.dtype, torch.float32)).flatten(1)
        found = value.square()
        if value.dtype == torch.float32 and not bool(found.sum().isfinite()):
            found = value.double().square()  # beyond 1e19 a square is no float32, and Inf x 0 no number
        if self._hold:
            self._matrices[layer] = found
        return found

    def rows(self, layer: str, columns: Tensor | None, floor: Tensor | None = None) -> Tensor:
        """What each filter holds in the columns flagged (None: in all): [filters] float64.

        Squares below `floor` count as zero.
        """
        return self._sum(layer, "rows", columns, floor)

    def columns(self, layer: str, rows: Tensor | None, floor: Tensor | None = None) -> Tensor:
        """What each column holds in the filters flagged (None: in all): [channels x kernel] float64."""
        return self._sum(layer, "columns", rows, floor)

    def _sum(self, layer: str, side: str, flags: Tensor | None, floor: Tensor | None) -> Tensor:
        known = self._sums.setdefault((layer, side), {})
        key = b"" if flags is None else flags.cpu().numpy().tobytes()
        if floor is None and key in known:
            return known[key]
        matrix = self.matrix(layer)
        if floor is not None:
            matrix = matrix.masked_fill(matrix < floor, 0.0)
        matrix = matrix if side == "rows" else matrix.T
        one = matrix.new_ones(matrix.shape[1]) if flags is None else flags.to(matrix.dtype)
        found = torch.mv(matrix, one).double()
        if floor is None:
            if len(known) >= REMEMBERED:
                del known[next(iter(known))]
            known[key] = found
        return found


def energy(value: Tensor, mask: Tensor | None = None) -> float:
    """||V||^2, or ||V x mask||^2 where `mask` is bool and broadcasts to V; summed in float64, with little memory."""
    value = value.detach()
    if mask is not None:
        mask = mask.expand(value.shape)
    total = torch.zeros((), dtype=torch.float64, device=value.device)
    rows = max(1, PIECE * max(1, value.shape[0]) // max(1, value.numel())) if value.ndim else 1
    for start in range(0, value.shape[0], rows) if value.ndim else ():
        piece = value[start : start + rows].double()
        if mask is not None:
            piece = piece * mask[start : start + rows]
        flat = piece.reshape(-1)
        total += torch.dot(flat, flat)
    return float(total)
