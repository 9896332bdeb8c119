"""What column sparsity is worth on CUDA: AlexNet's convolutions with kept columns only against cuDNN's dense ones.

The column sparsities are those published for structured ADMM (0/70/77/85/81 % on conv1-5, arXiv 1807.11091). Each
layer, and the stack of all five with ReLU and pooling, is measured on the rig `cuda` (CUDA graph, device events,
rotated inputs, L2 flushed) beside the dense layer in channels_last. The ideal is the ratio of multiplications.
Weights and columns are drawn at random: this is about time. Needs torch, NumPy, onnx and triton, and no other package:
`PYTHONPATH=. python benchmarks/gpu_alexnet.py`.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections import OrderedDict
from typing import Any

import torch
from claim import Claim
from torch import Tensor, nn

from evaluators.cuda_rig import PRECISIONS, CudaRig, arithmetic, require_cuda
from evaluators.device import gpu_label, sm_clock_mhz
from evaluators.errors import RigUnavailable
from evaluators.kept_columns import KeptColumnsConv2d
from evaluators.kept_columns_triton import require_triton
from evaluators.timing import TimingSettings

#: name -> (channels, filters, kernel, stride, padding, input size, column sparsity)
LAYERS: dict[str, tuple[int, int, int, int, int, int, float]] = {
    "conv1": (3, 64, 11, 4, 2, 224, 0.0),
    "conv2": (64, 192, 5, 1, 2, 27, 0.70),
    "conv3": (192, 384, 3, 1, 1, 13, 0.77),
    "conv4": (384, 256, 3, 1, 1, 13, 0.85),
    "conv5": (256, 256, 3, 1, 1, 13, 0.81),
}
STACK = "stack"
#: Pooling follows these.
POOLED = ("conv1", "conv2", "conv5")
BATCHES = (1, 8, 64)
SEED = 0
BAR = 1.0
BOUNDS = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 2e-2, "bf16": 2e-2}


def masked_conv(name: str) -> nn.Conv2d:
    """One layer with its published fraction of columns zero in all filters."""
    channels, filters, kernel, stride, padding, _, sparsity = LAYERS[name]
    conv = nn.Conv2d(channels, filters, kernel, stride, padding)
    columns = conv.weight[0].numel()
    mask = torch.ones(columns)
    mask[torch.randperm(columns)[: round(sparsity * columns)]] = 0.0
    with torch.no_grad():
        conv.weight.mul_(mask.view(conv.weight.shape[1:]))
    return conv


def multiplications(module: nn.Module, x: Tensor) -> int:
    """Multiplications of the convolutions in `module` for the input x [n, channels, h, w]."""
    total = 0

    def count(layer: nn.Module, _: Any, y: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        assert isinstance(weight, Tensor)
        total += weight[0].numel() * y.numel()

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, nn.Conv2d | KeptColumnsConv2d)]
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return total


def networks(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """(dense with zeros, kept columns only, example input [1, channels, h, w]) of a layer or of the stack."""
    torch.manual_seed(SEED)
    if name != STACK:
        conv = masked_conv(name)
        lean: nn.Module = KeptColumnsConv2d.from_conv(conv) if LAYERS[name][-1] else conv
        channels, size = LAYERS[name][0], LAYERS[name][5]
        return conv, lean, torch.randn(1, channels, size, size)
    dense_parts: OrderedDict[str, nn.Module] = OrderedDict()
    lean_parts: OrderedDict[str, nn.Module] = OrderedDict()
    for layer in LAYERS:
        conv = masked_conv(layer)
        dense_parts[layer] = conv
        lean_parts[layer] = KeptColumnsConv2d.from_conv(conv) if LAYERS[layer][-1] else conv
        for parts in (dense_parts, lean_parts):
            parts[f"relu_{layer}"] = nn.ReLU()
            if layer in POOLED:
                parts[f"pool_{layer}"] = nn.MaxPool2d(3, 2)
    return nn.Sequential(dense_parts), nn.Sequential(lean_parts), torch.randn(1, 3, 224, 224)


def disagreement(dense: nn.Module, lean: nn.Module, x: Tensor, precision: str) -> float:
    """max|y - y'| / max|y| on the device, y' of the kept columns and y of the dense form in float64 on the host."""
    dtype = PRECISIONS[precision][0]
    true, tried = copy.deepcopy(dense).double(), copy.deepcopy(lean).to("cuda", dtype)
    with torch.inference_mode(), arithmetic(precision):
        want = true(x.double())
        got = tried(x.to("cuda", dtype).contiguous(memory_format=torch.channels_last)).double().cpu()
    return float((got - want).abs().max() / want.abs().max())


def measure(name: str, precision: str, batch: int, settings: TimingSettings | None) -> dict[str, Any]:
    """One row: milliseconds of both, the speed-up with its interval, the ideal and the share of it reached."""
    dense, lean, x = networks(name)
    ideal = multiplications(dense, x) / multiplications(lean, x)
    error = disagreement(dense, lean, x, precision)
    paired = CudaRig(precision=precision, settings=settings).measure_modules(lean, dense, x, batch=batch)
    other = CudaRig(precision=precision, settings=settings, channels_last=False)
    contiguous = other.measure_modules(lean, dense, x, batch=batch)
    return {
        "network": name,
        "precision": precision,
        "batch": batch,
        "dense_ms": round(paired.dense_latency_ms, 5),
        "kept_columns_ms": round(paired.latency_ms, 5),
        "kept_columns_contiguous_ms": round(contiguous.latency_ms, 5),
        "speedup": round(paired.speedup, 3),
        "speedup_low": round(paired.speedup_low, 3),
        "speedup_high": round(paired.speedup_high, 3),
        "converged": paired.converged,
        "ideal": round(ideal, 3),
        "share": round(paired.speedup / ideal, 3),
        "disagreement": error,
        "agrees": error <= BOUNDS[precision],
        "sm_mhz_after": sm_clock_mhz(),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The table; times are device milliseconds of one inference."""
    print(f"kept columns against cuDNN dense, channels_last, {gpu_label()}")
    print(
        f"{'network':8} {'type':5} {'batch':>5} {'dense ms':>9} {'kept ms':>9} {'kept NCHW':>9} {'speed-up':>8} "
        f"{'95 % interval':>15} {'ideal':>6} {'share':>6}"
    )
    for row in rows:
        interval = f"{row['speedup_low']:.2f}-{row['speedup_high']:.2f}"
        print(
            f"{row['network']:8} {row['precision']:5} {row['batch']:5d} {row['dense_ms']:9.4f} "
            f"{row['kept_columns_ms']:9.4f} {row['kept_columns_contiguous_ms']:9.4f} {row['speedup']:8.2f} "
            f"{interval:>15} {row['ideal']:6.2f} {row['share']:6.2f}" + ("" if row["agrees"] else "  DIFFERS")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="float16 and batch 8 only: under a minute")
    parser.add_argument("--precision", nargs="+", choices=list(PRECISIONS), default=["tf32", "fp16"])
    parser.add_argument("--record", action="store_true", help="add the figures to results/gpu_alexnet.json")
    options = parser.parse_args()
    if options.record and options.quick:
        parser.error("--record keeps figures of the full benchmark only")
    try:
        require_cuda("benchmarks/gpu_alexnet.py")
        require_triton()
    except RigUnavailable as error:
        print(error)
        sys.exit(2)
    precisions = ["fp16"] if options.quick else options.precision
    batches = (8,) if options.quick else BATCHES
    settings = TimingSettings(min_pairs=5, max_pairs=7, min_repeat_ns=1_000_000) if options.quick else None
    pruned = [name for name, layer in LAYERS.items() if layer[-1]]
    rows = [
        measure(name, precision, batch, settings)
        for precision in precisions
        for batch in batches
        for name in (*pruned, STACK)
    ]
    show(rows)
    worst = min(rows, key=lambda row: row["speedup"])
    least = min(rows, key=lambda row: row["share"])
    agree = all(row["agrees"] for row in rows)
    claim = Claim(
        claim="at the published column sparsities AlexNet's convolutions with kept columns are faster on CUDA than "
        f"cuDNN's dense ones, in every case: the worst is {worst['network']} in {worst['precision']} at batch "
        f"{worst['batch']} with {worst['speedup']:.2f}x of {worst['ideal']:.2f}x ideal; the least share of the ideal, "
        f"{least['share']:.2f}, is that of {least['network']} in {least['precision']} at batch {least['batch']}",
        figure=worst["speedup"],
        unit="x cuDNN dense in channels_last (device time), the smallest of all rows",
        bar=BAR,
        holds=agree and min(row["speedup_low"] for row in rows) > BAR,
        details={
            "quick": options.quick,
            "device": gpu_label(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "column_sparsities": {name: layer[-1] for name, layer in LAYERS.items()},
            "agree": agree,
            "rows": rows,
        },
    )
    if options.record:
        claim.record("gpu_alexnet", packages=("torch", "numpy", "triton"))
    print(claim.to_json())


if __name__ == "__main__":
    main()
