"""CIFAR-10's batches: read as NumPy and Python of any age wrote them, refused where they hold more than data."""

from __future__ import annotations

import pickle
import re
import runpy
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from search.errors import UserError
from search.job_file import load_job
from search.tasks import check_task, load_task, prepare
from search.tasks.cifar10 import NETWORKS, TRAINING_BATCHES, task
from search.tasks.cifar_files import FOLDER, SOURCE, load_plain, read_batch, read_split
from search.tasks.dense import build_model
from search.tasks.networks import CifarResNet
from tests.search.real_data import real_data

EXAMPLE = Path(__file__).parents[2] / "examples" / "cifar10.yaml"
SAMPLES = 40
"""In each of the six batches."""
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (SAMPLES * 6, 3072), dtype=np.uint8)
LABELS = np.arange(SAMPLES * 6) % 10


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batch(number: int) -> dict[Any, Any]:
    rows = slice(number * SAMPLES, (number + 1) * SAMPLES)
    return {b"batch_label": b"a batch", b"labels": LABELS[rows].tolist(), b"data": PIXELS[rows]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / FOLDER).mkdir()
    for number, name in enumerate((*TRAINING_BATCHES, "test_batch")):
        (tmp_path / FOLDER / name).write_bytes(pickle.dumps(batch(number), 4))
    return tmp_path


def save(tmp_path: Path, content: object, protocol: int = 4) -> Path:
    path = tmp_path / "data_batch_1"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


def as_python_2_wrote_it(pixels: np.ndarray[Any, Any], labels: list[int]) -> bytes:
    """The opcodes of the published files: protocol 2, byte strings, `numpy.core`."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = (
        b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
        b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
        b"(" + number(1) + number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86" + dtype + b"\x89"
        b"" + text(pixels.tobytes()) + b"tb"
    )
    entries = text(b"labels") + b"](" + b"".join(number(label) for label in labels) + b"e" + text(b"data") + array
    return b"\x80\x02}(" + entries + b"u."


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("labels", [list, np.int64, np.uint8, ">i4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_reads_what_numpy_writes(tmp_path: Path, protocol: int, labels: Any, order: Any) -> None:
    ours = LABELS[:SAMPLES].tolist() if labels is list else LABELS[:SAMPLES].astype(labels)
    path = save(tmp_path, {"data": np.asarray(PIXELS[:SAMPLES], order=order), "labels": ours}, protocol)
    pixels, read = read_batch(path)
    assert np.array_equal(pixels, PIXELS[:SAMPLES])
    assert np.array_equal(read, LABELS[:SAMPLES])
    assert (pixels.dtype, read.dtype) == (np.uint8, np.int64)


def test_reads_what_python_2_wrote(tmp_path: Path) -> None:
    content = as_python_2_wrote_it(PIXELS[:SAMPLES], LABELS[:SAMPLES].tolist())
    theirs = pickle.loads(content, encoding="bytes")
    assert np.array_equal(theirs[b"data"], PIXELS[:SAMPLES])
    pixels, labels = read_batch(save(tmp_path, content))
    assert np.array_equal(pixels, PIXELS[:SAMPLES])
    assert np.array_equal(labels, LABELS[:SAMPLES])


def test_batches_follow_each_other_with_channels_apart(folder: Path) -> None:
    for place in (folder, folder / FOLDER):
        split = read_split(place, TRAINING_BATCHES)
        assert np.array_equal(split.images, PIXELS[: 5 * SAMPLES].reshape(-1, 3, 32, 32))
        assert np.array_equal(split.labels, LABELS[: 5 * SAMPLES])


class Calls:
    """Pickled as a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (exec, ("raise SystemExit('ran')",), r"(builtins|__builtin__)\.exec"),
        (__import__, ("this",), r"(builtins|__builtin__)\.__import__"),
        (getattr, (np, "load"), r"(builtins|__builtin__)\.getattr"),
        (runpy.run_path, ("/tmp/x",), r"runpy\.run_path"),
        (np.load, ("/tmp/x",), r"numpy\.load"),
        (bytearray, (10,), r"(builtins|__builtin__)\.bytearray"),
        (torch.load, ("/tmp/x",), r"torch(\.serialization)?\.load"),
    ],
)
def test_a_pickle_that_calls_is_refused_by_name(
    tmp_path: Path, protocol: int, function: Callable[..., Any], arguments: tuple[Any, ...], name: str
) -> None:
    arguments = tuple("numpy" if part is np else part for part in arguments)
    path = save(tmp_path, {b"data": Calls(function, *arguments), b"labels": [0]}, protocol)
    with pytest.raises(UserError, match=rf"data_batch_1: refused: it names '{name}', which a data file has no use for"):
        read_batch(path)


