"""`sparsity.align: auto`: the channel block of the device that decides, measured once and kept for this machine."""

from __future__ import annotations

from functools import cache

from torch import Tensor, nn

from evaluators.blocks import ChannelBlock, block_of
from evaluators.measurement import Measurement
from evaluators.rig import LatencyRig, ModuleRig, make_module_rig, make_rig, measures_modules
from evaluators.staircase import staircase_module
from search.elsewhere import FarRig, machine_of
from search.job import Job, RigSpec

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@cache
def device_block(spec: RigSpec) -> ChannelBlock:
    """The block of a rig's device: from its user's cache, or measured in some seconds; once a process."""
    machine = machine_of(spec.name)
    if machine is not None:
        return ChannelBlock.from_dict(machine.ask("block", spec.name))
    if measures_modules(spec.name):
        return _block_of_modules(spec)
    rig = open_rig(spec)

    def measure(candidate: bytes, reference: bytes) -> Measurement:
        return rig.measure(candidate, reference, batch=spec.batch)

    return block_of(rig.stamp(spec.batch), measure, batch=spec.batch)


def _block_of_modules(spec: RigSpec) -> ChannelBlock:
    rig = open_module_rig(spec)

    def measure(candidate: tuple[nn.Module, Tensor], reference: tuple[nn.Module, Tensor]) -> Measurement:
        return rig.measure_modules(candidate[0], reference[0], candidate[1], batch=spec.batch)

    return block_of(rig.stamp(spec.batch), measure, batch=spec.batch, network=staircase_module)


def open_module_rig(spec: RigSpec) -> ModuleRig:
    """The rig of modules of a job. Raises `RigUnavailable` where this machine lacks it."""
    return make_module_rig(spec.name, threads=spec.threads, precision=spec.precision)


def open_rig(spec: RigSpec) -> LatencyRig:
    """The rig of a job, here or where `measuring_at` says. Raises `RigUnavailable` where its machine lacks it."""
    machine = machine_of(spec.name)
    if machine is not None:
        return FarRig(machine, spec)
    return make_rig(spec.name, threads=spec.threads, precision=spec.precision)


def aligned(job: Job, model: nn.Module, found: ChannelBlock) -> tuple[Job, str | None]:
    """(the job with `auto` replaced, a note on it); a job that says its block is left as it is, without a note."""
    if job.sparsity.align != "auto":
        return job, None
    width = width_for(model, found)
    note = f"kept counts are multiples of {width}, the channel block measured on {job.deciding_rig.name}"
    return job.aligned(width), f"{note} ({found.note})" if found.note else note


def width_for(model: nn.Module, found: ChannelBlock) -> int:
    """What this network's kept counts are to be multiples of: a convolution may take each channel by itself."""
    convolutions = [m for m in model.modules() if isinstance(m, _CONVOLUTIONS)]
    depthwise = any(1 < m.groups == m.in_channels for m in convolutions)
    return max(found.block, found.depthwise) if depthwise else found.block
