"""Ctrl-C while a run trains: it comes between two updates, so that what is saved then is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Raises KeyboardInterrupt for Ctrl-C and for SIGTERM, but holds the first one back where asked to.

    A second one is raised at once, wherever the run is. Other threads than the main one get no signals, and
    signals that a program ignores or handles itself are left alone.
    """

    def __init__(self) -> None:
        self._holding = self._pending = self._seen = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals inside the block."""
        self._pending = self._seen = False
        before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            usual = (signal.default_int_handler, signal.SIG_DFL)
            before = {number: signal.getsignal(number) for number in SIGNALS}
            before = {number: handler for number, handler in before.items() if handler in usual}
        try:
            for number in before:
                signal.signal(number, self._take)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold a first signal back until the end of the block."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def _take(self, _: int, __: FrameType | None) -> None:
        first, self._seen = not self._seen, True
        if self._holding and first:
            self._pending = True
        else:
            raise KeyboardInterrupt
