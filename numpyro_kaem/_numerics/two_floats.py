"""Sums and products to more digits than one floating-point number has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@jax.custom_jvp
def exact_product(a: Array, b: Array) -> tuple[Array, Array]:
    """The product a b as the sum of an exactly computed leading part and a small rest (after Dekker 1971).

    The usual form, the rounding error of fl(a b), does not survive a compiler that fuses products and differences.
    """
    info = jnp.finfo(a.dtype)
    a_high, b_high = (jax.lax.reduce_precision(x, info.nexp, (info.nmant + 1) // 2 - 1) for x in (a, b))
    a_low, b_low = a - a_high, b - b_high
    return a_high * b_high, a_high * b_low + a_low * b_high + a_low * b_low


@exact_product.defjvp
def _exact_product_jvp(primals, tangents):
    (a, b), (a_dot, b_dot) = primals, tangents
    leading, rest = exact_product(a, b)
    return (leading, rest), (a_dot * b + a * b_dot, jnp.zeros_like(rest))


def exact_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The sum a + b, rounded, and what was lost (after Knuth), a constant to derivatives."""
    total = a + b
    a, b, rounded = jax.lax.stop_gradient((a, b, total))
    part = rounded - a
    return total, (a - (rounded - part)) + (b - part)


def stretch(
    low: Float[Array, "*batch"], high: Float[Array, "*batch"], x: Float[np.ndarray, "*points"]
) -> tuple[Float[Array, "*batch *points"], Float[Array, "*batch *points"]]:
    """The points low + (high - low) x, x in [0, 1] known in float64, as the sum of a leading part and a small rest.

    Rounded after each operation, neighbouring points far from zero would not keep their distance.
    """
    low, high = (end.reshape(*end.shape, *[1] * x.ndim) for end in (low, high))
    width, width_rest = exact_sum(high, -low)
    x_high = x.astype(low.dtype)
    x_rest = (x - x_high).astype(low.dtype)
    leading, rest = exact_product(width, jnp.asarray(x_high))
    total, lost = exact_sum(low, leading)
    return total, lost + (rest + width_rest * x_high + width * x_rest)
