"""Who may use the Ray of a search: a token by default, and no open cluster without `--insecure`. Asked without Ray.

Whoever reaches a Ray cluster that asks for no token can run any code on it, and Ray listens on every address of its
machines. Sources: docs.ray.io/en/latest/ray-security/token-auth.html, and `ray._private.authentication`.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from search.errors import UserError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
#: A knock at a cluster's door takes one to two seconds, most of them for the import.
PATIENCE_S = 60.0
#: A process of its own: without a token at hand, Ray's client ends the process that it runs in.
_KNOCK = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).internal_kv_exists(b"prunefront", None, timeout=20)
except AuthenticationError:
    sys.exit(3)
"""
_OPEN, _CLOSED = 0, 3


def settle_access(target: str | None, *, insecure: bool) -> None:
    """Set `RAY_AUTH_MODE` for what comes, before Ray is imported: for a Ray of our own (None) or the one at HOST:PORT.

    Raises `UserError` where that Ray would be open to strangers, or has another token than we.
    """
    mode = _mode()
    if target is None:
        if mode == "disabled" and not insecure:
            raise UserError(
                f"{MODE}=disabled: Ray listens on every address of this machine, and whoever reaches one of them "
                f"could run code here: unset it, or say --insecure"
            )
        if mode == "token":
            ensure_token()
        os.environ[MODE] = mode
        return
    source = token_source() if mode == "token" else None
    doors = [_Knock(target, "disabled"), *([_Knock(target, "token")] if source else [])]
    answers = [knock.answer() for knock in doors]
    if answers[0] == _OPEN:
        if not insecure and not is_loopback(target):
            raise UserError(
                f"the Ray cluster at {target} asks for no token: whoever reaches it can run code on it: start all its "
                f"nodes with {MODE}=token (docs/cluster.md), or say --insecure"
            )
        os.environ[MODE] = "disabled"
        return
    if answers[0] != _CLOSED:
        raise UserError(f"the Ray cluster at {target} cannot be joined: {answers[0]}")
    if mode == "disabled":
        raise UserError(f"the Ray cluster at {target} asks for a token, and {MODE}=disabled here: unset it")
    if source is None:
        raise UserError(
            f"the Ray cluster at {target} asks for a token, and there is none here: copy ~/.ray/auth_token from its "
            f"head, or name the file in {TOKEN_PATH}"
        )
    if answers[1] == _CLOSED:
        raise UserError(f"the token in {source} is not that of the Ray cluster at {target}: copy the one of its head")
    if answers[1] != _OPEN:
        raise UserError(f"the Ray cluster at {target} cannot be joined: {answers[1]}")
    os.environ[MODE] = "token"


def _mode() -> str:
    mode = os.environ.get(MODE, "").lower() or "token"
    if mode not in ("token", "disabled"):
        raise UserError(f"{MODE} must be token or disabled, got {os.environ[MODE]!r}: unset it")
    return mode


def token_source() -> str | None:
    """Where Ray takes its token from, in words; None where there is none. Raises `UserError` for an unreadable file."""
    if os.environ.get(TOKEN):
        return TOKEN
    named = os.environ.get(TOKEN_PATH)
    path = Path(named) if named else default_token()
    try:
        if path.read_text().strip():
            return str(path)
        why = "it is empty"
    except (OSError, UnicodeDecodeError) as error:
        if not named and isinstance(error, FileNotFoundError | NotADirectoryError):
            return None
        why = error.strerror or "unreadable" if isinstance(error, OSError) else "it is no text"
    raise UserError(f"{TOKEN_PATH if named else 'the token'}: {path} cannot be used ({why}): "
                    f"ray get-auth-token --generate makes one in ~/.ray/auth_token")  # fmt: skip


def default_token() -> Path:
    """Where Ray keeps the user's token."""
    return Path.home() / ".ray" / "auth_token"


def ensure_token() -> None:
    """Make the user's token where there is none, for this user's eyes only: Ray's own would be readable by all."""
    if token_source() is not None:
        return
    path = default_token()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another command has just made it
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(handle, secrets.token_hex(32).encode())
            finally:
                os.close(handle)
    except OSError as error:
        raise UserError(
            f"{path}: the token of Ray cannot be written ({error.strerror}): name a file of yours in {TOKEN_PATH}"
        ) from None


def is_loopback(target: str) -> bool:
    """Whether HOST:PORT is reached from this machine alone."""
    host = target.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Knock:
    """One knock at a cluster, under way from the start."""

    def __init__(self, target: str, mode: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _KNOCK, target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, MODE: mode},
        )

    def answer(self) -> int | str:
        """`_OPEN`, `_CLOSED`, or why there is none."""
        try:
            _, said = self._process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return f"no answer within {PATIENCE_S:.0f} s"
        if self._process.returncode in (_OPEN, _CLOSED):
            return self._process.returncode
        lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit code {self._process.returncode}"
