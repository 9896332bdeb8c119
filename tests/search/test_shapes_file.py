"""Files of shapes: cut from the dense one where that is right, exported where it is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from admm.groupmap import GroupMap
from admm.plan import PruningPlan
from admm.shapes import shaped_by_magnitude
from evaluators import check_parity, export_onnx
from search import shapes_file
from search.shapes_file import shapes_onnx
from search.space import build_space
from tests.admm.plans import groups_of, random_model
from tests.admm.zoo import ZOO

#: Plain and residual with norms, concat, depthwise, one dimension, transposed, and a Linear after flatten.
CUT = ("chain", "residual", "concat_residual", "inverted_residual", "conv1d", "transposed", "flatten_spatial")
#: A PReLU's slopes and a Linear on tokens are in the file under other names.
EXPORTED = ("prelu", "linear_on_tokens")
MIXES = (("filter",), ("filter", "channel", "shape"), ("filter", "unstructured"))


@cache
def dense_of(name: str) -> tuple[nn.Module, GroupMap, bytes]:
    """A network of the zoo as if trained, its groups and its file: seconds, once."""
    model = random_model(name, 1).float().eval()
    return model, groups_of(name), shapes_onnx(model, groups_of(name), PruningPlan(), ZOO[name].example_input, 1)


def plan_of(name: str, structures: tuple[str, ...], seed: int) -> PruningPlan:
    model, groups, _ = dense_of(name)
    space, _ = build_space(model, groups, tuple(groups.layers), structures, least=0.0, most=0.7, step=0.1, align=1)
    rng = random.Random(f"{name}/{structures}/{seed}")
    return space.plan({dimension: rng.randrange(size) for dimension, size in space.sizes.items()})


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths that were exported to."""
    made: list[Path] = []

    def counted(module: nn.Module, example: torch.Tensor, path: Path, *, opset: int) -> Path:
        made.append(path)
        return export_onnx(module, example, path, opset=opset)

    monkeypatch.setattr(shapes_file, "export_onnx", counted)
    return made


@pytest.mark.parametrize("name", CUT)
def test_a_file_of_shapes_is_cut_and_says_what_the_small_network_says(name: str, exports: list[Path]) -> None:
    model, groups, dense = dense_of(name)
    exports.clear()
    example = ZOO[name].example_input
    inputs = [
        torch.randn((batch, *example.shape[1:]), generator=torch.Generator().manual_seed(batch)) for batch in (1, 5)
    ]
    for structures in MIXES:
        for seed in range(3):
            plan = plan_of(name, structures, seed)
            content = shapes_onnx(model, groups, plan, example, 1, dense)
            small = shaped_by_magnitude(model, groups, plan)
            assert check_parity(small, content, inputs).require().ok
            held = sum(len(onnx.numpy_helper.to_array(t).nonzero()[0]) for t in _weights(content, model))
            assert held == sum(
                int((p != 0).sum()) for n, p in small.named_parameters() if n.endswith("weight") and p.ndim > 1
            )
    assert not exports


def _weights(content: bytes, model: nn.Module) -> list[onnx.TensorProto]:
    names = {name for name, value in model.named_parameters() if name.endswith("weight") and value.ndim > 1}
    return [t for t in onnx.load_model_from_string(content).graph.initializer if t.name in names]


@pytest.mark.parametrize("name", EXPORTED)
def test_what_the_exporter_renames_is_exported(name: str, exports: list[Path]) -> None:
    model, groups, dense = dense_of(name)
    exports.clear()
    plan = plan_of(name, ("filter",), 0)
    content = shapes_onnx(model, groups, plan, ZOO[name].example_input, 1, dense)
    assert len(exports) == 1
    assert check_parity(shaped_by_magnitude(model, groups, plan), content, [ZOO[name].example_input]).require().ok


@pytest.mark.parametrize("spoil", [lambda _: b"no file", lambda dense: dense.replace(b"2.weight", b"2.w31ght")])
def test_from_a_dense_file_of_another_kind_nothing_is_cut(spoil: Callable[[bytes], bytes], exports: list[Path]) -> None:
    model, groups, dense = dense_of("chain")
    exports.clear()
    plan = plan_of("chain", ("filter",), 0)
    content = shapes_onnx(model, groups, plan, ZOO["chain"].example_input, 1, spoil(dense))
    assert len(exports) == 1
    assert check_parity(shaped_by_magnitude(model, groups, plan), content, [ZOO["chain"].example_input]).require().ok


def test_from_the_file_of_other_weights_nothing_is_cut(exports: list[Path]) -> None:
    _, groups, dense = dense_of("residual")
    exports.clear()
    other = random_model("residual", 2).float().eval()
    content = shapes_onnx(other, groups, plan_of("residual", ("filter",), 0), ZOO["residual"].example_input, 1, dense)
    assert len(exports) == 1
    small = shaped_by_magnitude(other, groups, plan_of("residual", ("filter",), 0))
    assert check_parity(small, content, [ZOO["residual"].example_input]).require().ok
