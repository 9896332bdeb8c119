"""Files at a URL, in a folder and in memory: what an object store does otherwise is not ours to test."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from pyarrow import fs as arrow

from search.atomic import StoreError
from search.errors import UserError
from search.remote import Remote, is_url, join_url, name_of, without_secrets

_BUCKETS = itertools.count()


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of its own for each test."""
    return f"file://{tmp_path}/runs" if request.param == "file" else f"memory://remote-{next(_BUCKETS)}/runs"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/runs", True),
        ("file:///disk/runs", True),
        ("runs", False),
        ("/disk/runs", False),
        ("C:/runs", False),
        ("runs://", True),
        ("a: //b", False),
    ],
)
def test_a_url_is_told_from_a_path(text: str, expected: bool) -> None:
    assert is_url(text) is expected


def test_a_name_is_joined_before_the_query_and_secrets_are_never_shown() -> None:
    url = "s3://KEY:SECRET@bucket/runs/?endpoint_override=minio:9000&scheme=http"
    joined = join_url(url, "digits-001")
    assert joined == "s3://KEY:SECRET@bucket/runs/digits-001?endpoint_override=minio:9000&scheme=http"
    assert name_of(joined) == "digits-001"
    assert without_secrets(joined) == "s3://bucket/runs/digits-001"


def test_what_is_put_is_there_and_nothing_else(url: str, tmp_path: Path) -> None:
    remote = Remote(url)
    assert remote.names() == []
    assert remote.files() == {}
    assert remote.read("job.yaml") is None
    source = tmp_path / "weights"
    source.write_bytes(bytes(range(256)) * 1000)
    remote.put("trials/3/weights.safetensors", source)
    remote.put("job.yaml", b"first")
    remote.put("job.yaml", b"task: x\n")
    again = Remote(url)
    assert again.names() == ["job.yaml", "trials"]
    assert again.files() == {"job.yaml": 8, "trials/3/weights.safetensors": 256_000}
    assert again.read("job.yaml") == b"task: x\n"
    again.fetch("trials/3/weights.safetensors", tmp_path / "back" / "weights")
    assert (tmp_path / "back" / "weights").read_bytes() == source.read_bytes()
    again.remove("job.yaml")
    again.remove("job.yaml")
    assert remote.names() == ["trials"]


def test_a_source_that_is_gone_is_the_callers_to_judge(url: str, tmp_path: Path) -> None:
    remote = Remote(url)
    with pytest.raises(FileNotFoundError):
        remote.put("weights", tmp_path / "none")
    assert remote.files() == {}


def test_a_file_too_large_to_be_read_whole_is_refused(url: str) -> None:
    remote = Remote(url)
    remote.put("driver.json", b"x" * 5000)
    with pytest.raises(StoreError, match=r"driver\.json: it has 5,000 bytes, 4,096 at most are read"):
        remote.read("driver.json", most=4096)


def test_keys_that_would_leave_the_folder_are_none_of_ours(url: str) -> None:
    remote = Remote(url)
    remote.put("trials/1/result.json", b"{}")
    remote.put("trials/1/.hidden", b"{}")
    remote.put("trials/1/a b", b"{}")
    assert remote.files() == {"trials/1/result.json": 2}
    assert remote._root.startswith("/")
    nasty = {"trials/../../etc/passwd", "../x", "trials//x", "a/./b"}
    remote._fs = _Listing({f"{remote._root}/{name}" for name in nasty | {"trials/2/plan.json"}})  # type: ignore[assignment]
    assert remote.files() == {"trials/2/plan.json": 7}


class _Listing:
    """An object store, whose keys may be any text."""

    def __init__(self, paths: set[str]) -> None:
        self._paths = paths

    def get_file_info(self, selector: object) -> list[arrow.FileInfo]:
        return [arrow.FileInfo(path, type=arrow.FileType.File, size=7) for path in self._paths]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nope://bucket/runs", "nothing opens nope://: give a folder, s3://, gs:// or another scheme of fsspec"),
        ("github://runs", "storage github://runs cannot be opened"),
    ],
)
def test_a_url_that_nothing_opens_is_refused_in_one_line(url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        Remote(url)
    assert "\n" not in str(refused.value)


def test_a_place_that_cannot_be_written_is_a_line_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder is needed")
    remote = Remote(f"file://{tmp_path}/runs")
    with pytest.raises(StoreError, match=rf"cannot write file://{tmp_path}/runs/job\.yaml: ") as refused:
        remote.put("job.yaml", b"task")
    assert "\n" not in str(refused.value)
