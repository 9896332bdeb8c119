"""MNIST's files as users have them, what is said of damaged ones, and the task that is made of them."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional as F

from search.errors import UserError
from search.job_file import load_job
from search.tasks import check_task, load_task, prepare
from search.tasks.augment import crop_and_flip, shift_by
from search.tasks.dense import build_model, train_dense
from search.tasks.idx import SOURCE, read_idx, read_split
from search.tasks.mnist import BLACK, RECIPES, task
from search.tasks.networks import LeNet5, LeNet300
from tests.search.real_data import real_data

EXAMPLE = Path(__file__).parents[2] / "examples" / "mnist.yaml"
TRAIN, TEST = 240, 40
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (TRAIN + TEST, 28, 28), dtype=np.uint8)
LABELS = (np.arange(TRAIN + TEST) % 10).astype(np.uint8)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def idx_bytes(values: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def files() -> dict[str, bytes]:
    return {
        "train-images-idx3-ubyte": idx_bytes(IMAGES[:TRAIN]),
        "train-labels-idx1-ubyte": idx_bytes(LABELS[:TRAIN]),
        "t10k-images-idx3-ubyte": idx_bytes(IMAGES[TRAIN:]),
        "t10k-labels-idx1-ubyte": idx_bytes(LABELS[TRAIN:]),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in files().items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path


@pytest.mark.parametrize(
    ("place", "spelling", "packed"),
    [(".", "{}.gz", True), (".", "{}", False), ("MNIST/raw", "{}", False), ("raw", "{}.gz", True)],
)
def test_reads_the_files_however_they_lie(tmp_path: Path, place: str, spelling: str, packed: bool) -> None:
    for name, content in files().items():
        path = tmp_path / place / spelling.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if packed else content)
    train, test = read_split(tmp_path, "train"), read_split(tmp_path, "t10k")
    assert np.array_equal(train.images[:, 0], IMAGES[:TRAIN])
    assert np.array_equal(train.labels, LABELS[:TRAIN])
    assert np.array_equal(test.images[:, 0], IMAGES[TRAIN:])


def test_reads_the_other_usual_spelling(tmp_path: Path) -> None:
    for name, content in files().items():
        (tmp_path / name.replace("-idx", ".idx")).write_bytes(content)
    assert len(read_split(tmp_path, "train").labels) == TRAIN


def test_holds_out_a_stratified_twelfth_and_keeps_the_test_files_apart(folder: Path) -> None:
    made = task(str(folder))
    assert (len(made.train), len(made.val), len(made.test)) == (220, 20, 40)  # type: ignore[arg-type]
    prepared = prepare(made)
    assert prepared.notes == []
    parts = []
    test = prepared.test_batches()
    assert test is not None
    for batches in (prepared.val_batches(), test):
        pairs = list(batches)
        parts.append((torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])))
    assert torch.bincount(parts[0][1]).tolist() == [2] * 10
    expected = (torch.from_numpy(IMAGES[TRAIN:]).float() / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(parts[1][0][:, 0], expected)
    assert not _rows(parts[0][0]) & _rows(made.train.x)  # type: ignore[union-attr]
    again = list(prepare(task(str(folder)), seed=5).val_batches())
    assert torch.equal(again[0][0], parts[0][0][: len(again[0][0])])


def _rows(x: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x}


@pytest.mark.parametrize(("network", "kind"), [("lenet-300-100", LeNet300), ("lenet-5", LeNet5)])
def test_task_is_trained_by_its_recipe(folder: Path, network: str, kind: type) -> None:
    spec = {"data": str(folder), "network": network, "limit": 120, "epochs": 1, "batch_size": 32}
    made = load_task("search.tasks.mnist:task", spec, folder)
    prepared = prepare(made)
    model = build_model(prepared)
    assert isinstance(model, kind)
    check_task(prepared, model)
    assert made.dense is not None
    assert (made.dense.epochs, made.dense.lr, made.dense.min_accuracy) == (1, RECIPES[network].lr, None)
    before = [p.detach().clone() for p in model.parameters()]
    assert 0.0 <= train_dense(prepared, model, made.dense) <= 1.0
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_limit_takes_the_first_images_of_both_parts(folder: Path) -> None:
    made = task(str(folder), limit=120)
    assert (len(made.train), len(made.val), len(made.test)) == (110, 10, 40)  # type: ignore[arg-type]
    held = {row.argmax() for row in IMAGES[:120].reshape(120, -1)}
    assert {int(row.argmax()) for row in made.train.x.flatten(1)} <= held  # type: ignore[union-attr]


def test_full_size_recipes_ask_for_the_papers_accuracy(folder: Path) -> None:
    for network, least in (("lenet-300-100", 0.984), ("lenet-5", 0.992)):
        recipe = task(str(folder), network).dense
        assert recipe is not None
        assert recipe.min_accuracy == least
    asked = task(str(folder), min_accuracy=0.5, lr=0.01).dense
    assert asked is not None
    assert (asked.min_accuracy, asked.lr) == (0.5, 0.01)


def test_a_batch_depends_on_seed_and_epoch_alone(folder: Path) -> None:
    def first(seed: int, epoch: int) -> torch.Tensor:
        return next(iter(prepare(task(str(folder)), seed=seed).train_batches(epoch)))[0]

    assert torch.equal(first(0, 3), first(0, 3))
    assert not torch.equal(first(0, 3), first(0, 4))
    assert not torch.equal(first(0, 3), first(1, 3))


def test_without_shifts_the_images_stay_as_they_are(folder: Path) -> None:
    made = task(str(folder), shifts=0)
    seen = set().union(*(_rows(x) for x, _ in prepare(made).train_batches(0)))
    assert seen == _rows(made.train.x)  # type: ignore[union-attr]


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(3, 7), st.integers(3, 7)),
    pixels=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_a_shifted_image_is_a_window_of_the_padded_one(
    shape: tuple[int, int, int, int], pixels: int, seed: int
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    shift = shift_by(pixels, fill=BLACK)
    assert shift is not None
    moved = shift(x, torch.Generator().manual_seed(seed))
    height, width = shape[2:]
    for image, got in zip(F.pad(x, (pixels,) * 4, value=BLACK), moved, strict=True):
        span = range(2 * pixels + 1)
        assert any(torch.equal(image[:, i : i + height, j : j + width], got) for i in span for j in span)
    assert torch.equal(moved, shift(x, torch.Generator().manual_seed(seed)))


def test_every_shift_occurs_and_no_other() -> None:
    x = torch.zeros(500, 1, 7, 7)
    x[:, :, 3, 3] = 1.0
    shift = shift_by(1)
    assert shift is not None
    places = {tuple(p) for p in shift(x, torch.Generator().manual_seed(0)).nonzero()[:, 2:].tolist()}
    assert places == {(i, j) for i in (2, 3, 4) for j in (2, 3, 4)}
    assert shift_by(0) is None


def test_crops_are_mirrored_half_of_the_time() -> None:
    x = torch.arange(5.0).expand(400, 2, 5, 5).contiguous()
    changed = crop_and_flip(0)(x, torch.Generator().manual_seed(0))
    mirrored = (changed == x.flip(3)).flatten(1).all(1)
    assert bool((mirrored | (changed == x).flatten(1).all(1)).all())
    assert 150 < int(mirrored.sum()) < 250


Damage = Callable[[Path], None]


def _write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / f"{name}.gz").write_bytes(content) and None


IMAGE_FILE, LABEL_FILE = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / f"{IMAGE_FILE}.gz").unlink(), f"holds no {IMAGE_FILE}.gz, nor the file unpacked: download"),
        (
            _write(IMAGE_FILE, gzip.compress(files()[IMAGE_FILE])[:-400]),
            r"train-images\S*: cannot be read \(Compressed",
        ),
        (_write(IMAGE_FILE, b"\x1f\x8b and no more than that"), r"train-images\S*: cannot be read"),
        (_write(IMAGE_FILE, gzip.compress(files()[LABEL_FILE])), "begins with 00000801 where 00000803 should stand"),
        (_write(IMAGE_FILE, b"<!DOCTYPE html>"), "begins with 3c21444f where 00000803 should stand"),
        (_write(IMAGE_FILE, b""), "begins with nothing where"),
        (_write(IMAGE_FILE, files()[IMAGE_FILE][:-1]), "promises 240 x 28 x 28 bytes, 188159 follow"),
        (_write(IMAGE_FILE, files()[IMAGE_FILE] + b"x"), "promises 240 x 28 x 28 bytes, 188161 follow"),
        (_write(IMAGE_FILE, idx_bytes(IMAGES[:TRAIN, 1:])), "MNIST's images are 28 x 28, these are 27 x 28"),
        (_write(LABEL_FILE, idx_bytes(LABELS[:7])), r"holds 240 images, \S*train-labels\S* 7 labels"),
        (_write(LABEL_FILE, idx_bytes(LABELS[:TRAIN] + np.uint8(1))), r"must lie in 0\.\.9, found 10"),
    ],
)
def test_a_damaged_file_is_named_with_its_source(folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        task(str(folder))
    assert SOURCE in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_files_are_refused(folder: Path) -> None:
    _write(IMAGE_FILE, idx_bytes(IMAGES[:0]))(folder)
    _write(LABEL_FILE, idx_bytes(LABELS[:0]))(folder)
    with pytest.raises(UserError, match="holds no images"):
        task(str(folder))


def test_a_size_beyond_any_memory_is_a_wrong_size(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    path.write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3))
    with pytest.raises(UserError, match="promises 4294967295 x 4294967295 x 4294967295 bytes, 0 follow"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"data": "no/such"},
            r"task_args.data: \S*/no/such is not a folder: download MNIST's four .gz files from http",
        ),
        ({"data": ""}, "task_args.data: must be a folder, got ''"),
        ({"data": 3}, "task_args.data: must be a folder, got 3"),
        ({"data": "~nobody-of-this-name/mnist"}, "give the folder's full path"),
        ({"network": "lenet5"}, "task_args.network: there is no 'lenet5': did you mean 'lenet-5'?"),
        ({"network": "resnet-20"}, "task_args.network: there is no 'resnet-20'"),
        ({"shifts": -1}, r"task_args.shifts: must lie in 0\.\.14 pixels, got -1"),
        ({"shifts": 1.5}, r"task_args.shifts: must lie in 0\.\.14 pixels, got 1.5"),
        ({"limit": 10}, "task_args.limit: must be at least 100 images, or left out for all, got 10"),
        ({"epochs": 0}, "dense.epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(folder: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task(**{"data": str(folder), **arguments})  # type: ignore[arg-type]


def test_data_may_lie_in_the_home_or_beside_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(task(f"~/{folder.name}").val) == 20  # type: ignore[arg-type]
    monkeypatch.chdir(folder.parent)
    assert len(task(folder.name).val) == 20  # type: ignore[arg-type]


def test_the_example_is_a_job_whose_task_is_accepted(folder: Path) -> None:
    job = load_job(EXAMPLE)
    made = load_task(job.task, {**job.task_args, "data": str(folder)}, job.folder)
    assert made.dense == RECIPES["lenet-5"]
    modules = dict(made.model().named_modules())
    assert all(name in modules for name in job.layers.exclude)


@pytest.mark.data
def test_the_real_files_give_the_published_sizes() -> None:
    made = task(str(real_data("mnist", SOURCE)))
    assert (len(made.train), len(made.val), len(made.test)) == (55_000, 5_000, 10_000)  # type: ignore[arg-type]
    counts = torch.bincount(made.val.y) * 12 - torch.bincount(torch.cat([made.val.y, made.train.y]))  # type: ignore[union-attr]
    assert int(counts.abs().max()) <= 12
    assert abs(float(made.train.x.mean())) < 1e-3  # type: ignore[union-attr]
    assert abs(float(made.train.x.std()) - 1.0) < 2e-3  # type: ignore[union-attr]
