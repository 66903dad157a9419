"""Compiled programs that are kept for the next call that computes the same.

JAX keeps what it has compiled under the identity of a function, and a model or a closure is a new function at every
call, or worse, the same one with another value behind a name. Here programs are kept under what they compute.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from numpyro_kaem._compilation.fingerprint import SameProgram, fingerprint
from numpyro_kaem._compilation.options import known_options

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

    def __len__(self) -> int:
        return len(self._values)

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
    _PASSED.get(key, check)


class _Program:
    """A compiled program as a function of pytrees; `executable` is JAX's, which tells what it costs."""

    def __init__(self, executable: Any):
        self.executable = executable

    def __call__(self, *args: Any) -> Any:
        return self.executable(*_arrays(args))


class _Reusable:
    """Arrays of the arguments from `first_donated` on are given up to the results; what is no array is static."""

    def __init__(
        self, function: Callable, *, first_donated: int | None = None, compiler_options: dict[str, Any] | None = None
    ):
        self.function, self.first_donated, self.compiler_options = function, first_donated, compiler_options
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any) -> Any:
        """Call the function, compiled now or earlier."""
        return self.compiled(*args)(*args)

    def compiled(self, *args: Any) -> _Program:
        """The program for arguments like these, compiled if there is none."""
        raise NotImplementedError

    def _trace(self, args: tuple) -> Any:
        """What JAX has traced, of the array leaves of the arguments."""
        arrays, static = eqx.partition(args, eqx.is_array)
        leaves, structure = _arrays(args), jax.tree.structure(arrays)
        sizes = [len(jax.tree.leaves(part)) for part in arrays]
        first = len(leaves) if self.first_donated is None else sum(sizes[: self.first_donated])

        def run(*leaves):
            return self.function(*eqx.combine(jax.tree.unflatten(structure, leaves), static))

        run.__name__ = self.function.__name__  # by which JAX's logs and profiles call the program
        donated = tuple(range(first, len(leaves)))
        jitted = jax.jit(run, donate_argnums=donated, compiler_options=known_options(self.compiler_options))
        return jitted.trace(*leaves)


class jit_by_program(_Reusable):
    """A function compiled once for all functions that compute the same, whatever they close over.

    It is traced at every call, and what it closes over may have changed since the last.
    """

    def compiled(self, *args: Any) -> _Program:
        """Trace the function; the program of what was traced."""
        traced = self._trace(args)
        options = self.first_donated, tuple(sorted((self.compiler_options or {}).items()))
        key = fingerprint(traced.jaxpr), jax.tree.structure(traced.out_info), _where(args), options
        return _PROGRAMS.get(key, lambda: _Program(traced.lower().compile()))


class jit_by_value(_Reusable):
    """A module's function compiled once for all arguments that are equal, as `equinox.filter_jit` does it.

    Where one may be equal to what it was and yet compute something else, as a function does that reads a global
    variable, the program that was traced is compared, as `jit_by_program` does it; `SameProgram` spares that. Where an
    argument is traced, the function becomes a part of the larger program.
    """

    def __call__(self, *args: Any) -> Any:
        """Call the function, compiled now or earlier."""
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args)):
            return self.function(*args)
        return self._call(args, [_Flat(arg) for arg in args])

    def of(self, first: Any) -> Callable:
        """The function of the arguments after `first`, whose leaves are looked at once: it must not change."""
        flat = _Flat(first)
        return lambda *rest: self._call((first, *rest), [flat, *map(_Flat, rest)])

    def compiled(self, *args: Any) -> _Program:
        """The program for the values and shapes of these arguments, traced if there is none."""
        return self._program(args, [_Flat(arg) for arg in args])

    def _call(self, args: tuple, flats: list[_Flat]) -> Any:
        arrays = [_as_jax(array) for flat in flats for array in flat.arrays]
        return self._program(args, flats).executable(*arrays)

    def _program(self, args: tuple, flats: list[_Flat]) -> _Program:
        if not all(flat.is_known for flat in flats):
            by_program = jit_by_program(
                self.function, first_donated=self.first_donated, compiler_options=self.compiler_options
            )
            return by_program.compiled(*args)
        wide = jnp.result_type(float)  # the type of Python's numbers among the static leaves
        key = self.function, tuple(flat.key for flat in flats), _default_device(), wide
        return _PROGRAMS.get(key, lambda: _Program(self._trace(args).lower().compile()))


class _Flat:
    """The leaves of an argument: its arrays, as they are, and the key of all that a program is compiled for."""

    def __init__(self, arg: Any):
        leaves, structure = jax.tree.flatten(arg)
        self.arrays: list[Any] = []
        self.is_known, values = True, []
        for leaf in leaves:
            if eqx.is_array(leaf):
                self.arrays.append(leaf)
                values.append((jax.typeof(leaf), _sharding(leaf)))
            else:
                self.is_known = self.is_known and is_known_by_value(leaf)
                values.append((type(leaf), leaf))
        self.key = structure, tuple(values)


def is_known_by_value(leaf: Any) -> bool:
    """Whether equal values compute the same: of numbers, names, and what libraries define, down to its fields."""
    if isinstance(leaf, bool | int | float | complex | str | bytes | SameProgram) or eqx.is_array(leaf):
        return True
    is_function = callable(leaf) and hasattr(leaf, "__qualname__")
    module = f"{(leaf if is_function else type(leaf)).__module__}."
    if is_function or not module.startswith(_LIBRARIES):
        return module.startswith(_LIBRARIES) and not getattr(leaf, "__closure__", None)
    has_fields = module.startswith(("numpyro_kaem.", "numpyro."))
    return not has_fields or all(map(is_known_by_value, jax.tree.leaves(vars(leaf))))


def _arrays(args: tuple) -> list[jax.Array]:
    """The array leaves of arguments, as JAX's."""
    return [_as_jax(leaf) for leaf in jax.tree.leaves(args) if eqx.is_array(leaf)]


def _as_jax(array: Any) -> jax.Array:
    return array if isinstance(array, jax.Array) else jnp.asarray(array)


def _where(args: tuple) -> tuple:
    """On what arrays are, which a program is compiled for: the default device, and those that arrays are bound to."""
    return _default_device(), tuple(map(_sharding, jax.tree.leaves(args)))


def _default_device() -> Any:
    return jax.config.jax_default_device  # type: ignore[attr-defined]  # JAX sets it as it starts


def _sharding(leaf: Any) -> Any:
    return leaf.sharding if getattr(leaf, "committed", False) else None
