"""The reference path of the kept-column convolution against the masked one, over every geometry a Conv2d can have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from evaluators import kept_columns_triton
from evaluators.errors import EvaluationError
from evaluators.kept_columns import KeptColumnsConv2d, with_kept_columns
from evaluators.kept_columns_triton import conv_kept_columns

INTERPRETED = bool(os.environ.get("TRITON_INTERPRET")) and kept_columns_triton.triton is not None


def masked(conv: nn.Conv2d, sparsity: float, seed: int) -> nn.Conv2d:
    """`conv` with that fraction of its columns zero in all filters, chosen at random."""
    generator = torch.Generator().manual_seed(seed)
    columns = conv.weight[0].numel()
    order = torch.randperm(columns, generator=generator)
    mask = torch.ones(columns)
    mask[order[: round(sparsity * columns)]] = 0.0
    with torch.no_grad():
        # Values that no float32 sum of a few hundred rounds: agreement is not a matter of the order of sums.
        conv.weight.copy_(torch.randint(-4, 5, conv.weight.shape, generator=generator))
        conv.weight[conv.weight == 0] = 1.0
        conv.weight.mul_(mask.view(conv.weight.shape[1:]))
        if conv.bias is not None:
            conv.bias.copy_(torch.randint(-4, 5, conv.bias.shape, generator=generator))
    return conv


@st.composite
def cases(draw: st.DrawFn) -> tuple[nn.Conv2d, Tensor]:
    """A masked convolution and an input [n, channels, h, w] of small integers that its kernel fits into."""
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding: Any = draw(
        st.one_of(
            st.sampled_from(["same", "valid"]),
            st.tuples(st.integers(0, 4), st.integers(0, 4)),
        )
    )
    stride = (1, 1) if padding == "same" else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    added = padding if isinstance(padding, tuple) else (0, 0)
    least = [max(1, span - 2 * pad) for span, pad in zip(spans, added, strict=True)]
    if padding == "same":
        least = [1, 1]
    size = [draw(st.integers(low, low + 6)) for low in least]
    channels = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**20))
    conv = nn.Conv2d(
        channels,
        draw(st.integers(1, 6)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        bias=draw(st.booleans()),
    )
    conv = masked(conv, draw(st.sampled_from([0.0, 0.3, 0.8, 0.95, 1.0])), seed)
    x = torch.randint(-4, 5, (draw(st.integers(1, 3)), channels, *size), generator=torch.Generator().manual_seed(seed))
    layout = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    return conv, x.float().contiguous(memory_format=layout)


@given(cases())
def test_it_is_the_masked_convolution(case: tuple[nn.Conv2d, Tensor]) -> None:
    conv, x = case
    lean = KeptColumnsConv2d.from_conv(conv)
    with torch.no_grad():
        want, got = conv(x), lean(x)
    assert got.shape == want.shape
    assert torch.equal(got, want)
    assert lean.output_size(x.shape[2], x.shape[3]) == want.shape[2:]
    # Only live columns are kept, in the order that the kernel reads them in.
    alive = int((conv.weight != 0).any(0).sum())
    assert lean.weight.shape == (conv.out_channels, alive)
    assert lean.columns.shape == (3, alive)
    c, i, j = lean.columns.long()
    places = (i * conv.kernel_size[1] + j) * conv.in_channels + c
    assert torch.equal(places, places.unique())


class Pointer:
    """A tensor's memory and places in it, as the kernel's language has them; a place outside must be masked."""

    def __init__(self, tensor: Tensor, places: Any = 0) -> None:
        self.memory = torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,))
        self.tensor = tensor
        self.places = places
        self.dtype = SimpleNamespace(element_ty=tensor.dtype)

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.tensor, self.places + more)


class Language:
    """The part of `triton.language` that the kernel is written in, in torch: one program after the other."""

    constexpr, float32 = int, torch.float32
    program = 0

    def program_id(self, axis: int) -> int:
        assert axis == 0
        return self.program

    def cdiv(self, a: int, b: int) -> int:
        return -(-a // b)

    def arange(self, start: int, end: int) -> Tensor:
        return torch.arange(start, end)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def load(self, pointer: Pointer, mask: Tensor, other: float) -> Tensor:
        found = torch.full(mask.shape, other, dtype=pointer.memory.dtype)
        found[mask] = pointer.memory[pointer.places.expand(mask.shape)[mask]]
        assert not mask.any() or pointer.places.expand(mask.shape)[mask].min() >= 0
        return found

    def store(self, pointer: Pointer, value: Tensor, mask: Tensor) -> None:
        pointer.memory[pointer.places.expand(mask.shape)[mask]] = value[mask]

    def dot(self, a: Tensor, b: Tensor, total: Tensor, input_precision: str) -> Tensor:
        assert input_precision in ("ieee", "tf32")
        assert total.dtype == torch.float32
        return total + a.float() @ b.float()


class StandIn:
    """Launches the kernel's own source in `Language` over every program of the grid."""

    def __init__(self) -> None:
        self.language = Language()

    def cdiv(self, a: int, b: int) -> int:
        return self.language.cdiv(a, b)

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **flags: Any) -> None:
            (programs,) = grid(flags)
            values = [Pointer(value) if isinstance(value, Tensor) else value for value in arguments]
            for self.language.program in range(programs):
                kept_columns_triton._implicit_gemm(*values, **flags)

        return launch


def by_kernel(lean: KeptColumnsConv2d, x: Tensor) -> Tensor:
    with torch.no_grad():
        return conv_kept_columns(
            x,
            lean.weight,
            lean.bias,
            lean.columns,
            output_size=lean.output_size(x.shape[2], x.shape[3]),
            stride=lean.stride,
            padding=(lean.padding[0], lean.padding[2]),
            padded=any(lean.padding),
            dilation=lean.dilation,
        )


