"""Ctrl-C and SIGTERM during a search: a wish to stop that is heard at a safe point; a second one stops at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_ASKING = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether the user asked to stop.

    KeyboardInterrupt out of the midst of Ray's own code was seen to end in a segmentation fault.
    """

    def __init__(self) -> None:
        self.requested = False

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
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
