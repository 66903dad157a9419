"""The continued fractions and series of the incomplete beta and gamma functions.

Those of `jax.scipy.special` lose digits in float32 by the powers and gamma functions before their series. These are the
density's own, so that tails which are told as multiples of the density agree with it.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

# Up to this parameter a the sums for the gamma function reach the last digit; they need some sqrt(a) terms.
LARGEST_OF_GAMMA = 500.0


def beta_fraction(a: ArrayLike, b: ArrayLike, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The continued fraction C of the regularised incomplete beta function, for x up to (a + 1) / (a + b + 2):

        I_x(a, b) = x^a (1 - x)^b / (a B(a, b)) C,   C = 1 / (1 + d_1 / (1 + d_2 / (1 + ...))),

        d_2m = m (b - m) x / ((a + 2m - 1)(a + 2m)),   d_2m+1 = -(a + m)(a + b + m) x / ((a + 2m)(a + 2m + 1)).

    M. Abramowitz and I. A. Stegun, Handbook of Mathematical Functions, 26.5.8.
    """
    a, b, x = jnp.broadcast_arrays(a, b, x)
    num_terms = _num_terms(x)

    def add(i, value):
        m = jnp.asarray(num_terms - 1 - i, x.dtype)
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        following = m + 1
        even = following * (b - following) * x / ((a + 2 * following - 1) * (a + 2 * following))
        return 1.0 + odd / (1.0 + even / value)

    return 1.0 / lax.fori_loop(0, num_terms, add, jnp.ones_like(x))


def gamma_series(a: ArrayLike, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The series S of the lower incomplete gamma function, for x up to a + 1 and a up to 500:

    P(a, x) = x^a exp(-x) / Gamma(a + 1) S,   S = 1 + x / (a + 1) (1 + x / (a + 2) (1 + ...)).
    """
    num_terms = _num_terms(x)
    a, x = jnp.broadcast_arrays(a, x)
    return lax.fori_loop(0, num_terms, lambda i, value: 1.0 + x / (a + (num_terms - i)) * value, jnp.ones_like(x))


def gamma_fraction(a: ArrayLike, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The continued fraction C of the upper incomplete gamma function, for x from a + 1 on and a up to 500:

        Q(a, x) = x^a exp(-x) / Gamma(a) C,   C = 1 / (x + 1 - a - 1 (1 - a) / (x + 3 - a - 2 (2 - a) / (...))).

    W. H. Press et al., Numerical Recipes, 3rd edition, 2007, section 6.2.
    """
    num_terms = _num_terms(x)
    a, x = jnp.broadcast_arrays(a, x)

    def add(i, value):
        n = jnp.asarray(num_terms - i, x.dtype)
        return x + (2 * n - 1) - a + n * (a - n) / value

    return 1.0 / lax.fori_loop(0, num_terms, add, x + (2 * num_terms + 1) - a)


def _num_terms(x: Array) -> int:
    """How many terms are summed, from the last one on. For the beta function they do for parameters up to 1e5."""
    return 80 if x.dtype == jnp.float32 else 200
