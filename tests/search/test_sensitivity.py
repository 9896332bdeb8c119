"""The table of sensitivities: what is measured, on which data, what is kept of it, and what becomes of a bad file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from admm.groups import find_groups
from search import sensitivity
from search.errors import UserError
from search.profile import Profile
from search.sensitivity import Damage, Sensitivity, measure_sensitivity, steps_to_measure
from search.space import Dimension, build_space
from search.tasks import Arrays, Task, prepare
from search.tasks.base import PreparedTask

SAMPLES = 96


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 3),
    )  # fmt: skip


def task(**changes: Any) -> PreparedTask:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(SAMPLES) % 3
    x = torch.randn(SAMPLES, 1, 6, 6, generator=generator) + y[:, None, None, None]

    def hidden() -> Any:
        raise AssertionError("neither validation nor test data are read")

    values: dict[str, Any] = {"train": Arrays(x, y), "val": hidden, "test": hidden, "batch_size": 32}
    return prepare(Task(name="made up", model=network, **(values | changes)))


def profile(model: nn.Module, structures: tuple[str, ...] = ("filter", "unstructured")) -> Profile:
    groups = find_groups(model, torch.zeros(1, 1, 6, 6))
    space, notes = build_space(model, groups, groups.layers, structures, least=0.0, most=0.9, step=0.1, align=1)
    return Profile(groups=groups, layers=groups.layers, space=space, notes=tuple(notes))


def measured(prepared: PreparedTask, model: nn.Module, of: Profile, **options: Any) -> Sensitivity:
    return measure_sensitivity(prepared, model, of, align=1, **({"samples": 64} | options))


def test_each_dimension_alone_on_training_data() -> None:
    model = network()
    of, before = profile(model), {n: t.clone() for n, t in model.state_dict().items()}
    model.train()
    state = torch.get_rng_state()
    table = measured(task(), model, of)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert set(table.points) == {d.name for d in of.space.dimensions}
    assert math.isfinite(table.loss)
    assert table.samples == 64
    for d in of.space.dimensions:
        points = table.points[d.name]
        assert 4 <= len(points) <= 6
        assert [p.sparsity for p in points] == [d.sparsities[p.step] for p in points]
        assert points[-1].step == len(d.sparsities) - 1
    # one network without statistics to settle, the others twice over the samples
    networks = sum(len(points) for points in table.points.values())
    assert table.epochs == pytest.approx((1 + 2 * networks) * 64 / SAMPLES / 3.0)
    assert table == measured(task(), model, of), "seeded"


def test_the_loss_is_that_of_the_pruned_network() -> None:
    """One dimension, without statistics to settle: the same by hand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    of = profile(model, ("unstructured",))
    prepared = task(batch_size=SAMPLES)
    table = measured(prepared, model, of, samples=SAMPLES, steps=4)
    x, y = next(iter(prepared.train_batches(0)))
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    for point in table.points["1/unstructured"]:
        keep = math.ceil((1.0 - point.sparsity) * weight.numel() - 1e-4)
        bound = weight.abs().flatten().sort(descending=True).values[keep - 1]
        outputs = F.linear(x.flatten(1), weight * (weight.abs() >= bound), bias)
        assert point.loss == pytest.approx(float(F.cross_entropy(outputs, y)), rel=1e-4)
        assert point.accuracy == pytest.approx(float((outputs.argmax(1) == y).float().mean()))


