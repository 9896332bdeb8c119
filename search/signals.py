"""Ctrl-C and SIGTERM during a search: a wish to stop that is heard at a safe point; a second one stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

#: The exit code of a program that Ctrl-C ended.
INTERRUPTED = 130
_ASKING = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether the user asked to stop; who asks twice is answered by `last_words` and the end of this process.

    Neither raises: KeyboardInterrupt out of the midst of Ray's own code was seen to end in a segmentation fault. What
    is left of Ray is ended by its `Watcher`.
    """

    def __init__(self, last_words: Callable[[], None]) -> None:
        self.requested = False
        self._last_words = last_words
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        # Tune writes the stopper that looks at this to disk; what the words are said with stays here.
        return {"requested": self.requested, "_pid": self._pid}

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listen until the context is left, then put back the handlers that were there before."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return
        # SIGUSR1 too: Tune sets a handler for it and leaves it there.
        kept = {number: signal.getsignal(number) for number in (*_ASKING, signal.SIGUSR1)}
        self.listen()
        try:
            yield
        finally:
            for number, handler in kept.items():
                if handler is not None:
                    signal.signal(number, handler)

    def listen(self) -> None:
        """Listen, or listen again: Ray puts a handler of its own in."""
        if threading.current_thread() is threading.main_thread():
            for number in _ASKING:
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a fork of Ray's that is about to become another program
        if not self.requested:
            self.requested = True
            return
        try:
            self._last_words()
        finally:
            os._exit(INTERRUPTED)
