"""Strangers stay out: no Ray without a token unless `--insecure`, said in one line before anything is started."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from search import access
from search.access import default_token, ensure_token, is_loopback, settle_access
from search.cli import run
from search.errors import UserError
from tests.cluster.machines import Nodes, nodes

FAR, NEAR = "10.0.0.1:6379", "127.0.0.1:6379"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (access.MODE, access.TOKEN, access.TOKEN_PATH):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def cluster_that(monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    """Every cluster is one that asks for this token, or for none."""

    class Knock:
        def __init__(self, target: str, mode: str) -> None:
            self.given = (os.environ.get(access.TOKEN) or default_token().read_text()) if mode == "token" else None

        def answer(self) -> int | str:
            return 0 if token in (None, self.given) else 3

    monkeypatch.setattr(access, "_Knock", Knock)


def test_our_own_ray_has_a_token_for_this_users_eyes_only() -> None:
    settle_access(None, insecure=False)
    assert os.environ[access.MODE] == "token"
    assert stat.S_IMODE(default_token().stat().st_mode) == 0o600
    assert len(default_token().read_text()) == 64
    before = default_token().read_text()
    ensure_token()
    assert default_token().read_text() == before


def test_our_own_ray_is_not_opened_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(access.MODE, "disabled")
    with pytest.raises(
        UserError, match=r"RAY_AUTH_MODE=disabled: Ray listens on every address .* unset it, or say --ins"
    ):
        settle_access(None, insecure=False)
    settle_access(None, insecure=True)
    assert os.environ[access.MODE] == "disabled"


def test_a_closed_cluster_and_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster_that(monkeypatch, "right")
    monkeypatch.setenv(access.TOKEN, "right")
    settle_access(FAR, insecure=False)
    assert os.environ[access.MODE] == "token"


@pytest.mark.parametrize("insecure", [False, True])
def test_no_token_another_token_and_none_wanted(monkeypatch: pytest.MonkeyPatch, insecure: bool) -> None:
    cluster_that(monkeypatch, "right")
    with pytest.raises(UserError, match=f"{FAR} asks for a token, and there is none here: copy ~/.ray/auth_token"):
        settle_access(FAR, insecure=insecure)
    monkeypatch.setenv(access.TOKEN, "wrong")
    with pytest.raises(UserError, match=f"the token in RAY_AUTH_TOKEN is not that of the Ray cluster at {FAR}"):
        settle_access(FAR, insecure=insecure)
    monkeypatch.setenv(access.MODE, "disabled")
    with pytest.raises(UserError, match="asks for a token, and RAY_AUTH_MODE=disabled here: unset it"):
        settle_access(FAR, insecure=insecure)


@pytest.mark.parametrize("token", [None, "any"])
@pytest.mark.parametrize("mode", ["token", "disabled", ""])
def test_an_open_cluster_is_refused_unless_said(monkeypatch: pytest.MonkeyPatch, token: str | None, mode: str) -> None:
    cluster_that(monkeypatch, None)
    monkeypatch.setenv(access.MODE, mode)
    if token is not None:
        monkeypatch.setenv(access.TOKEN, token)
    with pytest.raises(UserError, match=f"the Ray cluster at {FAR} asks for no token: .* or say --insecure"):
        settle_access(FAR, insecure=False)
    for address, insecure in ((FAR, True), (NEAR, False)):
        settle_access(address, insecure=insecure)
        assert os.environ[access.MODE] == "disabled"


def test_a_mode_that_ray_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(access.MODE, "tokens")
    with pytest.raises(UserError, match="RAY_AUTH_MODE must be token or disabled, got 'tokens'"):
        settle_access(None, insecure=True)


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file"), (b"", "it is empty"), (b"\xff\xfe\xff", "it is no text")]
)
def test_a_token_file_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, why: str
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv(access.TOKEN_PATH, str(path))
    with pytest.raises(UserError, match=f"RAY_AUTH_TOKEN_PATH: {path} cannot be used .{why}"):
        settle_access(FAR, insecure=False)


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1")))
    assert not any(map(is_loopback, ("10.0.0.1:1", "0.0.0.0:1", "[fe80::1]:1", "head:1", "localhost.evil.example:1")))


@pytest.fixture(scope="module")
def head() -> Iterator[Nodes]:
    """A head as `ray start` makes it, with a token."""
    with nodes(secrets.token_hex(32)) as started:
        started.start(Path(sys.executable), "--num-cpus=0")
        yield started


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that must not get further than its arguments."""
    assert run(["search", "job.yaml", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    [line] = err.splitlines()
    return line


def test_a_real_head_turns_strangers_away(
    head: Nodes, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a token at hand Ray's own client ends its process with a stack of C++.
    assert "there is none here" in refused(capfd, "--address", head.address)
    monkeypatch.setenv(access.TOKEN, "0" * 64)
    assert "the token in RAY_AUTH_TOKEN is not that of" in refused(capfd, "--address", head.address)


@pytest.mark.slow
def test_a_real_open_head_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with nodes(None) as started:
        started.start(Path(sys.executable), "--num-cpus=0")
        if is_loopback(started.address):
            pytest.skip("this machine has no address but loopback")
        assert "asks for no token" in refused(capfd, "--address", started.address)
        # the next thing to be wrong
        assert "job.yaml: no such file" in refused(capfd, "--address", started.address, "--insecure")
