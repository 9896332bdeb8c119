"""`prunefront init`: a first job file for a network of one's own, with what was seen of it in the comments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from rich.console import Console
from rich.text import Text
from torch import Tensor, nn

from admm.cost import layer_shapes, output_positions
from admm.errors import PruneError
from admm.groupmap import GroupMap
from admm.groups import find_groups
from search.atomic import write_atomic
from search.errors import UserError
from search.job import Job
from search.report import short_count
from search.tasks.base import Task, prepare
from search.tasks.dense import build_model
from search.tasks.loading import call_task_function
from search.tasks.output import with_one_output

#: Layers that a comment lists before it counts the rest.
MOST_LAYERS = 30
#: Sides of images, lengths of signals, that are tried where nobody says the input's shape.
SIDES, LARGE_SIDES = (32, 28, 64, 224, 96, 128), (224, 128, 96, 64, 32)
LENGTHS = (128, 1024, 4096, 16000)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding)


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What was seen of a network."""

    spec: str
    name: str
    example: Tensor
    """[1, ...]"""
    assumed: bool
    """Whether the input's shape is a guess that the network took."""
    groups: GroupMap
    macs: dict[str, int]
    weights: dict[str, int]
    params: int
    is_task: bool


def init_job(spec: str, *, out: Path, input_shape: str | None, console: Console) -> None:
    """Write a job file for what `spec` (`module:function`, seen from the current folder) returns.

    A `Task` is named in it as it is. For an `nn.Module` a file with a task around it is written too, in which the data
    are still to be filled in. Nothing is overwritten. Raises `UserError`, one line.
    """
    beside = Path(f"{_word(out.stem)}_task.py")  # in the current folder, from where it finds the network's module
    _require_new(out)
    looked = look(spec, input_shape)
    written = [out]
    task = spec
    if not looked.is_task:
        _require_new(beside)
        task = f"{beside.stem}:task"
    text = job_text(looked, task, out)
    Job.model_validate(yaml.safe_load(text))  # what is written can be read
    if not looked.is_task:
        write_atomic(beside, task_text(looked))
        written.insert(0, beside)
    write_atomic(out, text)
    layers = len(looked.groups.layers)
    say = [
        f"{looked.name}: {short_count(looked.params)} parameters, {short_count(sum(looked.macs.values()))} MACs for an "
        f"input of {list(looked.example.shape)}, {layers} prunable layer{'' if layers == 1 else 's'}"
    ]
    if looked.assumed:
        say.append("the input's shape is a guess that the network takes: --input says another")
    say += [f"layer {layer} keeps all its filters: {why}" for layer, why in looked.groups.excluded.items()]
    say.append(f"written: {', '.join(map(str, written))}")
    if not looked.is_task:
        say.append(f"next: fill in the data in {beside}, then prunefront profile {out}")
    else:
        say.append(f"next: prunefront profile {out}")
    for line in say:
        console.print(Text(line), soft_wrap=True)


def _require_new(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists already: name another file with --out")


def _word(stem: str) -> str:
    """A file's stem as the name of a module."""
    word = "".join(c if c.isidentifier() or c.isdigit() else "_" for c in stem)
    return word if word.isidentifier() else f"_{word}"


def look(spec: str, input_shape: str | None = None) -> Looked:
    """Build the network once and see how it can be pruned. Raises `UserError`."""
    made = call_task_function(spec, {}, Path.cwd())
    shape = None if input_shape is None else _shape(input_shape)
    if isinstance(made, Task):
        prepared = prepare(made)
        model, name = build_model(prepared), made.name
        example = torch.zeros(shape) if shape is not None else prepared.example_input
        assumed = False
    elif isinstance(made, nn.Module):
        model, name = made, type(made).__name__
        example, assumed = (torch.zeros(shape), False) if shape is not None else (_guessed(made), True)
        model = with_one_output(model, example, None, name)
    else:
        raise UserError(
            f"{spec} must return a torch.nn.Module or a search.tasks.Task, got {type(made).__name__}: name a function "
            "that builds the network"
        )
    model.eval()
    if (why := _fails(model, example)) is not None:
        raise UserError(f"{name}: the network fails on an input of {list(example.shape)}: {why}: say --input 1,...")
    try:
        groups = find_groups(model, example)
    except PruneError as error:
        raise UserError(f"{name}: {error}") from None
    positions = output_positions(model, example)
    weights = {layer: shape.size.weights for layer, shape in layer_shapes(model).items()}
    return Looked(
        spec=spec,
        name=name,
        example=example,
        assumed=assumed,
        groups=groups,
        macs={layer: count * positions[layer] for layer, count in weights.items()},
        weights=weights,
        params=sum(p.numel() for p in model.parameters()),
        is_task=isinstance(made, Task),
    )


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape, default=0) < 1 or shape[0] != 1:
        raise UserError(f"--input must be the shape of one input, such as 1,3,32,32, got {text!r}")
    return shape


