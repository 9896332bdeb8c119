"""In these tests the machine's channel block is known to be 16: none waits for its measurement, or depends on one."""

from __future__ import annotations

import atexit
import math
import os
import shutil
import tempfile
from pathlib import Path

import onnx

from evaluators.blocks import block_of
from evaluators.measurement import Measurement
from evaluators.rig import make_rig

FOLDER = tempfile.mkdtemp(prefix="prunefront-tests-")
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
STAMP = make_rig("onnxruntime-cpu").stamp(1)


def _staircase(candidate: bytes, reference: bytes) -> Measurement:
    """Times of a processor whose kernels work on blocks of 16 channels."""
    steps = [
        math.ceil(max(w.dims[0] for w in onnx.load_model_from_string(m).graph.initializer if w.name == "weight0") / 16)
        for m in (candidate, reference)
    ]
    speedup = steps[1] / steps[0]
    return Measurement(
        latency_ms=1.0 / speedup,
        latency_low_ms=1.0 / speedup,
        latency_high_ms=1.0 / speedup,
        dense_latency_ms=1.0,
        speedup=speedup,
        speedup_low=speedup,
        speedup_high=speedup,
        wall_p50_ms=None,
        wall_p95_ms=None,
        wall_min_ms=None,
        pairs=9,
        rejected=0,
        converged=True,
        seconds=0.0,
        stamp=STAMP,
    )


assert block_of(STAMP, _staircase, cache=Path(FOLDER)).block == 16
os.environ["PRUNEFRONT_CACHE"] = FOLDER
