"""What each layer computes agrees with what the whole graph computes, and with the modules it came from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from evaluators import export_onnx
from evaluators.errors import EvaluationError
from evaluators.layer_macs import layer_macs
from evaluators.work import onnx_work


class Net(nn.Module):
    """Grouped, transposed and depthwise convolutions, and linear layers over two and three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4, padding=1)
        self.deep = nn.Conv2d(12, 12, 3, groups=12, padding=1)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.tokens = nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.deep(self.grouped(self.stem(x).relu())))
        x = self.tokens(x.flatten(2).transpose(1, 2))
        return self.head(x.mean(1))


def test_layers_have_their_width_and_the_sum_is_the_graphs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = export_onnx(Net().eval(), torch.randn(1, 3, 10, 10), tmp_path / "net.onnx")
    rows = {row.name: row for row in layer_macs(path)}
    assert list(rows) == ["stem", "grouped", "deep", "up", "tokens", "head"]
    widths = {name: (row.filters, row.channels, row.kernel, row.groups) for name, row in rows.items()}
    assert widths == {
        "stem": (8, 3, 9, 1),
        "grouped": (12, 2, 9, 4),
        "deep": (12, 1, 9, 12),
        "up": (6, 12, 4, 1),
        "tokens": (5, 6, 1, 1),
        "head": (4, 5, 1, 1),
    }
    assert rows["stem"].weights == 8 * 27
    assert [row.macs for row in rows.values()] == [
        8 * 27 * 100,
        12 * 18 * 100,
        12 * 9 * 100,
        6 * 48 * 100,
        30 * 400,
        20,
    ]
    assert sum(row.macs for row in rows.values()) == onnx_work(path, 1).macs


def test_a_layer_called_twice_counts_twice(tmp_path: Path) -> None:
    layer = nn.Linear(4, 4)
    path = export_onnx(nn.Sequential(layer, nn.ReLU(), layer).eval(), torch.randn(1, 4), tmp_path / "net.onnx")
    (row,) = layer_macs(path.read_bytes())
    assert row.macs == 2 * 16


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="not an ONNX model"):
        layer_macs(b"torn")
    with pytest.raises(EvaluationError, match="cannot read"):
        layer_macs(tmp_path / "absent.onnx")