def test_a_table_is_saved_layer_by_layer_and_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = network(), tmp_path / "sensitivity.json"
    of, whole = profile(model), measured(task(), network(), profile(network()))
    asked: list[str] = []
    real = sensitivity._pruned

    def broken(meter: Any, model: Any, groups: Any, dimension: Dimension, step: int, align: int) -> Damage:
        asked.append(dimension.name)
        if dimension.layer == "3":
            raise KeyboardInterrupt
        return real(meter, model, groups, dimension, step, align)

    monkeypatch.setattr(sensitivity, "_pruned", broken)
    with pytest.raises(KeyboardInterrupt):
        measured(task(), model, of, path=path)
    kept = json.loads(path.read_text())
    assert set(kept["points"]) == {"0/filter", "0/unstructured"}
    monkeypatch.setattr(sensitivity, "_pruned", lambda *a: (asked.append(a[3].name), real(*a))[1])
    asked.clear()
    said: list[str] = []
    table = measured(task(), model, of, path=path, say=said.append)
    assert "0/filter" not in asked
    assert said == [f"sensitivity of layer {i} of 3: {name}" for i, name in ((2, "3"), (3, "8"))]
    assert table.points == whole.points
    assert table.epochs == pytest.approx(whole.epochs), "nothing counts twice"
    asked.clear()
    assert measured(task(), model, of, path=path) == table
    assert asked == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not JSON, perhaps torn"),
        ('{"schema": 1, "key": "', "not JSON, perhaps torn"),
        ("[]", "holds a list, not an object"),
        ('{"schema": 7}', "its schema is 7, not 1"),
        ('{"schema": 1, "key": "x"}', "not a table of sensitivities: KeyError"),
        ('{"schema": 1, "loss": 1, "accuracy": 1, "samples": 1, "epochs": 0, "points": 3}', "not a table of sensit"),
        ('{"schema": 1, "loss": 1, "accuracy": 1, "samples": 1, "epochs": 0, "points": {}}', "it is of other weights"),
        ("\udcff", "not UTF-8 text"),
    ],
)
def test_a_damaged_or_foreign_file_is_measured_again_in_one_line(tmp_path: Path, content: str, says: str) -> None:
    model, path = network(), tmp_path / "sensitivity.json"
    of = profile(model, ("filter",))
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    said: list[str] = []
    table = measured(task(), model, of, path=path, steps=2, say=said.append)
    assert says in said[0]
    assert said[0].endswith(": measured again")
    assert "\n" not in said[0]
    assert measured(task(), model, of, path=path, steps=2) == table


def test_other_weights_space_or_data_are_measured_again(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "sensitivity.json"
    of = profile(model, ("filter",))
    measured(task(), model, of, path=path, steps=2)
    other = network()
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-6  # type: ignore[index]
    x = torch.randn(SAMPLES, 1, 6, 6, generator=torch.Generator().manual_seed(5))
    foreign = task(train=Arrays(x, torch.zeros(SAMPLES, dtype=torch.int64)))
    for change in ((task(), other, of), (task(), model, profile(model, ("filter", "channel"))), (foreign, model, of)):
        before, said = path.read_bytes(), list[str]()
        measured(*change, path=path, steps=2, say=said.append)
        assert said[0].endswith("it is of other weights, another space or other data: measured again")
        path.write_bytes(before)


def test_what_the_users_code_raises_is_one_line() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("no loss today")

    model = network()
    with pytest.raises(UserError, match="task 'made up': measuring a sensitivity: RuntimeError: no loss today"):
        measured(task(loss=loss), model, profile(model))
    with pytest.raises(UserError, match="the dense network's loss is inf on training data"):
        measured(task(loss=lambda o, t: o.sum() * torch.nan), model, profile(model))


CURVES = st.lists(st.floats(-1.0, 5.0) | st.just(math.inf), min_size=1, max_size=6)


@given(losses=CURVES, steps=st.integers(2, 20))
def test_curves_never_fall_and_meet_what_was_measured(losses: list[float], steps: int) -> None:
    sparsities = tuple(round(0.95 * i / steps, 6) for i in range(steps))
    dimension = Dimension(layer="a", structure="filter", sparsities=sparsities)
    at = steps_to_measure(dimension, len(losses))
    points = tuple(
        Damage(step=s, sparsity=sparsities[s], loss=loss, accuracy=0.5) for s, loss in zip(at, losses, strict=False)
    )
    table = Sensitivity(loss=0.5, accuracy=1.0, samples=1, epochs=0.0, points={"a/filter": points})
    curve = table.curve(dimension)
    assert curve[0] == 0.0
    assert len(curve) == steps
    assert all(b >= a for a, b in pairwise(curve))
    assert all(math.isfinite(value) for value in curve)
    highest = 0.0
    for point in points:
        if math.isfinite(point.loss):
            highest = max(highest, point.loss - 0.5)
            assert curve[point.step] >= highest - 1e-12
    again = Sensitivity.from_dict(json.loads(json.dumps(table.to_dict())))
    assert again == table


@given(steps=st.integers(1, 40), first=st.sampled_from([0.0, 0.1]), count=st.integers(1, 6))
def test_steps_spread_over_the_sparsities(steps: int, first: float, count: int) -> None:
    sparsities = tuple(round(first + 0.85 * i / 40, 6) for i in range(steps))
    if sparsities == (0.0,):
        return
    at = steps_to_measure(Dimension(layer="a", structure="filter", sparsities=sparsities), count)
    assert len(at) == min(count, sum(s > 0.0 for s in sparsities))
    assert all(sparsities[s] > 0.0 for s in at)
    if count > 1:
        assert at[-1] == steps - 1
