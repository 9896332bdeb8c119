"""The gate between the masked network and the small one: they say the same, or the run ends here."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from admm.errors import PruneError

#: Largest difference allowed, relative to the largest output: float32 on a CPU, and with TF32 kernels on CUDA.
TOLERANCE = {"cpu": 1e-5, "cuda": 5e-3}
#: Outputs smaller than this are compared absolutely.
FLOOR = 1e-3
SAMPLES = 16


@torch.no_grad()
def require_agreement(masked: nn.Module, small: nn.Module, inputs: Tensor) -> float:
    """max|masked(x) − small(x)| / max|masked(x)| in evaluation mode on up to 16 of `inputs` [batch, ...].

    Raises `PruneError` above the tolerance or for outputs that are not finite. Training modes are put back.
    """
    inputs = inputs[:SAMPLES]
    outputs = []
    for model in (masked, small):
        modes = [(m, m.training) for m in model.modules()]
        model.eval()
        outputs.append(model(inputs).double())
        for module, training in modes:
            module.training = training
    scale = max(float(outputs[0].abs().max()), FLOOR)
    difference = float((outputs[0] - outputs[1]).abs().max()) / scale
    allowed = TOLERANCE.get(inputs.device.type, TOLERANCE["cuda"])
    if not difference <= allowed:
        finite = math.isfinite(difference)
        what = f"differ by {difference:.3g} (at most {allowed:g})" if finite else "are not finite"
        raise PruneError(f"the masked and the compacted network {what}, relative to the largest output")
    return difference
