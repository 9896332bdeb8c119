"""Work of a plan from widths: that of the network the plan leads to, and fast enough to be asked by thousands."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from admm.groups import find_groups
from admm.shapes import shaped_by_magnitude
from evaluators import export_onnx
from evaluators.lowering import choices, force
from evaluators.work import module_work, onnx_work
from search.plan_work import PlanWork
from search.space import Space, build_space
from search.tasks.networks import CIFAR_INPUT, resnet20
from tests.admm.plans import groups_of, random_model
from tests.admm.test_widths import EXACT
from tests.admm.zoo import ZOO

torch.set_num_threads(1)


def space_of(name: str, structures: tuple[str, ...], align: int = 1) -> Space:
    model, groups = ZOO[name].factory(), groups_of(name)
    return build_space(model, groups, groups.layers, structures, least=0.0, most=0.9, step=0.1, align=align)[0]


def drawn(space: Space, rng: random.Random) -> dict[str, int]:
    return {d.name: rng.randrange(len(d.sparsities)) for d in space.dimensions}


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(EXACT),
    seed=st.integers(0, 9),
    align=st.sampled_from([1, 2]),
    blocks=st.sampled_from([(1, None), (4, 2), (16, 4)]),
)
def test_filters_are_those_of_the_shaped_network(
    name: str, seed: int, align: int, blocks: tuple[int, int | None]
) -> None:
    model, groups, example = random_model(name, seed), groups_of(name), ZOO[name].example_input.double()
    space, rng, (block, depthwise) = space_of(name, ("filter",), align), random.Random(seed), blocks
    work = PlanWork(model, groups, space, example, align=align, block=block, depthwise=depthwise)
    assert work.dense == module_work(model, example, block, depthwise=depthwise)
    for _ in range(3):
        params = drawn(space, rng)
        small = shaped_by_magnitude(model, groups, space.plan(params), align=align)
        assert work(params) == module_work(small, example, block, depthwise=depthwise)
        assert work(params) == work(params), "remembered"


@pytest.mark.parametrize("name", ["concat", "concat_residual", "dense_concat", "concat_depthwise", "unet"])
def test_a_concatenation_is_exact_alone_and_near_with_others(name: str) -> None:
    groups, example = groups_of(name), ZOO[name].example_input.double()
    space = space_of(name, ("filter",))
    errors = []
    for seed in range(6):
        model, rng = random_model(name, seed), random.Random(seed)
        work = PlanWork(model, groups, space, example, align=1, block=1)
        for d in space.dimensions:
            alone = {o.name: 0 for o in space.dimensions} | {d.name: rng.randrange(len(d.sparsities))}
            assert work(alone) == module_work(shaped_by_magnitude(model, groups, space.plan(alone)), example, 1)
        params = drawn(space, rng)
        real = module_work(shaped_by_magnitude(model, groups, space.plan(params)), example, 1)
        errors.append(abs(work(params).macs / real.macs - 1.0))
    assert max(errors) < 0.15
    assert sum(errors) / len(errors) < 0.05


@pytest.mark.parametrize("name", ["wide_chain", "residual", "conv1d", "flatten_spatial"])
def test_channels_go_with_the_filters_that_nobody_reads(name: str) -> None:
    groups, example = groups_of(name), ZOO[name].example_input.double()
    space = space_of(name, ("filter", "channel"))
    errors = []
    for seed in range(12):
        model, rng = random_model(name, seed), random.Random(seed)
        params = drawn(space, rng)
        work = PlanWork(model, groups, space, example, align=1, block=1)(params)
        real = module_work(shaped_by_magnitude(model, groups, space.plan(params)), example, 1)
        errors.append(abs(work.macs / real.macs - 1.0))
    assert sum(errors) / len(errors) < 0.08


def test_columns_count_as_the_rewritten_file_does(tmp_path: Path) -> None:
    """One layer with most columns gone: the one-hot form of the file itself is what is counted."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 3))
    example = torch.randn(1, 16, 20, 20)
    groups = find_groups(model, example)
    space, _ = build_space(model, groups, ("2",), ("shape",), least=0.0, most=0.9, step=0.1, align=16)
    plain, lowered = (
        PlanWork(model, groups, space, example, align=16, block=16, rewritten=rewritten) for rewritten in (False, True)
    )
    last = {"2/shape": len(space.dimensions[0].sparsities) - 1}
    assert plain(last).macs == plain.dense.macs
    small = shaped_by_magnitude(model, groups, space.plan(last), align=16)
    file = export_onnx(small, example, tmp_path / "shape.onnx").read_bytes()
    assert "one-hot" in choices(file)["2"]
    assert lowered(last) == onnx_work(force(file, {"2": "one-hot"}), 16)
    works = [lowered({"2/shape": step}).macs for step in range(len(space.dimensions[0].sparsities))]
    assert works[0] == plain.dense.macs
    assert works[-1] < 0.5 * works[0]


def test_a_resnet_is_asked_by_thousands_without_running_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No clock: after the tables are made, nothing is run or pruned any more."""
    model, example = resnet20().eval(), torch.zeros(1, *CIFAR_INPUT)
    groups = find_groups(model, example)
    space, _ = build_space(model, groups, groups.layers, ("filter",), least=0.0, most=0.9, step=0.1, align=4)
    work, rng = PlanWork(model, groups, space, example, align=4, block=4), random.Random(0)
    monkeypatch.setattr(torch.nn.Module, "__call__", None)
    for _ in range(2000):
        assert work(drawn(space, rng)).macs <= work.dense.macs
