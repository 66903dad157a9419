"""Ctrl-C that waits until what is under way can be kept."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class _Handler:
    """Takes Ctrl-C down once, and leaves the next one to whoever handled it before."""

    def __init__(self, interrupted: list[bool], usual: Any):
        self.interrupted, self.usual = interrupted, usual

    def __call__(self, number: int, frame: Any) -> None:
        self.interrupted.append(True)
        signal.signal(signal.SIGINT, self.usual)
        if isinstance(self.usual, _Handler):  # a sampler inside of `fit`: both are to end
            self.usual(number, frame)


@contextlib.contextmanager
def interrupts() -> Iterator[list[bool]]:
    """A list that Ctrl-C puts something into, and into those around it; a second Ctrl-C is the usual KeyboardInterrupt.

    Python's own handler is back when the outermost of them ends.
    """
    interrupted: list[bool] = []
    usual = signal.getsignal(signal.SIGINT)  # None where Python runs inside of another program, which handles it itself
    if usual is None or threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    handler = _Handler(interrupted, usual)
    signal.signal(signal.SIGINT, handler)
    try:
        yield interrupted
    finally:
        if signal.getsignal(signal.SIGINT) is handler:
            signal.signal(signal.SIGINT, usual)
