"""What a traced program computes, as a value: equal for programs that do the same by the same steps."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Hashable
from copy import copy
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Constants up to this size are compared by content, JAX's larger ones by identity: these may be data sets.
_MOST_NUMBERS = 4096
# Types whose values are equal where they are the same.
_PLAIN = frozenset({bool, int, str, type(None)})
# The rules of custom derivatives, which are made anew at every trace.
_WITH_RULES = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})


def fingerprint(closed: ClosedJaxpr) -> Hashable:
    """What a jaxpr computes; two are equal only where the programs do the same.

    They may differ where they do: JAX's larger constants and functions of callbacks are compared by identity, and kept
    alive. Rules of custom derivatives are left out: what is differentiated has to be in the jaxpr.
    """
    return _of_jaxpr(closed.jaxpr, closed.consts, {})


def has_custom_rules(closed: ClosedJaxpr) -> bool:
    """Whether a jaxpr holds functions whose derivatives are not those of what they compute."""

    def holds(value: Any) -> bool:
        if isinstance(value, tuple | list):
            return any(map(holds, value))
        jaxpr = getattr(value, "jaxpr", value)
        return isinstance(jaxpr, Jaxpr) and any(
            equation.primitive.name in _WITH_RULES or any(map(holds, equation.params.values()))
            for equation in jaxpr.eqns
        )

    return holds(closed)


def value_of(tree: Any) -> Hashable:
    """A pytree as a value: its structure and leaves, arrays by content (JAX's larger ones by identity)."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(map(_of_value, leaves))


class ByValue:
    """A frozen dataclass that is equal to another with equal fields: arrays by content, functions by identity."""

    def _set(self, **values: Any) -> None:
        """Set fields, in `__post_init__`, to what was meant."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def having(self, **values: Any) -> Any:
        """A copy with other values of some fields, which are not checked."""
        other = copy(self)
        other._set(**values)
        return other

    def _value(self) -> Hashable:
        return tuple((field.name, value_of(getattr(self, field.name))) for field in dataclasses.fields(self))  # type: ignore[arg-type]  # whose subclasses are

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and self._value() == other._value())

    def __hash__(self) -> int:
        return hash((type(self), self._value()))

    def __repr__(self) -> str:
        return _short(self)


def _short(value: Any) -> str:
    """A repr that shows of a dataclass what differs from the defaults, and of arrays nothing."""
    if isinstance(value, dict):
        return f"<{', '.join(map(str, value))}>"
    if isinstance(value, eqx.Module):
        return f"{type(value).__name__}(...)"
    if dataclasses.is_dataclass(value):
        fields = ((field, getattr(value, field.name)) for field in dataclasses.fields(value) if field.repr)
        shown = [f"{field.name}={_short(x)}" for field, x in fields if value_of(x) != value_of(field.default)]
        return f"{type(value).__name__}({', '.join(shown)})"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    return repr(value)


class _Same:
    """Equal to what holds the very same object."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _of_jaxpr(jaxpr: Jaxpr, consts: Any, known: dict[int, Hashable]) -> Hashable:
    """The jaxpr with its variables numbered in order of appearance."""
    numbers: dict[Any, int] = {}

    def atom(variable: Any) -> Hashable:
        if isinstance(variable, Literal):
            return variable.aval, _of_value(variable.val)
        return numbers.setdefault(variable, len(numbers))

    arguments = tuple(variable.aval for variable in (*jaxpr.constvars, *jaxpr.invars))
    for variable in (*jaxpr.constvars, *jaxpr.invars):
        atom(variable)
    equations = []
    for equation in jaxpr.eqns:
        # Of what has rules only what is computed.
        kept = Jaxpr | ClosedJaxpr if equation.primitive.name in _WITH_RULES else object
        params = tuple(
            (name, _of_value(value, known)) for name, value in equation.params.items() if isinstance(value, kept)
        )
        inputs = tuple(map(atom, equation.invars))
        outputs = tuple((atom(variable), variable.aval) for variable in equation.outvars)
        equations.append((equation.primitive, inputs, outputs, params))
    return arguments, tuple(map(_of_value, consts)), tuple(equations), tuple(map(atom, jaxpr.outvars))


def _of_value(value: Any, known: dict[int, Hashable] | None = None) -> Hashable:
    """A constant or a parameter of an equation as a value."""
    kind = type(value)
    if kind in _PLAIN:  # most of them
        return kind, value
    if kind is float:  # in which NaN is equal to itself, and 0.0 not to -0.0
        return kind, value.hex()
    known = {} if known is None else known
    # From JAX 0.11 on the two are one class.
    if isinstance(value, ClosedJaxpr | Jaxpr):
        if id(value) not in known:
            jaxpr: Any = value
            known[id(value)] = _of_jaxpr(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()), known)
        return known[id(value)]
    if isinstance(value, tuple | list):
        return type(value), tuple(_of_value(part, known) for part in value)
    if isinstance(value, dict):
        return tuple((key, _of_value(part, known)) for key, part in value.items())
    if isinstance(value, functools.partial):
        return _of_value((value.func, value.args, value.keywords), known)
    if isinstance(value, int | float | complex) or eqx.is_array(value):
        return _of_numbers(value)
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value


def _of_numbers(value: Any) -> Hashable:
    if isinstance(value, Tracer):
        return _Same(value)
    if isinstance(value, Array) and not (
        value.size <= _MOST_NUMBERS
        and value.is_fully_addressable
        and not jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended)
    ):
        return _Same(value)
    array = np.asarray(value)
    if array.dtype == object:
        return _Same(value)
    # By bytes: NaN is equal to itself here, and 0.0 not to -0.0.
    digest = hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).digest()
    return type(value).__name__ if np.isscalar(value) else "", array.shape, array.dtype.name, digest


class SameProgram:
    """A function, or an object whose methods are called, that is equal to others with its fingerprint."""

    def __init__(self, function: Any, computes: Hashable):
        self.function, self.computes = function, computes
        self._hash = hash(computes)

    @classmethod
    def of_fields(cls, thing: Any) -> SameProgram:
        """Of an object of a library's class, which computes what its class and fields say."""
        return cls(thing, (type(thing), value_of(vars(thing))))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SameProgram) or self._hash != other._hash:
            return False
        if self.computes is not other.computes:
            if self.computes != other.computes:
                return False
            self.computes = other.computes  # which makes the next comparison a short one
        return True

    def __hash__(self) -> int:
        return self._hash