def test_what_is_refused_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wicked_module_of_a_test.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for content in (
        b"\x80\x04\x8c\x17wicked_module_of_a_test\x8c\x01f\x93.",
        b"cwicked_module_of_a_test\nf\n.",
        b"(iwicked_module_of_a_test\nf\n.",
    ):
        with pytest.raises(UserError, match=r"it names 'wicked_module_of_a_test\.f',"):
            read_batch(save(tmp_path, content))
    assert "wicked_module_of_a_test" not in sys.modules


def test_an_admitted_name_cannot_be_walked_through(tmp_path: Path) -> None:
    content = b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93."
    with pytest.raises(UserError, match=r"it names 'numpy\.dtype\.__init__'"):
        read_batch(save(tmp_path, content))


def test_a_refused_name_is_shown_as_text(tmp_path: Path) -> None:
    content = b"\x80\x04\x8c\x06\x1b[2Jos" + b"X" + struct.pack("<I", 500) + b"f" * 500 + b"\x93."
    with pytest.raises(UserError, match=r"it names '\\x1b\[2Jos\.f{72,76}', which"):
        read_batch(save(tmp_path, content))


def test_containers_and_numbers_come_back_as_they_were() -> None:
    found = load_plain(pickle.dumps({"a": PIXELS[:2], "b": [1, {"c": (2.5, None, "x", b"y", {3})}]}))
    assert isinstance(found, dict)
    assert np.array_equal(found["a"], PIXELS[:2])
    assert found["b"] == [1, {"c": (2.5, None, "x", b"y", {3})}]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", ["f8", "U4", "M8[s]", "O", "?"])
