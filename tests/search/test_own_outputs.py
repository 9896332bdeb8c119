"""Networks that return dicts, dataclasses and tuples, and networks with frozen parts."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from admm.frozen import frozen_layers, without_frozen
from admm.groups import find_groups
from admm.pipeline import prune
from admm.plan import PruningPlan
from admm.settings import AdmmSettings, FinetuneSettings
from evaluators import check_parity, export_onnx
from search.errors import UserError
from search.job import Job
from search.profile import profile_network
from search.tasks import Arrays, Task, check_task, prepare
from search.tasks.dense import build_model
from search.tasks.output import pick


@dataclass
class Said:
    """As a detector's or a language model's library returns it."""

    logits: Tensor
    hidden: Tensor
    loss: Tensor | None = None


Pair = namedtuple("Pair", ("out", "aux"))
WRAPS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str | int | None]] = {
    "dataclass": (lambda y, h: Said(y, h), None),
    "dict": (lambda y, h: {"hidden": h, "logits": y}, None),
    "single": (lambda y, h: OrderedDict(out=y), None),
    "named": (lambda y, h: {"out": y, "aux": h}, "out"),
    "namedtuple": (lambda y, h: Pair(y, h), "out"),
    "place": (lambda y, h: (h, y), 1),
    "tensor": (lambda y, h: y, None),
}


class Net(nn.Module):
    """[batch, 1, 6, 6] -> [batch, 3], wrapped."""

    def __init__(self, wrap: str) -> None:
        super().__init__()
        self.wrap = wrap
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, pixel_values: Tensor, mask: Tensor | None = None) -> Any:
        hidden = torch.relu(self.second(torch.relu(self.first(pixel_values)))).mean((2, 3))
        return WRAPS[self.wrap][0](self.head(hidden), hidden)


def data(samples: int = 60) -> Arrays:
    y = torch.arange(samples) % 3
    return Arrays(torch.randn(samples, 1, 6, 6, generator=torch.Generator().manual_seed(0)) + y[:, None, None, None], y)


def task(model: Callable[[], nn.Module], **more: Any) -> Task:
    return Task(name="own", model=model, train=data(), val=data(12), batch_size=20, **more)


@pytest.mark.parametrize("wrap", WRAPS)
def test_one_tensor_reaches_training_export_and_metric(wrap: str, tmp_path: Path) -> None:
    prepared = prepare(task(lambda: Net(wrap), output=WRAPS[wrap][1]))
    model = build_model(prepared)
    assert isinstance(model, Net), "hooks and isinstance of the user's go on as ever"
    assert list(model.state_dict()) == list(Net(wrap).state_dict())
    assert (type(model) is Net) == (wrap == "tensor")
    check_task(prepared, model)
    parts = Net.forward(model, prepared.example_input)  # what the user's own code gives
    key = WRAPS[wrap][1]
    if key is None:
        key = "out" if wrap == "single" else "logits"
    assert torch.equal(copy.deepcopy(model)(prepared.example_input), pick(parts, key))
    done = prune(
        model,
        PruningPlan({"first": {"filter": 0.5}}),
        train_batches=prepared.train_batches,
        example_input=prepared.example_input,
        admm=AdmmSettings(iterations=1),
        finetune=FinetuneSettings(epochs=1),
    )
    path = export_onnx(done.model, prepared.example_input, tmp_path / "m.onnx")
    assert check_parity(done.model, path, [data(6).x]).ok
    assert done.model.first.weight.shape[0] == 4  # type: ignore[union-attr, operator, index]


class Other(Net):
    """Returns what a test says."""

    def __init__(self, made: Callable[[Tensor], Any]) -> None:
        super().__init__("tensor")
        self.made = made

    def forward(self, pixel_values: Tensor, mask: Tensor | None = None) -> Any:
        return self.made(super().forward(pixel_values))


@pytest.mark.parametrize(
    ("made", "output", "message"),
    [
        (lambda y: {"boxes": y, "scores": y}, None, "returns dict with the tensors 'boxes', 'scores': say which one"),
        (lambda y: {"boxes": y, "n": 3}, "n", "returns dict with 'boxes', and Task.output 'n' is no tensor"),
        (lambda y: {"boxes": y}, "box", "and Task.output 'box' is not among them: name one of these"),
        (lambda y: (y, y), None, "returns tuple with the tensors 0, 1: say which one counts with Task(output=0, ...)"),
        (lambda y: {"n": 3}, None, "got dict with no tensor in it, only 'n'"),
        (lambda y: None, None, "or a dict, dataclass or tuple with one: got NoneType"),
    ],
)
def test_what_cannot_be_told_is_one_line(made: Any, output: str | None, message: str) -> None:
    prepared = prepare(task(lambda: Other(made), output=output))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        build_model(prepared)
    assert "\n" not in str(caught.value)


def test_a_wrong_kind_of_output_is_said_at_once() -> None:
    with pytest.raises(UserError, match=r"Task\.output must be a key, a field or a place in a tuple, got 1\.5"):
        task(lambda: Net("dict"), output=1.5)


def job(**more: Any) -> Job:
    return Job.model_validate({"task": "a:b", "sparsity": {"align": 1}, **more})


def frozen(*names: str) -> Net:
    model = Net("tensor")
    for name in names:
        model.get_submodule(name).weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    return model


def test_a_frozen_layer_is_left_whole_and_named() -> None:
    model = frozen("second")
    profile = profile_network(job(structures=["filter", "unstructured"]), model, data(1).x)
    assert profile.layers == ("first", "head")
    assert [(d.layer, d.structure) for d in profile.space.dimensions] == [
        ("first", "unstructured"),
        ("head", "unstructured"),
    ]
    assert profile.notes[0] == "second: left whole: its weight is frozen (requires_grad False)"
    assert "first: filters stay: coupled with 'second', which is frozen" in profile.notes
    assert profile.groups.excluded["second"] == "its weight is frozen (requires_grad False)"


def test_groups_without_a_frozen_layer_stay() -> None:
    model = frozen("head")
    groups = without_frozen(model, find_groups(model, data(1).x))
    assert frozen_layers(model, groups) == ("head",)
    assert list(groups.groups) == ["first"]
    assert groups.excluded["second"] == "coupled with 'head', which is frozen"


def test_a_network_that_is_frozen_throughout_is_one_line() -> None:
    with pytest.raises(UserError, match=r"all 3 chosen layers are frozen, 'first' first: requires_grad_\(True\)"):
        profile_network(job(), frozen("first", "second", "head"), data(1).x)


def test_frozen_weights_do_not_move_while_the_others_are_pruned() -> None:
    model = frozen("head")
    before = model.head.weight.detach().clone()
    groups = without_frozen(model, find_groups(model, data(1).x))
    done = prune(
        model,
        PruningPlan({"first": {"filter": 0.5}}),
        train_batches=prepare(task(lambda: model)).train_batches,
        groups=groups,
        admm=AdmmSettings(iterations=1),
        finetune=FinetuneSettings(epochs=1),
    )
    assert torch.equal(done.model.head.weight, before)  # type: ignore[union-attr, arg-type]
    assert done.model.first.weight.shape[0] == 4  # type: ignore[union-attr, operator, index]


def test_a_frozen_norm_holds_no_filter_and_keeps_its_values() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    norm = model[1].requires_grad_(False)
    nn.init.uniform_(norm.weight)  # type: ignore[arg-type]
    groups = without_frozen(model, find_groups(model, data(1).x))
    assert list(groups.groups) == ["0"]
    done = prune(
        model,
        PruningPlan({"0": {"filter": 0.5}}),
        train_batches=prepare(task(lambda: model)).train_batches,
        groups=groups,
        admm=AdmmSettings(iterations=1),
        finetune=FinetuneSettings(epochs=1),
    )
    left = done.model[1].weight  # type: ignore[index]
    assert left.shape == (4,)
    assert torch.isin(left, norm.weight).all()  # type: ignore[arg-type]
