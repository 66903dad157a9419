"""What the processes of a run on several hosts tell each other: all of them call these functions, and wait here."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils


def any_process(value: bool) -> bool:
    """Whether the value is true in any process."""
    if jax.process_count() == 1:
        return value
    return bool(np.any(multihost_utils.process_allgather(np.array([value], np.uint8))))


def of_first_process(names: list[str]) -> list[str]:
    """The names that the first process has."""
    if jax.process_count() == 1:
        return names
    text = "\n".join(names).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(text), np.int32)))
    padded = np.frombuffer(text[:size].ljust(size, b"\0"), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(padded)).decode().split("\n") if size else []