@pytest.fixture(scope="class")
def stand_in() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        launcher = StandIn()
        patch.setattr(kept_columns_triton, "triton", launcher)
        patch.setattr(kept_columns_triton, "tl", launcher.language)
        patch.setattr(kept_columns_triton, "_kernel", launcher)
        yield


@pytest.mark.usefixtures("stand_in")
class TestTheKernelsSource:
    """Its places, masks and sums without Triton; that a GPU runs it is for tests/gpu."""

    @settings(max_examples=60)
    @given(cases())
    def test_it_is_the_masked_convolution(self, case: tuple[nn.Conv2d, Tensor]) -> None:
        conv, x = case
        got = by_kernel(KeptColumnsConv2d.from_conv(conv), x)
        assert torch.equal(got, conv(x))
        if x.shape[1] > 1 and x.shape[2:] != (1, 1) and conv.out_channels > 1 and got.shape[2:] != (1, 1):
            assert got.is_contiguous() == x.is_contiguous()

    def test_what_the_kernel_cannot_take_is_one_line(self) -> None:
        lean = KeptColumnsConv2d.from_conv(nn.Conv2d(3, 4, 3))
        for x in (torch.zeros(1, 3, 8, 8).half(), torch.zeros(1, 3, 8, 8).double()):
            with pytest.raises(EvaluationError, match="alike"):
                by_kernel(lean, x)
        huge = torch.zeros(1).expand(1, 3, 30_000, 30_000)
        with pytest.raises(EvaluationError, match="split the batch"):
            by_kernel(KeptColumnsConv2d.from_conv(nn.Conv2d(3, 1, 3, stride=1000)), huge)
        assert by_kernel(lean, torch.zeros(0, 3, 8, 8)).shape == (0, 4, 6, 6)


@pytest.mark.skipif(
    not INTERPRETED, reason="needs triton and TRITON_INTERPRET=1; it checks the arithmetic, not that a GPU runs it"
)
@given(cases())
def test_the_kernel_interpreted_is_the_masked_convolution(case: tuple[nn.Conv2d, Tensor]) -> None:
    conv, x = case
    assert torch.equal(by_kernel(KeptColumnsConv2d.from_conv(conv), x), conv(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_real_numbers_agree_to_the_precision_of_their_type(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 48, 3, padding=1)
    with torch.no_grad():
        conv.weight.mul_((torch.rand(32, 3, 3) > 0.8).float())
    lean = KeptColumnsConv2d.from_conv(conv).to(dtype)
    x = torch.randn(2, 32, 13, 13)
    with torch.no_grad():
        want = conv.double()(x.double())
        error = (lean(x.to(dtype)).double() - want).abs().max() / want.abs().max()
    assert error <= {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    assert lean.sparsity == pytest.approx(0.8, abs=0.1)


def test_gradients_reach_the_kept_weights() -> None:
    conv = masked(nn.Conv2d(3, 4, 3, padding=1), 0.5, 0)
    lean = KeptColumnsConv2d.from_conv(conv)
    x = torch.randn(2, 3, 5, 5)
    conv(x).square().sum().backward()
    lean(x).square().sum().backward()
    assert conv.weight.grad is not None
    c, i, j = lean.columns.long()
    torch.testing.assert_close(lean.weight.grad, conv.weight.grad[:, c, i, j])


def test_it_is_saved_and_read_by_its_state() -> None:
    conv = masked(nn.Conv2d(3, 4, 3), 0.5, 0)
    lean, other = KeptColumnsConv2d.from_conv(conv), KeptColumnsConv2d.from_conv(masked(nn.Conv2d(3, 4, 3), 0.5, 1))
    other.load_state_dict(lean.state_dict())
    x = torch.randn(1, 3, 6, 6)
    assert torch.equal(lean(x), other(x))
    assert other.columns.dtype == torch.int32


def test_a_network_is_converted_in_place() -> None:
    model = nn.Sequential(
        masked(nn.Conv2d(3, 8, 3), 0.5, 0),
        nn.Sequential(nn.ReLU(), masked(nn.Conv2d(8, 8, 3, groups=2), 0.5, 1)),
        nn.Sequential(masked(nn.Conv2d(8, 4, 1), 0.0, 2), masked(nn.Conv2d(4, 4, 3), 0.9, 3)),
    ).eval()
    x = torch.randint(-4, 5, (2, 3, 12, 12)).float()
    want = model(x)
    assert with_kept_columns(model) == ("0", "2.1")
    torch.testing.assert_close(model(x), want)
    assert with_kept_columns(model) == ()


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Linear(3, 2), "Conv2d, got Linear"),
        (nn.Conv1d(3, 2, 1), "Conv2d, got Conv1d"),
        (nn.Conv2d(4, 4, 3, groups=2), "groups=1, got 2"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "zeros, got 'reflect'"),
    ],
)
def test_layers_it_cannot_be_are_refused(layer: Any, words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        KeptColumnsConv2d.from_conv(layer)


def test_inputs_that_do_not_fit_are_refused() -> None:
    lean = KeptColumnsConv2d.from_conv(nn.Conv2d(3, 4, 3))
    for shape in ((3, 8, 8), (1, 4, 8, 8), (1, 3, 2, 8)):
        with pytest.raises(EvaluationError):
            lean(torch.zeros(shape))


def test_without_triton_the_kernel_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_columns_triton, "triton", None)
    with pytest.raises(EvaluationError, match="need the package triton: pip install triton"):
        kept_columns_triton.require_triton()
