"""Which cases of a test run by default, and how well their programs are optimised."""

import contextlib

import jax
import pytest


@contextlib.contextmanager
def optimisation():
    """Compile as JAX does by default: other instructions, and so other roundings."""
    disabled = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
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