def test_arrays_of_anything_but_whole_numbers_are_refused(protocol: int, kind: str) -> None:
    with pytest.raises(ValueError, match=r"where whole numbers are expected|without its bytes"):
        load_plain(pickle.dumps({"data": np.zeros(3, kind)}, protocol))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({b"labels": [0]}, "LookupError: \"it has no entry 'data'\"|it has no entry 'data'"),
        ([1, 2], "it holds a list, not a dictionary"),
        (b"", "not a batch of CIFAR-10"),
        (b"no pickle at all", "not a batch of CIFAR-10"),
        (pickle.dumps(batch(0), 4)[:-2000], "not a batch of CIFAR-10 .*truncated|ran out of input"),
        ({b"data": PIXELS[:3, :-1], b"labels": [0, 1, 2]}, r"must be uint8 \[samples, 3072\], got uint8 \[3, 3071\]"),
        ({b"data": PIXELS[:3].astype(int), b"labels": [0, 1, 2]}, r"must be uint8 \[samples, 3072\], got int64"),
        ({b"data": PIXELS[:3], b"labels": [0, 1]}, r"one for each of the 3 images, got int64 \[2\]"),
        ({b"data": PIXELS[:3], b"labels": [0, 1, 0.5]}, "whole numbers, one for each of the 3 images, got float64"),
        ({b"data": PIXELS[:0], b"labels": []}, "one for each of the 0 images"),
        ({b"data": PIXELS[:3], b"labels": [0, 1, 10]}, r"must lie in 0\.\.9, found 10"),
        ({b"data": PIXELS[:3], b"labels": [0, -1, 1]}, r"must lie in 0\.\.9, found -1"),
        ({b"data": PIXELS[:3], b"fine_labels": [0, 1, 1]}, "it has no entry 'labels'"),
    ],
)
def test_a_damaged_batch_is_named_with_its_source(tmp_path: Path, content: object, message: str) -> None:
    path = save(tmp_path, content)
    with pytest.raises(UserError, match=message) as caught:
        read_batch(path)
    assert str(path) in str(caught.value)
    assert SOURCE in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "no/such"}, rf"\S*/no/such is not a folder: download and unpack {re.escape(SOURCE)}"),
        ({"network": "resnet-19"}, "task_args.network: there is no 'resnet-19': did you mean 'resnet-1"),
        ({"network": "lenet-5"}, "there is resnet-20, resnet-56, resnet-18, vgg-16-bn|did you mean"),
        ({"augment": 1}, "task_args.augment: must be true or false, got 1"),
        ({"limit": True}, "task_args.limit: must be at least 100 images"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(folder: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task(**{"data": str(folder), **arguments})  # type: ignore[arg-type]


def test_a_missing_batch_is_named(folder: Path) -> None:
    (folder / FOLDER / "data_batch_4").unlink()
    with pytest.raises(UserError, match=rf"holds no {FOLDER}/data_batch_4: download and unpack"):
        task(str(folder))


def test_task_holds_out_a_stratified_tenth(folder: Path) -> None:
    made = load_task("search.tasks.cifar10:task", {"data": str(folder), "epochs": 2}, folder)
    prepared = prepare(made)
    assert (prepared.train_size, len(made.val), len(made.test)) == (180, 20, 40)  # type: ignore[arg-type]
    assert torch.bincount(made.val.y).tolist() == [2] * 10  # type: ignore[union-attr]
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    pixels = torch.from_numpy(PIXELS[5 * SAMPLES :]).view(-1, 3, 32, 32).float() / 255
    expected = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(made.test.x, expected)  # type: ignore[union-attr]
    first = [next(iter(prepared.train_batches(epoch)))[0] for epoch in (0, 0, 1)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    model = build_model(prepared)
    assert isinstance(model, CifarResNet)
    check_task(prepared, model)
    assert made.dense is not None
    assert (made.dense.epochs, made.dense.lr, made.dense.min_accuracy) == (2, 0.1, None)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_takes_the_images(folder: Path, network: str) -> None:
    made = task(str(folder), network, limit=100, augment=False)
    assert (len(made.train), len(made.val), len(made.test)) == (90, 10, 40)  # type: ignore[arg-type]
    model = made.model().eval()
    with torch.no_grad():
        scores = model(made.train.x[:2])  # type: ignore[union-attr]
    assert scores.shape == (2, 10)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) >= 13


def test_the_example_is_a_job_whose_task_is_accepted(folder: Path) -> None:
    job = load_job(EXAMPLE)
    made = load_task(job.task, {**job.task_args, "data": str(folder)}, job.folder)
    assert made.dense is not None
    assert made.dense.epochs == 200
    modules = dict(made.model().named_modules())
    assert all(name in modules for name in job.layers.exclude)


@pytest.mark.data
@pytest.mark.slow
def test_the_real_batches_give_the_published_sizes(tmp_path: Path) -> None:
    unpack = real_data("cifar10", SOURCE) / "unpack.py"
    if unpack.is_file():
        pytest.importorskip("PIL", reason="unpacking CIFAR-10 from WebP strips needs Pillow: pip install pillow")
        runpy.run_path(str(unpack))["main"](tmp_path)
    made = task(str(tmp_path if unpack.is_file() else unpack.parent))
    assert (len(made.train), len(made.val), len(made.test)) == (45_000, 5_000, 10_000)  # type: ignore[arg-type]
    assert torch.bincount(made.val.y).tolist() == [500] * 10  # type: ignore[union-attr]
    assert float(made.train.x.mean(dim=(0, 2, 3)).abs().max()) < 3e-3  # type: ignore[union-attr]
    assert float((made.train.x.std(dim=(0, 2, 3)) - 1).abs().max()) < 5e-3  # type: ignore[union-attr]
