"""Mistakes in a job file: each ends in its place in the file, the value, the bound and the mend."""

# ruff: noqa: E501  (one mistake a line: what was written beside what is said)

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mistakes.typed import Mistake, whole, wrong

NO_JOBS = [
    whole("", "bad.yaml: empty: a job names at least a task, such as task: search.tasks.digits:task"),
    whole("a search, please", "bad.yaml:1: a job is a mapping of keys"),
    whole("- task\n- search\n", "bad.yaml:1: a job is a mapping of keys, such as task: search.tasks.digits:task"),
    whole("task: [small\n", "bad.yaml:2: not valid YAML: expected ',' or ']'"),
    whole("task: small:task\nsearch:\n\ttrials: 3\n", "bad.yaml:3: not valid YAML: found character '\\t'", "indent with spaces"),
    whole("task: small:task\n search:\n  trials: 3\n", "bad.yaml:2: not valid YAML: "),
    whole("task: small:task\ntask: wrong:fails\n", "bad.yaml:2: task: given twice, first in line 1: remove one"),
    whole("task: !!python/object:os.system x\n", "bad.yaml:1: task: tags such as", "have no meaning in a job"),
    whole("search: {trials: 3}\n", "bad.yaml: task: is missing"),
]  # fmt: skip

KEYS = [
    wrong("search: {trails: 3}", "bad.yaml:6: search.trails: unknown key; did you mean 'trials'?"),
    wrong("trials: 3", "bad.yaml:6: trials: unknown key; did you mean 'search.trials'?"),
    wrong("search: {max: 0.5}", "bad.yaml:6: search.max: unknown key; did you mean 'sparsity.max'?"),
    wrong("learning: {rate: 3}", "bad.yaml:6: learning: unknown key; use task, "),
    wrong("task_args: {wdith: 3}", "bad.yaml:6: task_args.wdith: small:task takes no such argument; did you mean 'width'?"),
]  # fmt: skip

VALUES = [
    wrong("search: {trials: 0}", "bad.yaml:6: search.trials: must be at least 1, got 0"),
    wrong("search: {trials: many}", "bad.yaml:6: search.trials: must be a whole number, got 'many'"),
    wrong("search: {trials: 1.5}", "bad.yaml:6: search.trials: must be a whole number, got 1.5"),
    wrong("search: {early_stopping: yes}", "bad.yaml:6: search.early_stopping: must be true or false, got 'yes'"),
    wrong("search:", "bad.yaml:6: search: is empty: give it a value or remove the line"),
    wrong("search: {sampler: tppe}", "bad.yaml:6: search.sampler: must be tpe, nsga2 or random, got 'tppe'; did you mean 'tpe'?"),
    wrong("sparsity: {max: 1.2}", "bad.yaml:3: sparsity.max: must lie in [0, 1), got 1.2"),
    wrong("sparsity: {max: 90%}", "bad.yaml:3: sparsity.max: must be a number, got '90%'"),
    wrong("sparsity: {min: 0.8, max: 0.2}", "bad.yaml:3: sparsity: min 0.8 is above max 0.2: swap them"),
    wrong("sparsity: {align: Auto}", "bad.yaml:3: sparsity.align: must be auto or a whole number of at least 1, got 'Auto'; did you mean 'auto'?"),
    wrong("sparsity: {align: 0}", "bad.yaml:3: sparsity.align: must be auto or a whole number of at least 1, got 0"),
    wrong("sparsity: {align: 1.5}", "sparsity.align: must be auto or a whole number of at least 1, got 1.5"),
    wrong("sparsity: {align: true}", "sparsity.align: must be auto or a whole number of at least 1, got true"),
    wrong("finetune: {epochs: -1}", "bad.yaml:5: finetune.epochs: must be at least 0, got -1"),
    wrong("admm: {lr: .nan}", "bad.yaml:4: admm.lr: must be a finite number, got nan"),
    wrong("quantize: int4", "bad.yaml:6: quantize: must be off, int8 or search, got 'int4'; did you mean 'int8'?"),
    wrong("compute: {autocast: fp16}", "bad.yaml:6: compute.autocast: must be off or bf16, got 'fp16'"),
]  # fmt: skip

BUDGETS = [
    wrong("budget: {latency_ms: 1, speedup: 2}", "bad.yaml:6: budget: give latency_ms or speedup, not both"),
    wrong("budget: {}", "bad.yaml:6: budget: give latency_ms or speedup, or leave the budget out"),
    wrong("budget: 2x", "bad.yaml:6: budget: must be a mapping of keys, got '2x'"),
    wrong("budget: {speedup: 0}", "bad.yaml:6: budget.speedup: must be above 1, got 0"),
    wrong("budget: {latency_ms: 0}", "bad.yaml:6: budget.latency_ms: must be above 0, got 0"),
    wrong("budget: {speedup: 2, rig: onnxruntime-cuda}", "bad.yaml:6: budget.rig: 'onnxruntime-cuda' is not among the rigs; did you mean 'onnxruntime-cpu'?"),
]  # fmt: skip

