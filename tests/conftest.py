"""Shared set-up: run-time checks of every jaxtyping annotation, a headless Matplotlib, float64 on request."""

import gc
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# XLA compiles in two thirds of the time with its older way to write code for fused operations, and in one thread.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def quick_flags() -> str:
    """XLA's flag, or none where the installed XLA does not know it: a process that names an unknown one is ended."""
    known = ROOT / ".cache" / f"xla-{importlib.metadata.version('jaxlib')}-takes-quick-flag"
    if not known.exists():
        tried = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env=os.environ | {"XLA_FLAGS": QUICK},
            stderr=subprocess.DEVNULL,
        )
        known.parent.mkdir(exist_ok=True)
        known.write_text(QUICK if tried.returncode == 0 else "")
    return known.read_text()


if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = quick_flags()

# All must precede the first import of what they configure.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a run is compilation. What was compiled is kept for the next run, and for the stages of one, in files.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Nearly every program of a test runs once. What must be compiled as users have it asks for `optimised`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Imports and tracing make many objects and next to no garbage in cycles.
gc.set_threshold(100_000, 50, 50)
# Two threads of one small product wait for each other, spinning, wherever pytest's processes share the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("numpyro_kaem", "beartype.beartype")

import jax
import pytest
from speed import hurry, optimisation

import numpyro_kaem

hurry()

# Linux grants a process 65,530 memory maps, and a compiled XLA kernel takes several: the process dies at the limit.
MEMORY_MAPS = Path("/proc/self/maps")
MANY_MEMORY_MAPS = 14_000
# What was compiled for a file of tests is of little use to the next one.
MEMORY_MAPS_TO_KEEP = 6_000
# It takes milliseconds to read them.
PROGRAMS_BETWEEN_READINGS = 50
num_programs = 0


def count_program(event, _, **__):
    """One more where JAX has compiled a program, or has read it from its cache."""
    global num_programs
    num_programs += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(count_program)


def forget_programs(most):
    """Drop what JAX has compiled if there are more memory maps than that."""
    if MEMORY_MAPS.exists() and MEMORY_MAPS.read_bytes().count(b"\n") > most:
        numpyro_kaem.clear_caches()
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def few_compiled_kernels():
    """Drop what JAX has compiled before it fills the process's table of memory maps."""
    global num_programs
    yield
    if num_programs >= PROGRAMS_BETWEEN_READINGS:
        num_programs = 0
        forget_programs(MANY_MEMORY_MAPS)


@pytest.fixture(autouse=True, scope="module")
def little_memory():
    """Drop what JAX has compiled for a file before it adds up to gigabytes."""
    yield
    forget_programs(MEMORY_MAPS_TO_KEEP)


@pytest.fixture
def optimised():
    """Compile within one test as JAX does by default: for roundings, or because it runs longer than it compiles."""
    with optimisation():
        yield


@pytest.fixture
def x64():
    """Enable float64 within one test."""
    # jax.enable_x64 appeared in JAX 0.8; its predecessor is removed from later releases.
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(True):
        yield
