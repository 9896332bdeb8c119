"""The channel block from synthetic staircases, and its cache; no test measures anything real."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from evaluators.accuracy import OnnxPredictor
from evaluators.blocks import (
    BLOCKS,
    ChannelBlock,
    block_key,
    block_of,
    cache_folder,
    find_block,
    measure_block,
)
from evaluators.errors import RigError
from evaluators.measurement import DeviceStamp, Measurement
from evaluators.ort_session import open_session, random_inputs
from evaluators.staircase import staircase_module, staircase_onnx
from evaluators.work import module_work, onnx_work

STAMP = DeviceStamp(
    rig="fake", device="d", isa="i", runtime="r 1", provider="p", threads=1, batch=1, clock="wall", platform="Linux 1"
)


class Device:
    """A device with a block: time = overhead + width in whole blocks, `odd` more off multiples of four, and noise."""

    def __init__(
        self,
        block: int,
        depthwise: int | None = None,
        *,
        overhead: float = 0.1,
        odd: float = 0.0,
        noise: float = 0.0,
        seed: int = 0,
        stamp: DeviceStamp = STAMP,
    ) -> None:
        self.blocks = {3: block, 1: block if depthwise is None else depthwise}
        self.overhead, self.odd, self.noise, self.stamp = overhead, odd, noise, stamp
        self.rng = np.random.default_rng(seed)
        self.calls = 0

    def seconds(self, model: bytes) -> float:
        first = onnx.load_model_from_string(model).graph.initializer[0].dims
        width, block = first[0], self.blocks[first[-1]]
        return self.overhead + math.ceil(width / block) * block / 64 + (self.odd if width % 4 else 0.0)

    def __call__(self, candidate: bytes, reference: bytes) -> Measurement:
        self.calls += 1
        speedup = self.seconds(reference) / self.seconds(candidate) * math.exp(self.noise * self.rng.uniform(-1, 1))
        figures = {f"{name}_ms": 1.0 for name in ("latency", "latency_low", "latency_high", "dense_latency")}
        return Measurement(
            **figures,
            speedup=speedup,
            speedup_low=speedup,
            speedup_high=speedup,
            wall_p50_ms=None,
            wall_p95_ms=None,
            wall_min_ms=None,
            pairs=9,
            rejected=0,
            converged=True,
            seconds=0.1,
            stamp=self.stamp,
        )


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("odd", [0.0, 0.3])
def test_the_block_is_found(block: int, odd: float) -> None:
    device = Device(block, odd=odd if block > 1 else 0.0)
    found = measure_block(device)
    assert (found.block, found.depthwise, found.note) == (block, block, "")
    assert device.calls <= 26
    assert found.points["conv3x3"][64] == 1.0
    assert found.stamp == block_key(STAMP, 1)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("seed", range(8))
def test_three_per_cent_of_noise_do_not_hide_it(block: int, seed: int) -> None:
    found = measure_block(Device(block, noise=0.03, seed=seed))
    assert (found.block, found.depthwise) == (block, block)


def test_depthwise_has_a_block_of_its_own() -> None:
    found = measure_block(Device(16, 8))
    assert (found.block, found.depthwise) == (16, 8)


def test_the_staircase_measured_on_an_avx512_processor() -> None:
    conv = {20: 0.51, 24: 0.513, 28: 0.505, 36: 0.749, 40: 0.753, 44: 0.764, 48: 0.741, 56: 0.998, 64: 1.0, 80: 1.273}
    depthwise = {20: 0.55, 24: 0.54, 28: 0.55, 36: 0.78, 40: 0.77, 44: 0.78, 48: 0.77, 56: 1.0, 64: 1.0, 80: 1.22}
    for times in (conv, depthwise):
        # Off multiples of four it is another kernel, which may be slower or faster.
        for extra in ({}, {17: 0.445, 33: 0.719}, {17: 1.108, 34: 1.962}):
            assert find_block({**times, **extra}).block == 16


def test_one_wild_point_decides_nothing() -> None:
    times = {w: 0.1 + math.ceil(w / 16) for w in (20, 24, 28, 36, 40, 44, 48, 56, 64, 80)}
    for wild in times:
        assert find_block({**times, wild: times[wild] * 1.4}).block == 16, wild


def test_where_width_is_free_the_block_is_one_and_that_is_said() -> None:
    device = Device(16, overhead=50.0, noise=0.02)
    found = measure_block(device)
    assert (found.block, found.depthwise) == (1, 1)
    assert "costs next to nothing" in found.note
    assert device.calls == 18


def test_times_that_no_block_explains_are_said_to_be_so() -> None:
    times = {20: 1.0, 24: 2.0, 28: 1.0, 36: 2.0, 40: 1.0, 44: 2.0, 48: 1.5, 56: 3.0, 64: 1.5, 80: 3.0}
    assert "explains the times only to" in find_block(times).note


@pytest.mark.parametrize("kind", ["conv3x3", "depthwise"])
@pytest.mark.parametrize("batch", [1, 8, 100])
def test_the_networks_are_valid_and_run(kind: str, batch: int) -> None:
    model = staircase_onnx(kind, 20, batch=batch)
    onnx.checker.check_model(onnx.load_model_from_string(model), full_check=True)
    session = open_session(model)
    inputs = random_inputs(session, batch)
    (output,) = session.run(None, inputs)
    assert output.shape == inputs["input"].shape
    assert np.isfinite(output).all()
    assert output.max() > 0.0
    assert model == staircase_onnx(kind, 20, batch=batch)


def test_json_round_trip() -> None:
    found = measure_block(Device(8, 4))
    assert ChannelBlock.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("block"),
        lambda c: c.update(more=1),
        lambda c: c.update(block=0),
        lambda c: c.update(block=True),
        lambda c: c.update(depthwise="16"),
        lambda c: c.update(points=[1]),
        lambda c: c.update(stamp=None),
    ],
)
def test_damaged_content_is_refused_in_one_line(change: Callable[[dict[str, object]], object]) -> None:
    content = measure_block(Device(8)).to_dict()
    change(content)
    with pytest.raises(ValueError, match=r"^(not a channel block|block|depthwise)[^\n]*$"):
        ChannelBlock.from_dict(content)


def test_one_device_only() -> None:
    device = Device(8)

    def wandering(candidate: bytes, reference: bytes) -> Measurement:
        if device.calls == 5:
            device.stamp = replace(STAMP, device="other")
        return device(candidate, reference)

    with pytest.raises(RigError, match="two devices"):
        measure_block(wandering)


def test_a_hit_measures_nothing(tmp_path: Path) -> None:
    device = Device(16)
    first = block_of(STAMP, device, cache=tmp_path / "new")
    before = device.calls
    assert before > 0
    assert block_of(replace(STAMP, platform="Linux 2", clock="thread_cpu"), device, cache=tmp_path / "new") == first
    assert device.calls == before
    (file,) = (tmp_path / "new").iterdir()
    assert file.suffix == ".json"


@pytest.mark.parametrize(
    "change", [{"rig": "x"}, {"device": "x"}, {"isa": "x"}, {"runtime": "r 2"}, {"threads": 2}, {"batch": 2}]
)
def test_another_device_is_measured_anew(tmp_path: Path, change: dict[str, object]) -> None:
    block_of(STAMP, Device(16), cache=tmp_path)
    other = replace(STAMP, **change)  # type: ignore[arg-type]
    assert block_of(other, Device(8, stamp=other), cache=tmp_path).block == 8
    assert block_of(STAMP, Device(4), cache=tmp_path).block == 16
    assert len(list(tmp_path.iterdir())) == 2


def test_batches_of_one_class_share_a_block(tmp_path: Path) -> None:
    eight, nine = replace(STAMP, batch=8), replace(STAMP, batch=9)
    block_of(eight, Device(16, stamp=eight), cache=tmp_path)
    assert block_of(nine, Device(8, stamp=nine), cache=tmp_path).block == 16
    assert block_of(STAMP, Device(8), batch=8, cache=tmp_path).block == 16
    assert block_key(STAMP, 64) == block_key(STAMP, 500)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"block": 16}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_measured_anew_and_replaced(tmp_path: Path, damage: bytes) -> None:
    block_of(STAMP, Device(16), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert block_of(STAMP, Device(16), cache=tmp_path).block == 16
    assert file.read_bytes() == whole
    assert [f.name for f in tmp_path.iterdir()] == [file.name]


def test_a_file_of_another_stamp_is_not_believed(tmp_path: Path) -> None:
    block_of(STAMP, Device(16), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    content["stamp"]["device"] = "other"
    file.write_text(json.dumps(content))
    assert block_of(STAMP, Device(8), cache=tmp_path).block == 8


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    device = Device(16)
    for _ in range(2):
        assert block_of(STAMP, device, cache=tmp_path / "file" / "folder").block == 16
    assert device.calls == 36


def test_a_rig_elsewhere_is_refused_and_not_filed(tmp_path: Path) -> None:
    with pytest.raises(RigError, match="own rig"):
        block_of(STAMP, Device(16, stamp=replace(STAMP, device="other")), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch", [0, True, 1.5])
def test_an_impossible_batch_is_refused(tmp_path: Path, batch: int) -> None:
    with pytest.raises(ValueError, match="batch must be"):
        block_of(STAMP, Device(16), batch=batch, cache=tmp_path)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PRUNEFRONT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "prunefront"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "prunefront"
    monkeypatch.setenv("PRUNEFRONT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    assert block_of(STAMP, Device(16)).block == 16
    assert len(list((tmp_path / "own").iterdir())) == 1


@pytest.mark.parametrize("kind", ["conv3x3", "depthwise"])
@pytest.mark.parametrize("batch", [1, 8])
def test_the_staircase_of_modules_is_that_of_files(kind: str, batch: int) -> None:
    file = staircase_onnx(kind, 20, batch=batch)
    module, sample = staircase_module(kind, 20, batch=batch)
    assert module(sample).shape == OnnxPredictor(file)(sample).shape
    assert module_work(module, sample, 1) == onnx_work(file, 1)
    again, _ = staircase_module(kind, 20, batch=batch)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


class ModuleDevice(Device):
    """The same device, given modules."""

    def seconds(self, model: Any) -> float:
        first = next(model[0].parameters()).shape
        block = self.blocks[first[-1]]
        return self.overhead + math.ceil(first[0] / block) * block / 64


def test_a_block_is_found_on_a_rig_of_modules_too(tmp_path: Path) -> None:
    found = block_of(STAMP, ModuleDevice(16, 8), cache=tmp_path, network=staircase_module)
    assert (found.block, found.depthwise) == (16, 8)
    assert block_of(STAMP, ModuleDevice(4), cache=tmp_path, network=staircase_module) == found, "from the cache"
