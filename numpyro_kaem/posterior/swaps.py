"""Swaps between the rungs of a ladder: what samplers and training objectives share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Swap(NamedTuple):
    """An attempt to exchange neighbouring rungs; `exchange` applies it to an array `(B, C, K, ...)`."""

    exchange: Callable[[Array], Array]
    probability: Float[Array, "B C pairs"]
    is_turn: Bool[Array, " pairs"]


def propose_swaps(
    keys: Array, log_likelihood: Float[Array, "B C K"], temperatures: Array, attempt: Array, is_due: Array
) -> Swap:
    """Exchange neighbouring rungs, even pairs and odd pairs in turn, by each datum's and chain's own choice."""
    low, high = log_likelihood[..., :-1], log_likelihood[..., 1:]
    # A chain of likelihood zero belongs at the lower rung, whatever is there.
    difference = jnp.where(high == -jnp.inf, jnp.inf, low - high)
    log_ratio = jnp.diff(temperatures) * difference
    uniform = jax.vmap(lambda k: jax.random.uniform(k, log_ratio.shape[1:], log_ratio.dtype))(keys)
    is_turn = (jnp.arange(log_ratio.shape[-1]) % 2 == attempt % 2) & is_due
    swapped = is_turn & (jnp.log(uniform) < log_ratio)
    none = jnp.zeros((*swapped.shape[:-1], 1), bool)
    up, down = jnp.concatenate([swapped, none], -1), jnp.concatenate([none, swapped], -1)

    def exchange(x):
        def like(mask):
            return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))

        return jnp.where(like(up), jnp.roll(x, -1, 2), jnp.where(like(down), jnp.roll(x, 1, 2), x))

    return Swap(exchange, jnp.exp(jnp.minimum(log_ratio, 0.0)), is_turn)
