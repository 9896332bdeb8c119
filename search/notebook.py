"""A live table in a notebook's output: one cell output that is replaced, without widgets."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType

#: As wide as a cell's output usually is, in characters.
WIDTH = 100
_PAGE = '<pre style="font-family:Menlo,Consolas,monospace;line-height:1.3;margin:0">{code}</pre>'


def html_of(shown: RenderableType) -> str:
    """What rich would print, as HTML that brings its colours along."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False, highlight=False)
    console.print(shown)
    return console.export_html(inline_styles=True, code_format=_PAGE)


class NotebookLive:
    """Shows what `render` gives in the running cell, anew every `interval` seconds; as `rich.live.Live` does it.

    Rich's own needs ipywidgets in a notebook, and says so in the middle of a search where they are not installed.
    """

    def __init__(self, render: Callable[[], RenderableType], *, interval: float = 1.0) -> None:
        self._render = render
        self._interval = interval
        self._ended = threading.Event()
        self._handle: Any = None
        self._thread: threading.Thread | None = None
        self._shown = ""

    def start(self) -> None:
        """Show it; from here on it stays current."""
        from IPython.display import HTML, display  # only ever called where a notebook runs

        self._shown = html_of(self._render())
        self._handle = display(HTML(self._shown), display_id=True)  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(target=self._keep_current, name="live table", daemon=True)
        self._thread.start()

    def refresh(self) -> None:
        """Show it as it is now."""
        from IPython.display import HTML

        now = html_of(self._render())
        if self._handle is not None and now != self._shown:
            self._shown = now
            self._handle.update(HTML(now))  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Leave what was shown last."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _keep_current(self) -> None:
        while not self._ended.wait(self._interval):
            self.refresh()
