"""Mistakes with `--address`: nobody there, somebody else there, nothing that could be an address."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from search.address import checked_address
from search.errors import UserError
from tests.mistakes.typed import Mistake, refused, typed

ADDRESSES = [
    typed("search job.yaml --address nowhere", "--address must be local, auto or HOST:PORT, got 'nowhere'"),
    typed("search job.yaml --address 10.0.0.1:99999", "must be local, auto or HOST:PORT, got '10.0.0.1:99999'"),
    typed("search job.yaml --address auto", "--address auto: no Ray cluster runs on this machine", "ray start --head"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", ADDRESSES, ids=str)
def test_an_address_that_is_wrong(here: Path, capfd: pytest.CaptureFixture[str], mistake: Mistake) -> None:
    mistake.make(here, capfd)


def test_an_address_where_nobody_answers(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there, nobody else takes it
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refused(here, ["search", "job.yaml", "--address", address], capfd)
    assert line.startswith(f"--address {address}: no Ray cluster answers at {address} (Connection refused): ")
    assert line.endswith("start one with `ray start --head`, or leave --address out")


@pytest.mark.parametrize(
    ("answer", "is_ray"),
    [(b"HTTP/1.0 400 Bad Request\r\n\r\n", False), (b"", False), (bytes([0, 0, 0x18, 4, 0, 0, 0, 0, 0]), True)],
)
def test_an_address_where_something_else_answers(answer: bytes, is_ray: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the dashboard, or a web server: Ray would go on trying for minutes."""
    monkeypatch.setattr("search.address.TIMEOUT_S", 600.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        if is_ray:
            assert checked_address(address) == address
        else:
            with pytest.raises(UserError, match=f"what answers at {address} is no Ray head: give the port that"):
                checked_address(address)
        thread.join()


def test_auto_means_the_cluster_that_ray_would_join(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(
        UserError, match=r"--address auto: no Ray cluster answers at 127.0.0.1:1 \(Connection refused\)"
    ):
        checked_address("auto")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(here))
    (here / "ray").mkdir()
    (here / "ray" / "ray_current_cluster").write_text("127.0.0.1:2\n")
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127.0.0.1:2"):
        checked_address("auto")
    assert checked_address("local") is None
    assert checked_address(None) is None