def _fails(model: nn.Module, example: Tensor) -> str | None:
    """Why the network does not take this input; None where it does."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(example)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def _guessed(model: nn.Module) -> Tensor:
    """An input that the network takes, by its first layer. Raises `UserError` where none of the usual ones fits."""
    first = next((module for module in model.modules() if isinstance(module, _LAYERS)), None)
    tried: Sequence[tuple[int, ...]] = ()
    if isinstance(first, nn.Conv2d):
        # a first convolution that strides is one for large images
        sides = LARGE_SIDES if max(first.stride) > 1 else SIDES
        tried = [(1, first.in_channels, side, side) for side in sides]
    elif isinstance(first, nn.Conv1d):
        tried = [(1, first.in_channels, length) for length in LENGTHS]
    elif isinstance(first, nn.Conv3d):
        tried = [(1, first.in_channels, 16, side, side) for side in (112, 32)]
    elif isinstance(first, nn.Linear):
        tried = [
            (1, first.in_features),
            *((1, first.in_features // s // s, s, s) for s in (28, 32) if first.in_features % (s * s) == 0),
        ]
    model.eval()
    for shape in tried:
        example = torch.zeros(shape)
        if _fails(model, example) is None:
            return example
    said = f"none of {', '.join(str(list(shape)) for shape in tried)}" if tried else "its first layer does not tell"
    raise UserError(f"which input does {type(model).__name__} take? {said}: say --input 1,3,32,32")


def job_text(looked: Looked, task: str, out: Path) -> str:
    """The job file; every setting is one that `prunefront search` takes, with why one would change it."""
    here = Path.cwd()
    base = "" if out.parent.resolve() == here else f"base_dir: {_quoted(str(here))}   # where the module lies\n"
    return f"""\
# {_plain(looked.name)}: {short_count(looked.params)} parameters, input {list(looked.example.shape)}\
{" (a guess)" if looked.assumed else ""}
# prunefront profile {out} says in a minute where the time goes and what pruning can reach;
# prunefront schema > job.schema.json lets an editor check and complete this file.
task: {_quoted(task)}
{base}
# filter: whole filters, the surest way to time.  channel: input channels alone.  shape: columns of a convolution,
# which become time where the rewrite pays.  unstructured: compresses, gains no time on a CPU.
structures: [filter]

# Names or patterns; `exclude: ["type:Linear"]` goes by type. The layers, in order, with weights and MACs:
{_layer_lines(looked)}layers:
  exclude: []

sparsity:
  max: 0.9          # never more than this of any layer
  align: auto       # the device's channel block, measured once; 1 for any width

rigs: [onnxruntime-cpu]
budget:
  speedup: 2.0      # or latency_ms; without a budget the whole front is searched

admm:
  iterations: 3     # of one epoch each
  lr: 0.01          # of SGD with momentum; optimizer: adamw is the other
finetune:
  epochs: 3
  lr: 0.01

quantize: 'off'     # int8: every trial; search: fp32 and int8 on one front

search:
  trials: 16        # the more, the fuller the front; a run goes on with --trials 100
  seed: 0
resources:
  cpus_per_trial: 1
  max_concurrent: 2 # trials at a time
"""


def _layer_lines(looked: Looked) -> str:
    return "".join(f"#   {_plain(line)}\n" for line in _layers(looked))


def _layers(looked: Looked) -> Iterator[str]:
    names = looked.groups.layers
    width = min(max((len(name) for name in names), default=0), 48)
    for name in names[:MOST_LAYERS]:
        yield (
            f"{name:{width}}  {short_count(looked.weights[name]):>8}  {short_count(looked.macs[name]):>8}"
            f"{_remark(looked.groups, name)}"
        )
    if len(names) > MOST_LAYERS:
        yield f"and {len(names) - MOST_LAYERS} more"


def _remark(groups: GroupMap, name: str) -> str:
    """What to know of one layer."""
    if name in groups.excluded:
        return f"  keeps its filters: {groups.excluded[name]}"
    group = groups.group_of(name)
    others = [] if group is None else [owner.module for owner in group.owners if owner.module != name]
    if not others:
        return ""
    named = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return f"  coupled with {named}"


def task_text(looked: Looked) -> str:
    """A module with the task around a network: runs once the data are filled in, and says so until then."""
    module, _, function = looked.spec.partition(":")
    shape = list(looked.example.shape[1:])
    return f'''\
"""The task around {function}: the network, its data, and what counts as good."""

from search.tasks import Arrays, DenseRecipe, Task
from {module} import {function}


def training_data() -> Arrays:
    """Arrays(x, y) with x {["N", *shape]}; a Dataset, a DataLoader or a function (epoch, seed) of batches does too."""
    raise NotImplementedError("fill in training_data: return Arrays(x, y), or any Dataset of (input, label)")


def task() -> Task:
    """What the job file names. `val` chooses and `test` is read once: both must be new to the network."""
    return Task(
        name="{function}",
        model={function},
        train=training_data(),
        # val=..., test=...,  # as train. Without val a tenth of train is held out, which trained weights have seen.
        # Cross-entropy and top-1 accuracy, unless you give loss=... and metric=...
        # How to train the dense network. Is it trained already? Then leave this out, and for model write a function
        # that builds it, calls load_state_dict, and returns it.
        dense=DenseRecipe(epochs=10, lr=0.05),
    )
'''.replace("'N'", "N")


def _quoted(text: str) -> str:
    """As a YAML value."""
    return str(yaml.safe_dump(text, default_style='"', width=10_000)).strip()


def _plain(text: str) -> str:
    """On one line of a comment, whatever a user's names hold."""
    return "".join(c if c.isprintable() else "?" for c in text)
