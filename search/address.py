"""Does a Ray cluster answer at `--address`? Asked before anything is trained or written, and without Ray."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from search.errors import UserError

#: Ray itself would go on trying for minutes.
TIMEOUT_S = 5.0
#: The client's half of an HTTP/2 greeting, with empty settings (RFC 9113, section 3.4): gRPC servers answer it.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4
_MEND = "start one with `ray start --head`, or leave --address out"


def checked_address(text: str | None) -> str | None:
    """HOST:PORT of the cluster that `--address` means, None for a Ray of our own. Raises `UserError` where nothing
    answers."""
    if text is None or text == "local":
        return None
    target = _current_cluster() if text == "auto" else text
    if target is None:
        raise UserError(f"--address auto: no Ray cluster runs on this machine: {_MEND}")
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):(\d{1,5})", target)
    if match is None or not 0 < int(match[2]) < 65536:
        raise UserError(f"--address must be local, auto or HOST:PORT, got {target!r}: for example 10.0.0.1:6379")
    try:
        with socket.create_connection((match[1].strip("[]"), int(match[2])), timeout=TIMEOUT_S) as connection:
            greeted = os.environ.get("RAY_USE_TLS") == "1" or _greets(connection)
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise UserError(f"--address {text}: no Ray cluster answers at {target} ({why}): {_MEND}") from None
    if not greeted:
        raise UserError(
            f"--address {text}: what answers at {target} is no Ray head: give the port that `ray start --head` tells, "
            f"6379 if left to itself"
        )
    return target


def _greets(connection: socket.socket) -> bool:
    """Whether the other side speaks gRPC, as a Ray head does and its dashboard does not."""
    connection.sendall(_GREETING)
    frame = b""
    while len(frame) < 4 and (part := connection.recv(9)):
        frame += part
    return len(frame) >= 4 and frame[3] == _SETTINGS


def _current_cluster() -> str | None:
    """Where Ray's `auto` looks: RAY_ADDRESS, else what the last `ray start` on this machine left."""
    if os.environ.get("RAY_ADDRESS"):
        return os.environ["RAY_ADDRESS"]
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        return Path(folder, "ray", "ray_current_cluster").read_text().strip() or None
    except OSError:
        return None
