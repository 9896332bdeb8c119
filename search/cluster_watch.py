"""A cluster whose head is gone takes its search with it: the driver says so in one line, and how to go on.

Left alone, Ray tries to reach the head for a minute and then ends the process with a trace of its own.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence

#: How long the head may be away; a listening socket answers however busy its process is.
PATIENCE_S = 15.0
_EVERY_S = 1.0
_TIMEOUT_S = 3.0
EXIT_CODE = 2


class ClusterWatch:
    """Ends this process after `last_words` once one of `places` (host, port) was silent for `PATIENCE_S`.

    It does not raise: the main thread is deep in Ray's own code, which waits for that very head. What is finished is
    on the disk, and what runs has its checkpoint.
    """

    def __init__(self, places: Sequence[tuple[str, int]], last_words: Callable[[], None]) -> None:
        self._places = tuple(places)
        self._last_words = last_words
        self._closed = threading.Event()

    def __enter__(self) -> ClusterWatch:
        for place in self._places:
            threading.Thread(target=self._watch, args=place, daemon=True, name="cluster watch").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _watch(self, host: str, port: int) -> None:
        answered = time.monotonic()
        while not self._closed.wait(_EVERY_S):
            if _answers(host, port):
                answered = time.monotonic()
            elif time.monotonic() - answered > PATIENCE_S and not self._closed.is_set():
                try:
                    self._last_words()
                finally:
                    os._exit(EXIT_CODE)


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_S):
            return True
    except OSError:
        return False
