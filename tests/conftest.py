"""Shared set-up: run-time checks of every jaxtyping annotation, a headless Matplotlib, float64 on request."""

import gc
import os
from pathlib import Path

# All must precede the first import of what they configure.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a run is compilation. What was compiled is kept for the next run, and for the stages of one, in files.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Two threads of one small product wait for each other, spinning, wherever pytest's processes share the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("numpyro_kaem", "beartype.beartype")

import jax
import pytest

# Linux grants a process 65,530 memory maps, and a compiled XLA kernel takes several: the process dies at the limit.
MEMORY_MAPS = Path("/proc/self/maps")
MANY_MEMORY_MAPS = 20_000

# Tracing makes many objects and next to no garbage in cycles.
gc.set_threshold(100_000, 50, 50)


@pytest.fixture(autouse=True)
def few_compiled_kernels():
    """Drop what JAX has compiled before it fills the process's table of memory maps."""
    yield
    if MEMORY_MAPS.exists() and MEMORY_MAPS.read_bytes().count(b"\n") > MANY_MEMORY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64():
    """Enable float64 within one test."""
    # jax.enable_x64 appeared in JAX 0.8; its predecessor is removed from later releases.
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(True):
        yield
