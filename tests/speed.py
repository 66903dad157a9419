"""Which cases of a test run by default, and how well their programs are optimised."""

import contextlib

import jax
import pytest

from numpyro_kaem._compilation.options import LOOP

LEVEL = "xla_backend_optimization_level"
LEVEL_OF_LOOPS = LOOP[LEVEL]


def hurry():
    """Compile the loops of samplers without optimisation, too: those of most tests compile longer than they run."""
    LOOP[LEVEL] = 0


@contextlib.contextmanager
def optimised_loops():
    """Compile the loops of samplers as for users."""
    level, LOOP[LEVEL] = LOOP[LEVEL], LEVEL_OF_LOOPS
    try:
        yield
    finally:
        LOOP[LEVEL] = level


@contextlib.contextmanager
def optimisation():
    """Compile as JAX does by default: other instructions, and so other roundings."""
    disabled = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        with optimised_loops():
            yield
    finally:
        jax.config.update("jax_disable_most_optimizations", disabled)


def slow_unless(quick, cases):
    """All cases, those that are not among the quick ones marked as slow."""
    quick, cases = list(quick), list(cases)
    unknown = [case for case in quick if case not in cases]
    assert not unknown, f"no such cases: {unknown}"
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if case in quick else pytest.mark.slow)
        for case in cases
    ]
