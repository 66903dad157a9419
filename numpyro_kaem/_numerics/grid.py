"""Grids that are not trained: domains and knots, fixed when a program is traced or carried through it.

`eqx_module`, optimisers and `random_eqx_module` take every array of floating-point numbers for a parameter. So a grid
is either a static tuple of Python floats, or, where it differs along a batch or changes in training, an array of the
bits of its points, which are integers.
"""

from __future__ import annotations

import math
from types import ModuleType

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import core, lax
from jax.typing import ArrayLike
from jaxtyping import Array, Int


class Grid(eqx.Module):
    """Increasing points: `shared` if they are fixed and the same for the whole batch, otherwise their `bits`."""

    shared: tuple[float, ...] | None = eqx.field(static=True)
    bits: Int[Array | np.ndarray, "*batch num_points"] | None

    @classmethod
    def of(cls, points: ArrayLike) -> Grid:
        """Hold the given points; a one-dimensional grid that is known now is static."""
        if not isinstance(points, core.Tracer) and np.ndim(points) == 1:
            return cls(tuple(float(point) for point in np.asarray(points)), None)
        return cls(None, _bits(jnp.asarray(points, jnp.result_type(float))))

    @property
    def as_data(self) -> Int[Array | np.ndarray, "*batch num_points"]:
        """The bits of its points, which a compiled program takes as an argument."""
        return _bits(np.asarray(self.shared, jnp.result_type(float))) if self.bits is None else self.bits

    @property
    def points(self) -> np.ndarray | Array:
        """The points: a float64 NumPy array if they are static, else a JAX array."""
        if self.bits is None:
            return np.array(self.shared)
        return lax.bitcast_convert_type(self.bits, jnp.float64 if self.bits.dtype == jnp.int64 else jnp.float32)

    @property
    def ends(self) -> tuple[float, float] | tuple[Array, Array]:
        """First and last point: floats if they are static, else arrays of shape (*batch,)."""
        if self.bits is None:
            return self.shared[0], self.shared[-1]
        return self.points[..., 0], self.points[..., -1]

    @property
    def num_points(self) -> int:
        return len(self.shared) if self.bits is None else self.bits.shape[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch of grids; () for a shared one."""
        return () if self.bits is None else self.bits.shape[:-1]


def _bits(points: np.ndarray | Array) -> np.ndarray | Array:
    integer = np.int64 if points.dtype == np.float64 else np.int32
    return points.view(integer) if isinstance(points, np.ndarray) else lax.bitcast_convert_type(points, integer)


def array_module(*arrays) -> ModuleType:
    """`jax.numpy` if one of the arguments is a JAX array, else `numpy`."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def check_domain(domain: tuple[ArrayLike, ArrayLike]) -> Grid:
    """The grid (low, high) of a domain, or an error that says what is wrong with it."""
    message = (
        "domain must be (low, high), two finite numbers (or arrays of the energy's batch shape) with low < high, "
        f"got {domain!r}"
    )
    try:
        low, high = domain
        if all(np.ndim(end) == 0 for end in domain):
            low, high = (end if isinstance(end, core.Tracer) else np.asarray(end).item() for end in domain)
        ends = array_module(low, high).stack(array_module(low, high).broadcast_arrays(low, high), axis=-1)
    except (TypeError, ValueError) as error:
        raise ValueError(message) from error
    return check_increasing(ends, message)


def check_increasing(points: ArrayLike, message: str) -> Grid:
    """The grid of two points or more that are finite and increase in JAX's default dtype, or an error."""
    if np.ndim(points) == 0 or np.shape(points)[-1] < 2:
        raise ValueError(message)
    if not isinstance(points, core.Tracer):
        values, info = np.asarray(points), jnp.finfo(jnp.result_type(float))
        is_real = any(jnp.issubdtype(values.dtype, kind) for kind in (jnp.integer, jnp.floating))
        if not is_real or not np.all(np.isfinite(values)) or not np.all(np.diff(values) > 0):
            raise ValueError(message)
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = values.astype(info.dtype)
            told_apart = np.all(np.isfinite(rounded)) and np.all(np.diff(rounded) >= info.tiny)
        if not told_apart:
            raise ValueError(
                f"{message}, which {info.dtype} cannot tell apart or hold; give points further apart, or enable JAX's "
                "64-bit mode"
            )
    return Grid.of(points)


def look_up(values: Array, index: Array, batch_shape: tuple[int, ...], num_own: int = 0) -> Array:
    """values[row, index] row by row: values of shape (*batch, n, *own), index of shape sample_shape + batch_shape.

    The batch of `values` broadcasts against `batch_shape`; nothing larger than the result is made.
    """
    first = values.ndim - 1 - num_own
    batch, n, own = values.shape[:first], values.shape[first], values.shape[first + 1 :]
    rows = np.arange(math.prod(batch)).reshape(batch) * n
    rows = np.broadcast_to(rows, batch_shape).astype(np.int32)
    return values.reshape(-1, *own).at[rows + index].get(mode="promise_in_bounds")


def search(points: Array, z: Array, batch_shape: tuple[int, ...]) -> Array:
    """Index i of the cell [p_i, p_{i+1}) that holds z, row by row; the outer cells reach to infinity.

    Points have the shape (*batch, num_points), z has sample_shape + batch_shape, with which that batch broadcasts.
    """
    num_cells = points.shape[-1] - 1
    depth = (num_cells - 1).bit_length()

    def halve(level, index):
        candidate = index + (2**depth >> (level + 1))
        inside = candidate < num_cells
        candidate = jnp.minimum(candidate, num_cells - 1)
        return jnp.where(inside & (look_up(points, candidate, batch_shape) <= z), candidate, index)

    start = jnp.zeros(jnp.broadcast_shapes(z.shape, batch_shape), jnp.int32)
    return lax.fori_loop(0, depth, halve, start)
