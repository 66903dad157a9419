"""Shared set-up: run-time checks of every jaxtyping annotation, a headless Matplotlib, float64 on request."""

import os

# Both must precede the first import of what they configure.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook("numpyro_kaem", "beartype.beartype")

import jax
import pytest


@pytest.fixture
def x64():
    """Enable float64 within one test."""
    # jax.enable_x64 appeared in JAX 0.8; its predecessor is removed from later releases.
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(True):
        yield