LAYERS = [
    wrong("structures: [filters]", "bad.yaml:6: structures.0: must be filter, channel, shape, unstructured or n:m, got 'filters'; did you mean 'filter'?"),
    wrong("structures: filter", "bad.yaml:6: structures: must be a list, got 'filter': write [filter]"),
    wrong("structures: []", "bad.yaml:6: structures: must name at least one, got []"),
    wrong("structures: [n:m, shape]", "bad.yaml:6: structures: 'n:m' goes with 'filter' only, not with 'shape': leave one out"),
    wrong("structures: [n:m]\nsparsity: {align: 8, max: 0.2}", "no pattern n:m within [0, 0.2]: they remove 0.25, 0.5, 0.75"),
    wrong("layers: {exclude: [haed]}", "bad.yaml:2: layers.exclude.0: no layer matches 'haed'; did you mean 'head'?"),
    wrong("layers: {include: ['type:Conv3d']}", "layers.include.0: no layer type matches 'Conv3d'; did you mean 'Conv2d'?"),
    wrong("layers: {exclude: ['*']}", "bad.yaml:2: layers: no layer is left to prune: exclude fewer"),
    wrong("sparsity: {align: 64}", "nothing can be pruned with structures filter", "too narrow", "64", "lower sparsity.align"),
]  # fmt: skip

MACHINES = [
    wrong("rigs: [onnxruntime-gpu]", "bad.yaml:6: rigs.0: unknown rig 'onnxruntime-gpu': did you mean 'onnxruntime-cpu'?"),
    wrong("rigs: [cuda]", "bad.yaml:6: rigs.0: rig 'cuda' needs a CUDA device"),
    wrong("rigs: [{name: torch-cpu, precision: fp16}]", "bad.yaml:6: rigs.0: precision must be one of fp32, bf16, got 'fp16'"),
    wrong("rigs: [{name: onnxruntime-cpu, threads: 999}]", "bad.yaml:6: rigs.0: threads must lie in 1..", "got 999"),
    wrong("opset: 17", "bad.yaml:6: opset: must lie in [18, 25], got 17"),
    wrong("rigs: [torch-cpu]\nquantize: int8", "bad.yaml:7: quantize: int8 is a form of ONNX files, and rig 'torch-cpu' measures modules: leave it out"),
    wrong("search: {objectives: [accuracy, 'latency:cuda']}", "bad.yaml:6: search.objectives: 'latency:cuda': 'cuda' is not among the rigs; there is onnxruntime-cpu"),
    wrong("resources: {cpus_per_trial: 4096}", "bad.yaml:6: resources.cpus_per_trial: a trial needs 4096 CPUs, this machine has ", "lower it"),
    wrong("resources: {gpus_per_trial: 64}", "bad.yaml:6: resources.gpus_per_trial: a trial needs 64 GPUs, this machine has ", "lower it, or join a cluster with --address"),
    wrong("resources: {gpus_per_trial: 1.5}", "bad.yaml:6: resources: gpus_per_trial must be a whole number above 1, got 1.5: try 1"),
]  # fmt: skip

PLACES = [
    wrong("storage: job.yaml/deeper", "cannot make", "job.yaml/deeper", "choose another --storage"),
    wrong("storage: ../outside", "bad.yaml:6: storage: '../outside' leads out of the current folder: if you mean it, say --storage ../outside"),
    wrong("storage: 'nfs://x/runs'", "storage nfs://x/runs: nothing opens nfs://: give a folder, s3://, gs://"),
    wrong("search: {study: 'sqlite:////etc/x.db'}", "bad.yaml:6: search.study: '/etc/x.db' leads out of the current folder"),
    wrong("search: {study: 'journal:runs'}", "search.study: runs is a folder: name a file in it, such as runs/study.db"),
    wrong("search: {study: 'postgresql+nodriver://me:secret@host/db'}", "the study postgresql+nodriver://me:***@host/db cannot be opened", "check the URL and its server"),
    wrong("logging: {tensorbord: true}", "bad.yaml:6: logging.tensorbord: unknown key; did you mean 'tensorboard'?"),
    wrong("logging: {mlflow_experiment: mine}", "bad.yaml:6: logging.mlflow_experiment: is given and mlflow is off: say mlflow: true"),
    wrong("logging: {mlflow: true, mlflow_uri: mlruns}", "bad.yaml:6: logging.mlflow_uri: must be http://HOST:PORT, sqlite:///FILE, postgresql://HOST/DB or databricks, got 'mlruns'"),
    wrong("logging: {mlflow: true, mlflow_uri: 'sqlite:////etc/x.db'}", "bad.yaml:6: logging.mlflow_uri: '/etc/x.db' leads out of the current folder"),
    wrong("base_dir: nowhere", "bad.yaml:6: base_dir: there is no folder ", "nowhere, and no installed module 'small'"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", [*NO_JOBS, *KEYS, *VALUES, *BUDGETS, *LAYERS, *MACHINES, *PLACES], ids=str)
def test_a_job_that_is_wrong(here: Path, capfd: pytest.CaptureFixture[str], mistake: Mistake) -> None:
    mistake.make(here, capfd)
