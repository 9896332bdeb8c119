"""Files that somebody made to do harm: each is one clear line, before it costs memory or time."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from admm.bounded import read_bounded, weight_bytes
from admm.compact import PLAN_FILE, WEIGHTS_FILE, load_pruned, plain_state
from admm.errors import PlanError, PruneError
from admm.plan import PruningPlan
from evaluators.errors import EvaluationError
from search.bench import load_dense
from search.errors import UserError
from search.payload import Payload, dense_payload
from search.store import StoreError
from search.study import open_study


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def one_line(caught: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(caught.value)
    assert text
    assert "\n" not in text
    assert len(text) < 2000
    return text


def too_large(path: Path) -> None:
    """Sparse: a terabyte that takes no place."""
    with path.open("wb") as file:
        file.truncate(2**40)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def blocking(path: Path) -> None:
    os.mkfifo(path)


def huge_header(path: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")


def lying_shape(path: Path) -> None:
    header = json.dumps({"0.weight": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)


def truncated(path: Path) -> None:
    path.write_bytes(save(plain_state(net()))[:-40])


def a_pickle(path: Path) -> None:
    torch.save(net().state_dict(), path)


WEIGHTS: list[Callable[[Path], None]] = [
    too_large, endless, blocking, huge_header, lying_shape, truncated, a_pickle,
]  # fmt: skip


@pytest.mark.parametrize("make", WEIGHTS, ids=lambda make: make.__name__)
def test_weights(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / WEIGHTS_FILE)
    plan = {"schema": 1, "kept": {}, "requested": {}, "effective": {}}
    (tmp_path / PLAN_FILE).write_text(json.dumps(plan))
    readers: list[tuple[type[Exception], Callable[[], object]]] = [
        (PruneError, lambda: load_pruned(net(), tmp_path)),
        (UserError, lambda: load_dense(tmp_path / WEIGHTS_FILE, net())),
        (EvaluationError, lambda: Payload.of_trial(tmp_path, "torch-cpu")),
        (EvaluationError, lambda: dense_payload(tmp_path / WEIGHTS_FILE)),
    ]
    for error, read in readers:
        with pytest.raises(error) as caught:
            read()
        one_line(caught)


def test_good_weights_are_within_the_bound(tmp_path: Path) -> None:
    model = net()
    (tmp_path / WEIGHTS_FILE).write_bytes(save(plain_state(model)))
    assert (tmp_path / WEIGHTS_FILE).stat().st_size <= weight_bytes(model)
    load_dense(tmp_path / WEIGHTS_FILE, net())


def test_a_file_that_grows_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    assert read_bounded(path, 8) == b"12345678"
    with pytest.raises(OSError, match="it holds 8 bytes, at most 7 make sense"):
        read_bounded(path, 7)


PLANS = [
    "",
    "{",
    "[" * 100_000,
    '{"a":' * 100_000,
    "1e999",
    '{"conv": {"filter": 1e999}}',
    '{"conv": {"filter": NaN}}',
    '{"conv": {"filter": -1}}',
    '{"conv": {"filter": 1' + "0" * 10_000 + "}}",
    '{"conv": {"filter": "0.5"}}',
    '{"conv": {"filter": true}}',
    '{"conv": {"filter": 0.5}, "conv": {"filter": 0.1}}',
    '{"conv": {"__class__": 0.5}}',
    '{"conv": [0.5]}',
    '{"\\u0000": 3}',
    '{"requested": {"conv": 1}, "kept": {}}',
]


@pytest.mark.parametrize("text", PLANS, ids=lambda text: text[:24])
def test_plans(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        PruningPlan.from_json(text)
    one_line(caught)


KEPT = [
    {"0": 3}, {"0": {"filters": [10**30]}}, {"0": {"filters": [-1]}}, {"0": {"filters": list(range(9))}},
    {"0": {"filters": [0, 0]}}, {"0": {"filters": []}}, {"../x": {"filters": [0]}}, [1], "x", None,
    {"0": {"filters": [0.5]}}, {"0": {"filters": [True]}}, {"0": {"filters": "abc"}}, {"0": {"evil": [0]}},
]  # fmt: skip


@pytest.mark.parametrize("kept", KEPT, ids=repr)
def test_what_a_plan_says_is_kept(tmp_path: Path, kept: object) -> None:
    (tmp_path / WEIGHTS_FILE).write_bytes(save(plain_state(net())))
    (tmp_path / PLAN_FILE).write_text(json.dumps({"schema": 1, "kept": kept, "requested": {}, "effective": {}}))
    with pytest.raises(PruneError) as caught:
        load_pruned(net(), tmp_path)
    one_line(caught)


@pytest.mark.parametrize("make", [too_large, endless, blocking], ids=lambda make: make.__name__)
def test_a_plan_file_that_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / PLAN_FILE)
    with pytest.raises(PruneError) as caught:
        load_pruned(net(), tmp_path)
    assert "no regular file" in one_line(caught) or "make sense" in one_line(caught)


def other_tables(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("create table studies (study_id text)")
        database.execute("create table version_info (x text)")


def torn_database(path: Path) -> None:
    open_study(f"sqlite:///{path}", "one")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])


def no_database(path: Path) -> None:
    path.write_text("hello, this is no database at all\n" * 100)


@pytest.mark.parametrize("make", [other_tables, torn_database, no_database, endless], ids=lambda make: make.__name__)
def test_studies(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "study.db"
    make(path)
    with pytest.raises(StoreError) as caught:
        open_study(f"sqlite:///{path}", "one")
    assert f"the study {path} cannot be" in one_line(caught)


@pytest.mark.parametrize(
    "line",
    ['"text"', '{"op_code": 99}', '{"op_code": "x"}', "{}", "[1]", '{"op_code": 0}', "\x00\x01"],
)
def test_journals(tmp_path: Path, line: str) -> None:
    path = tmp_path / "study.log"
    path.write_text(line + "\n")
    with pytest.raises(StoreError) as caught:
        open_study(f"journal:{path}", "one")
    assert f"the study {path} cannot be" in one_line(caught)
