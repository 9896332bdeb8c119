"""A made-up run folder, whole: dense network, profile, sensitivity, forecast, trials with plans and traces."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from evaluators.host import cpu_isa, cpu_model
from search.result import Baseline, Status, TrialResult
from search.store import RunStore

LAYERS = ("stem", "block1.conv", "block2.conv", "head")
WIDTH, SIZE = 16, 8
DENSE_MS = 2.0
RIG = "onnxruntime-cpu"
STAMP: dict[str, Any] = {
    "rig": RIG,
    "device": cpu_model(),
    "isa": cpu_isa(),
    "runtime": "onnxruntime 1.0",
    "provider": "CPUExecutionProvider",
    "threads": 1,
    "batch": 1,
    "clock": "thread_cpu",
    "platform": "made up",
}


def dense_onnx(layers: Sequence[str] = LAYERS, *, width: int = WIDTH) -> bytes:
    """3x3 convolutions one behind the other, the last layer a matrix product of 10 classes."""
    nodes, weights, name = [], [], "input"
    for number, layer in enumerate(layers[:-1]):
        inputs = 1 if number == 0 else width
        weights.append(numpy_helper.from_array(np.ones((width, inputs, 3, 3), np.float32), f"{layer}.weight"))
        nodes.append(
            helper.make_node("Conv", [name, f"{layer}.weight"], [f"t{number}"], f"conv{number}", pads=[1, 1, 1, 1])
        )
        name = f"t{number}"
    weights.append(numpy_helper.from_array(np.ones((10, width), np.float32), f"{layers[-1]}.weight"))
    nodes += [
        helper.make_node("GlobalAveragePool", [name], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", f"{layers[-1]}.weight"], ["output"], "gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "made up",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def measurement(speedup: float) -> dict[str, Any]:
    """As a rig tells it, with an interval of 3 % around."""
    latency = DENSE_MS / speedup
    return {
        "latency_ms": latency,
        "latency_low_ms": 0.97 * latency,
        "latency_high_ms": 1.03 * latency,
        "dense_latency_ms": DENSE_MS,
        "speedup": speedup,
        "speedup_low": 0.97 * speedup,
        "speedup_high": 1.03 * speedup,
        "wall_p50_ms": latency,
        "wall_p95_ms": latency,
        "wall_min_ms": latency,
        "pairs": 9,
        "rejected": 0,
        "converged": True,
        "seconds": 0.1,
        "stamp": STAMP,
    }


def fabricated_run(
    root: Path,
    *,
    trials: int = 8,
    layers: Sequence[str] = LAYERS,
    iterations: int = 3,
    budget: str = "{speedup: 2.0}",
    task: str = "mine:task",
    width: int = WIDTH,
) -> RunStore:
    """A run of `trials` finished ones: every fifth was stopped, every seventh rejected, one failed, the others
    complete. The faster, the less accurate, with chance on top.
    """
    asked = f"budget: {budget}\n" if budget else ""
    job = f"task: {json.dumps(task)}\nstructures: [filter, shape]\n{asked}search: {{trials: {max(trials, 1)}}}\n"
    store = RunStore.create(root, job, {"prunefront": "0", "python": "3", "packages": {"torch": "2"}})
    store.write_baseline(
        Baseline(
            accuracy=0.98,
            accuracy_stderr=0.004,
            latency_ms=DENSE_MS,
            macs=1_000_000,
            params=10_000,
            weights=9_000,
            measurements={RIG: measurement(1.0)},
            trained_epochs=4.0,
        )
    )
    (store.baseline_dir / "model.onnx").write_bytes(dense_onnx(layers, width=width))
    dimensions = [{"layer": n, "structure": "filter", "sparsities": [0.0, 0.25, 0.5, 0.75]} for n in layers[:-1]]
    store.write_profile(
        {
            "groups": {"groups": [], "excluded": {layers[-1]: "its filters are the output"}, "layers": list(layers)},
            "layers": list(layers[:-1]),
            "space": dimensions,
            "precisions": ["fp32"],
            "notes": ["made up"],
            "block": 16,
        }
    )
    _write(root / "sensitivity.json", sensitivity(layers[:-1]))
    _write(
        root / "forecast.json",
        {"schema": 1, "key": "k", "points": [{"name": "dense", "plan": "a", "relative": 1.0},
                                             {"name": "fastest", "plan": "b", "relative": 0.1}]},
    )  # fmt: skip
    rng = random.Random(0)
    for number in range(trials):
        add_trial(store, number, rng, layers=layers, iterations=iterations, width=width)
    return store


def sensitivity(layers: Sequence[str]) -> dict[str, Any]:
    """The more is removed, the higher the loss, and the sooner the further in front."""
    points = {
        f"{layer}/filter": [
            {"step": step, "sparsity": 0.25 * step, "loss": 0.1 * math.exp(step / (1 + 0.2 * place)), "accuracy": 0.9}
            for step in (1, 2, 3)
        ]
        for place, layer in enumerate(layers)
    }
    return {"schema": 1, "key": "k", "loss": 0.1, "accuracy": 0.98, "samples": 256, "epochs": 1.5, "points": points}


def add_trial(
    store: RunStore,
    number: int,
    rng: random.Random,
    *,
    layers: Sequence[str] = LAYERS,
    iterations: int = 3,
    width: int = WIDTH,
) -> TrialResult:
    """One more finished trial, with the files of its kind."""
    status: Status = "complete"
    if number % 5 == 4:
        status = "stopped"
    elif number % 7 == 6:
        status = "infeasible"
    elif number == 11:
        status = "failed"
    kept = [rng.choice((4, 8, 12, 16)) * width // 16 for _ in layers[:-1]]
    sparsities = [round(1.0 - k / width, 4) for k in kept]
    plan = {layer: {"filter": s} for layer, s in zip(layers, sparsities, strict=False) if s}
    mean = sum(sparsities) / len(sparsities)
    speedup = math.exp(2.0 * mean) * rng.uniform(0.95, 1.05)
    accuracy = 0.98 - 0.05 * mean * mean * rng.uniform(0.6, 1.6)
    folder = store.attempt_dir(number, "made-up")
    values: dict[str, Any] = {
        "latency_ms": DENSE_MS / speedup,
        "latency_high_ms": 1.03 * DENSE_MS / speedup,
        "speedup": speedup,
        "speedup_low": 0.97 * speedup,
        "measurements": {RIG: measurement(speedup)},
        "source": "uniform" if number == 1 else rng.choice(("warm start", "tpe", "neighbour")),
        "requested": plan,
    }
    if status == "complete":
        values |= {
            "accuracy": accuracy,
            "accuracy_drop": 100.0 * (0.98 - accuracy),
            "accuracy_stderr": 0.004,
            "compression_x": 1.0 / max(0.05, 1.0 - mean),
            "macs": int(1_000_000 / speedup),
            "params": int(10_000 * (1.0 - mean)) + 1,
            "epochs": 6.0,
            "accuracy_before_prune": accuracy - 0.01,
            "accuracy_after_prune": accuracy - 0.02,
            "rungs": ((2, accuracy - 0.02),),
            "notes": ("made up",) if number == 0 else (),
        }
        before = [1, *kept]
        _write(
            folder / "plan.json",
            {
                "schema": 1,
                "requested": plan,
                "effective": plan,
                "kept": {
                    layer: ({"in": list(range(before[i]))} if i else {})
                    | ({"out": list(range(kept[i]))} if i < len(kept) else {})
                    for i, layer in enumerate(layers)
                },
                "digest": "d",
                "seed": 0,
                "align": 4,
            },
        )
        (folder / "trace.jsonl").write_text(trace(layers, iterations, accuracy, rng))
        (folder / "model.onnx").write_bytes(b"")
    else:
        values |= {"reason": f"made up: {status}", "epochs": 2.0 if status == "stopped" else 0.0}
    result = TrialResult(number=number, status=status, plan_digest=str(number), seed=0, **values)
    assert store.commit(number, folder, result)
    return result


def trace(layers: Sequence[str], iterations: int, accuracy: float, rng: random.Random) -> str:
    """Residuals that fall."""
    lines = []
    for iteration in range(1, iterations + 1):
        names = [f"{layer}.weight" for layer in layers] + ["bn.bias"]
        primal = {name: rng.uniform(0.5, 1.5) * math.exp(-iteration) for name in names}
        dual = {name: 0.1 * value for name, value in primal.items()}
        rho = dict.fromkeys(names, 1.0)
        record = {"kind": "admm", "iteration": iteration, "loss": 1.0 / iteration}
        lines.append(json.dumps({**record, "primal": primal, "dual": dual, "rho": rho, "kept": {}}))
    accuracies = {"before_prune": accuracy - 0.01, "after_prune": accuracy - 0.02, "after_finetune": accuracy}
    return "\n".join([*lines, json.dumps({"kind": "accuracy", **accuracies})]) + "\n"


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))
