"""Matrix products whose factors are in a lower precision than their sums."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def check_compute_dtype(compute_dtype: Any) -> np.dtype | None:
    """The dtype that is meant, None for None; raise a ValueError for one that is not floating."""
    if compute_dtype is None:
        return None
    dtype = jnp.dtype(compute_dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"compute_dtype must be a floating dtype such as jnp.bfloat16, or None for the parameters' own, "
            f"got {compute_dtype!r}"
        )
    return dtype


def contract(
    subscripts: str, a: Float[Array, "..."], b: Float[Array, "..."], compute_dtype: np.dtype | None
) -> Float[Array, "..."]:
    """Contract a with b as `jnp.einsum` does, elements rounded to `compute_dtype`, sums in the dtype of a and b.

    With u = 2^-p for p significant bits (8 of bfloat16), rounding the factors moves the result by at most
    (2 u + u^2) sum |a| |b|. Derivatives have the dtypes of a and b, and are rounded to `compute_dtype` once more.
    """
    if compute_dtype is None:
        return jnp.einsum(subscripts, a, b)
    dtype = jnp.result_type(a, b)
    # XLA does not sum in less than the factors have.
    sums = jnp.promote_types(dtype, compute_dtype)
    a, b = a.astype(compute_dtype), b.astype(compute_dtype)
    return jnp.einsum(subscripts, a, b, preferred_element_type=sums).astype(dtype)
