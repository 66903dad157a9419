"""Ctrl-C that waits until what is under way can be kept."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interrupts() -> Iterator[list[bool]]:
    """A list that Ctrl-C puts something into; a second Ctrl-C is the usual KeyboardInterrupt."""
    interrupted: list[bool] = []
    usual = signal.getsignal(signal.SIGINT)  # None where Python runs inside of another program, which handles it itself
    if usual is None or threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def handle(number, frame):
        interrupted.append(True)
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, usual)
