"""Timing of compiled functions against each other within one run: machines drift, ratios hold."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable

import jax
import numpy as np


def alternate(functions: dict[str, Callable[[], object]], runs: int = 15) -> dict[str, np.ndarray]:
    """Seconds of each run of each function, called in turn, after one uncounted call of each."""
    for function in functions.values():
        jax.block_until_ready(function())
    seconds = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def print_device() -> None:
    """Where and with what the figures were measured."""
    names = ("jax", "numpyro", "equinox", "optax")
    print(f"{platform.machine()}, {jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores")
    print(f"Python {platform.python_version()},", ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names))


def print_rows(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a Markdown table."""
    print(f"\n### {title}\n")
    for row in (header, ("---",) * len(header), *rows):
        print("| " + " | ".join(row) + " |")
