"""What the stamp says of a graphics processor: name, driver and highest clock, read from torch and nvidia-smi."""

from __future__ import annotations

import subprocess
from functools import cache

import torch


@cache
def gpu_label(index: int = 0) -> str:
    """Name, driver and highest SM clock: `NVIDIA H200, driver 580.1, SM up to 1980 MHz`, as far as they can be read."""
    entries = [_smi("name", index), _smi("driver_version", index), _smi("clocks.max.sm", index)]
    name = torch.cuda.get_device_name(index) if torch.cuda.is_available() else entries[0]
    parts = [name or "unknown GPU"]
    if entries[1]:
        parts.append(f"driver {entries[1]}")
    if entries[2]:
        parts.append(f"SM up to {entries[2]} MHz")
    return ", ".join(parts)


@cache
def gpu_capability(index: int = 0) -> str:
    """Compute capability as `sm_90`; `gpu` where it cannot be read."""
    if not torch.cuda.is_available():
        return "gpu"
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def sm_clock_mhz(index: int = 0) -> int | None:
    """The SM clock of this moment in MHz; `None` where nvidia-smi does not tell."""
    value = _smi("clocks.sm", index)
    return int(value) if value.isdigit() else None


def _smi(query: str, index: int) -> str:
    """One field of nvidia-smi without its unit; empty where there is none."""
    device = str(index)
    if torch.cuda.is_available():
        # nvidia-smi counts all devices of the machine, torch those that CUDA_VISIBLE_DEVICES leaves.
        device = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    command = ("nvidia-smi", f"--id={device}", f"--query-gpu={query}", "--format=csv,noheader,nounits")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    value = done.stdout.strip()
    return "" if not value or value.startswith("[") else value
