"""Functions that users call one by one, compiled once for all grids and all numbers of the same shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import core

from numpyro_kaem._numerics.grid import Grid

# In place of what is an argument of a program.
_ARRAY, _GRID = object(), object()


def compiled(function: Callable) -> Callable:
    """Compile a function of positional arguments: grids and NumPy's numbers are data, for one program serves all.

    Where an argument is traced, they are constants of the larger program: it is faster, and knows where supports end.
    """

    def from_leaves(data, structure, leaves):
        data = iter(data)
        args = [_restored(leaf, data) for leaf in leaves]
        return function(*jax.tree.unflatten(structure, args))

    from_leaves.__name__ = function.__name__
    program = jax.jit(from_leaves, static_argnums=(1, 2))

    @functools.wraps(function)
    def call(*args):
        leaves, structure = jax.tree.flatten(args, is_leaf=lambda node: isinstance(node, Grid))
        is_traced = any(isinstance(leaf, core.Tracer) for leaf in jax.tree.leaves(leaves))
        if is_traced:
            leaves, structure = jax.tree.flatten(args)
        data, static = [], []
        for leaf in leaves:
            if isinstance(leaf, Grid):
                data.append(leaf.as_data)
                static.append(_GRID)
            elif is_traced and isinstance(leaf, np.ndarray) and leaf.ndim == 0:
                static.append(_Constant(leaf.dtype, leaf.tobytes()))
            elif isinstance(leaf, jax.Array | np.ndarray | np.generic):
                data.append(leaf)
                static.append(_ARRAY)
            else:
                static.append(leaf)
        return program(data, structure, tuple(static))

    return call


def _restored(leaf: Any, data: Iterator) -> Any:
    """A leaf, from what is static of it and the arrays that are not."""
    if leaf is _ARRAY:
        return next(data)
    if leaf is _GRID:
        return Grid(None, next(data))
    return np.frombuffer(leaf.bits, leaf.dtype).reshape(()) if isinstance(leaf, _Constant) else leaf


class _Constant(NamedTuple):
    """A NumPy number that is no argument of a program, equal by its bits."""

    dtype: np.dtype
    bits: bytes
