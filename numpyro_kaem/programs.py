"""Compiled programs that are kept for the next call that computes the same.

JAX keeps what it has compiled under the identity of a function, and a model or a closure is a new function at every call,
or worse, the same one with another value behind a name. Here programs are kept under what they compute.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from numpyro_kaem.fingerprint import SameProgram, fingerprint

# Programs that are kept: those that were not called for longest make room.
_MOST = 128
# Values of these libraries' classes are known by what they are equal to.
_LIBRARIES = ("numpyro_kaem.", "numpyro.", "jax.", "jaxlib.", "numpy.")


class _Store:
    """The last values that were asked for, by key."""

    def __init__(self):
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > _MOST:
                self._values.popitem(last=False)
        return value

    def clear(self) -> None:
        with self._lock:
            self._values.clear()


_PROGRAMS, _PASSED = _Store(), _Store()


def clear_caches() -> None:
    """Forget the compiled programs that samplers, `fit` and `to_arviz` keep for their next calls.

    Programs are kept under what they compute, the last 128 of them: a call whose model, settings and shapes are those
    of an earlier one is not compiled again, whatever its parameters, data and keys, and a model whose closure has
    changed is. They hold no data that a model is given; JAX arrays that a model closes over stay alive with them.
    Memory of other compiled functions is given back by `jax.clear_caches`.

    Example:
        ```python
        import numpyro_kaem

        numpyro_kaem.clear_caches()
        ```
    """
    _PROGRAMS.clear()
    _PASSED.clear()


def passes_once(key: Hashable, check: Callable[[], None]) -> None:
    """Run a check, unless it was passed under this key before."""
    _PASSED.get(key, lambda: check() or True)


class _Program(NamedTuple):
    """A jitted function of the array leaves of arguments, and the structure of what it returns."""

    run: Callable
    outputs: Any


def jit_by_program(function: Callable, *, first_donated: int | None = None, compiler_options: dict | None = None):
    """A function compiled once for all functions that compute the same, whatever they close over.

    It is traced at every call, and what it closes over may have changed since the last.

    Args:
        function: from pytrees to a pytree of arrays. Arguments that are no arrays are static.
        first_donated: arrays of the arguments from this one on are given up to the results; None for none.
        compiler_options: of `jax.jit`.
    """

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        arrays, static, donated = _split(args, first_donated)
        closed, outputs = _trace(function, arrays, static)
        options = tuple(sorted((compiler_options or {}).items()))
        key = fingerprint(closed), outputs, donated, options
        return _run(key, lambda: _compile(function.__name__, closed, outputs, donated, compiler_options), arrays)

    return call


def jit_by_value(function: Callable, *, first_donated: int | None = None, compiler_options: dict | None = None):
    """A module's function compiled once for all arguments that are equal, as `equinox.filter_jit` does it.

    Arrays are traced, all other leaves of the arguments are compared by their values. Where one may be equal to what it
    was and yet compute something else, as a function does that reads a global variable, the program that was traced is
    compared instead (`jit_by_program`); `SameProgram` spares that.

    Args:
        function: of a module, from pytrees to a pytree of arrays.
        first_donated: arrays of the arguments from this one on are given up to the results; None for none.
        compiler_options: of `jax.jit`.
    """
    by_program = jit_by_program(function, first_donated=first_donated, compiler_options=compiler_options)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        arrays, static, donated = _split(args, first_donated)
        leaves, structure = jax.tree.flatten(static)
        if not all(map(is_known_by_value, leaves)):
            return by_program(*args)
        types = tuple(map(jax.typeof, jax.tree.leaves(arrays)))
        wide = jnp.result_type(float)  # that of Python's numbers among the static leaves
        key = function, structure, tuple((type(leaf), leaf) for leaf in leaves), types, wide

        def compile_anew() -> _Program:
            closed, outputs = _trace(function, arrays, static)
            return _compile(function.__name__, closed, outputs, donated, compiler_options)

        return _run(key, compile_anew, arrays)

    return call


def is_known_by_value(leaf: Any) -> bool:
    """Whether equal values compute the same: of numbers, names, and what libraries define, down to its fields."""
    if isinstance(leaf, bool | int | float | complex | str | bytes | SameProgram) or eqx.is_array(leaf):
        return True
    module = f"{type(leaf).__module__}."
    if callable(leaf) and hasattr(leaf, "__qualname__"):
        module = f"{leaf.__module__}."
        if getattr(leaf, "__closure__", None):
            return False
    if not module.startswith(_LIBRARIES):
        return False
    fields = getattr(leaf, "__dict__", {}) if module.startswith(("numpyro_kaem.", "numpyro.")) else {}
    parts = jax.tree.leaves([value for name, value in fields.items() if name != "_value"])
    return callable(leaf) and hasattr(leaf, "__qualname__") or all(map(is_known_by_value, parts))


def _split(args: tuple, first_donated: int | None) -> tuple[tuple, tuple, tuple[int, ...]]:
    """The arrays of arguments, what else they are, and which leaves of the former are given up."""
    arrays, static = eqx.partition(args, eqx.is_array)
    sizes = [len(jax.tree.leaves(part)) for part in arrays]
    first = sum(sizes) if first_donated is None else sum(sizes[:first_donated])
    return arrays, static, tuple(range(first, sum(sizes)))


def _trace(function: Callable, arrays: tuple, static: tuple) -> tuple[Any, Any]:
    """The jaxpr of a function of the array leaves, and the structure of its results."""
    closed, shapes = jax.make_jaxpr(lambda arrays: function(*eqx.combine(arrays, static)), return_shape=True)(arrays)
    return closed, jax.tree.structure(shapes)


def _compile(name: str, closed: Any, outputs: Any, donated: tuple[int, ...], compiler_options: dict | None) -> _Program:
    def run(*leaves):
        return jaxpr_as_fun(closed)(*leaves)

    run.__name__ = name  # by which JAX's logs and profiles call the program
    return _Program(jax.jit(run, donate_argnums=donated, compiler_options=compiler_options), outputs)


def _run(key: Hashable, compile_anew: Callable[[], _Program], arrays: tuple) -> Any:
    program = _PROGRAMS.get(key, compile_anew)
    return jax.tree.unflatten(program.outputs, program.run(*jax.tree.leaves(arrays)))
