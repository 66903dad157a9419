"""Checks of arguments, with errors that name the argument and its value."""

from __future__ import annotations

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpyro.util import is_prng_key


def check_count(name: str, value: int, minimum: int) -> int:
    """Return `value` as an int of at least `minimum`, or raise an error that names it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}")
    return int(value)


def check_positive(name: str, value: Any) -> float:
    """Return `value` as a finite float above zero, or raise an error that names it."""
    if hasattr(value, "dtype") and getattr(value, "shape", None) == () and not isinstance(value, Tracer):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not (0 < float(value) < math.inf):
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def broadcasts(shape: tuple[int, ...], batch_shape: tuple[int, ...]) -> bool:
    """Whether arrays of a shape broadcast to a batch shape without making it wider."""
    try:
        return np.broadcast_shapes(shape, batch_shape) == batch_shape
    except ValueError:
        return False


def check_key(key: Any) -> None:
    """Raise an error unless `key` is a random key of JAX."""
    if not is_prng_key(key):
        raise TypeError(f"key must be a JAX random key such as jax.random.key(0), got {key!r}")


def check_flag(name: str, value: Any) -> bool:
    """Return `value` if it is True or False, or raise an error that names it."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value


def check_precision(name: str, parameters: Any) -> None:
    """Raise an error where a tree of parameters has floating-point numbers of less than 32 bits."""
    for leaf in jax.tree.leaves(parameters):
        dtype = getattr(leaf, "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            raise TypeError(
                f"{name} must be float32 or float64, got {dtype}, which has too few digits for a normalised density: "
                "cast it by .astype(jnp.float32), and all parameters of an energy or a model by jax.tree.map(lambda a: "
                f"a.astype(jnp.float32) if a.dtype == jnp.{dtype} else a, parameters); points and data may be {dtype}"
            )


def check_not_masked(name: str, value: Any) -> None:
    """Raise an error where a NumPy masked array has masked values, of which JAX would see what lies under them."""
    if np.ma.is_masked(value):
        raise ValueError(
            f"{name} has {np.ma.count_masked(value)} masked values, and JAX has no masked arrays: drop them with "
            ".compressed(), or pass the values and ~numpy.ma.getmaskarray(...) and mask the observed site in the model"
        )
