"""One training run in several processes, with the results of one: each takes its part of every batch.

Gradients are averaged over the processes (`DistributedDataParallel`), so weights stay equal to the last bit, and with
them what is computed of weights alone: the scale of gradients, rho, Z, U and the masks. BatchNorm takes its statistics
over the whole batch. Only torch.distributed is known here: who starts the processes and joins them to a group is the
caller's business.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from admm.errors import PruneError

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Team:
    """The processes of the default group of torch.distributed, which must be there.

    Every process runs the same `PruneRun` on the same data and calls its `step()` as often. Dropout draws the same mask
    in each of them.
    """

    def __init__(self) -> None:
        if not dist.is_initialized():
            raise PruneError("a Team needs torch.distributed: call init_process_group() first")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._replicas: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()

    def part(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]:
        """This process's samples of a batch, and what their mean loss counts, 1 on average.

        Raises `PruneError` for a batch with fewer samples than processes.
        """
        whole = len(inputs)
        if whole < self.size:
            raise PruneError(
                f"a batch of {whole} samples for {self.size} processes: each needs one, take larger batches"
            )
        own = inputs.tensor_split(self.size)[self.rank]
        return own, targets.tensor_split(self.size)[self.rank], len(own) * self.size / whole

    def replica(self, model: nn.Module) -> nn.Module:
        """The network to train in its place: the same parameters and buffers, whose gradients are averaged."""
        known = self._replicas.get(model)
        if known is not None:
            return known
        shared = _sharing(model)
        device = next(model.parameters()).device
        # torch's own knows CUDA alone
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm if device.type == "cuda" else _synchronised
        # buffers are equal already: statistics of whole batches
        replica = DistributedDataParallel(
            synchronised(shared),
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            find_unused_parameters=True,
        )
        self._replicas[model] = replica
        return replica

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        dist.all_reduce(value)
        return value

    def first(self, ask: Callable[[], float]) -> float:
        """What the first process says; the others wait for it. Its error ends the run of all."""
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        said = torch.zeros(1, dtype=torch.float64, device=device)
        if self.rank == 0:
            said[0] = ask()
        dist.broadcast(said, src=0)
        return float(said)

    def require_same(self, tensors: Mapping[str, Tensor], when: str) -> None:
        """Raises `PruneError` on every process where one holds other bits than the rest."""
        if not tensors:
            return
        sums = torch.stack([_bits(t) for t in tensors.values()])
        highest, lowest = sums.clone(), sums.clone()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
        for name, same in zip(tensors, (highest == lowest).tolist(), strict=True):
            if not same:
                raise PruneError(
                    f"the processes of this run hold different values of {name} {when}: do all get the same batches, "
                    "and are their devices of one kind?"
                )


def _bits(values: Tensor) -> Tensor:
    """A sum of the bits, alike on every device; a value that differs, differs in it but for rare accidents."""
    flat = values.detach().contiguous().reshape(-1)
    if flat.dtype == torch.bool:
        flat = flat.to(torch.uint8)
    bits = flat.view(_INTEGERS[flat.element_size()]).to(torch.int64)
    places = torch.arange(1, len(bits) + 1, device=bits.device) % 8191
    return (bits * (places + 1)).sum()


def _sharing(model: nn.Module) -> nn.Module:
    """Another tree of modules on the very parameters and buffers of `model`."""
    kept: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, kept)


class _Synchronised(nn.Module):
    """A BatchNorm whose statistics are those of the whole batch; parameters and buffers are the given one's."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self._norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, ...] -> the same shape."""
        norm = self._norm
        if not norm.training:
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        wide = [1, -1, *[1] * (x.ndim - 2)]
        count = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
        dist.all_reduce(count)
        # twice, and not by the mean square: the difference of two large numbers has no digits left
        mean = all_reduce(x.sum(axes)) / count
        centred = x - mean.view(wide)
        variance = all_reduce(centred.square().sum(axes)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1.0).clamp_min(1.0))
        out: Tensor = centred * (variance + norm.eps).rsqrt().view(wide)
        if norm.weight is not None:
            out = out * norm.weight.view(wide) + norm.bias.view(wide)
        return out

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        norm = self._norm
        if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
            return
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        share = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean, share)
        norm.running_var.lerp_(variance, share)


def _synchronised(module: nn.Module) -> nn.Module:
    """The tree with each BatchNorm replaced."""
    if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
        return _Synchronised(module)
    for name, child in module.named_children():
        setattr(module, name, _synchronised(child))
    return module
