"""Blocks of a transformer, on whole sequences or on one position after the other."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from numpyro_kaem.checks import check_count
from numpyro_kaem.generators.precision import contract


def normalise(norm: eqx.nn.LayerNorm, h: Float[Array, "... width"]) -> Float[Array, "... width"]:
    """Layer normalisation of the last axis."""
    return jnp.vectorize(norm, signature="(d)->(d)")(h)


class TransformerBlock(eqx.Module):
    """Self-attention and a perceptron, each of what is normalised, each added to its input:

        h <- h + attention(norm(h)) W_o,   h <- h + gelu(norm(h) W_1 + b_1) W_2 + b_2.

    `block(h, mask)` is of all positions at once, `block.step` of one position, with the keys and values of those
    before.

    Weights start normal with variance 1 / fan_in, 2 / fan_in behind the gelu. Those that are added to the input are
    divided by the square root of the number of additions, so that the sum keeps its scale.

    References:
        R. Xiong et al., On Layer Normalization in the Transformer Architecture, ICML 2020.
    """

    attention_norm: eqx.nn.LayerNorm
    query_key_value: Float[Array, "width 3 heads head_size"]
    attention_out: Float[Array, "heads head_size width"]
    mlp_norm: eqx.nn.LayerNorm
    mlp_in: Float[Array, "width hidden"]
    mlp_in_bias: Float[Array, " hidden"]
    mlp_out: Float[Array, "hidden width"]
    mlp_out_bias: Float[Array, " width"]
    compute_dtype: np.dtype | None = eqx.field(static=True)

    def __init__(self, key: PRNGKeyArray, width: int, num_heads: int, num_layers: int, compute_dtype: np.dtype | None):
        keys = jax.random.split(key, 4)
        hidden = 4 * width

        def normal(key: PRNGKeyArray, shape: tuple[int, ...], variance: float) -> Array:
            return variance**0.5 * jax.random.normal(key, shape)

        self.query_key_value = normal(keys[0], (width, 3, num_heads, width // num_heads), 1.0 / width)
        self.attention_out = normal(keys[1], (num_heads, width // num_heads, width), 1.0 / width / (2 * num_layers))
        self.mlp_in, self.mlp_in_bias = normal(keys[2], (width, hidden), 1.0 / width), jnp.zeros(hidden)
        self.mlp_out, self.mlp_out_bias = (
            normal(keys[3], (hidden, width), 2.0 / hidden / (2 * num_layers)),
            jnp.zeros(width),
        )
        self.attention_norm, self.mlp_norm = eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)
        self.compute_dtype = compute_dtype

    def __call__(
        self, h: Float[Array, "... length width"], mask: Bool[Array, "..."]
    ) -> Float[Array, "... length width"]:
        """All positions; `mask`, broadcast to (..., queries, keys), tells which keys a query sees, one at least."""
        query, key, value = self._project(h)
        return self._add(h, query, key, value, mask)

    def step(
        self, h: Float[Array, "... width"], cache: tuple[Array, Array], position: Int[Array, ""]
    ) -> tuple[Float[Array, "... width"], tuple[Array, Array]]:
        """One position after those before it, whose keys and values are in the cache; with the cache for the next."""
        h = h[..., None, :]
        query, *new = self._project(h)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, each, position, axis=-3)
            for old, each in zip(cache, new, strict=True)
        )
        mask = jnp.arange(keys.shape[-3])[None] <= position
        return self._add(h, query, keys, values, mask)[..., 0, :], (keys, values)

    def empty_cache(self, shape: tuple[int, ...], length: int) -> tuple[Array, Array]:
        """Room for the keys and values of sequences of this length."""
        zeros = jnp.zeros((*shape, length, *self.query_key_value.shape[2:]), self.query_key_value.dtype)
        return zeros, zeros

    def _project(self, h: Array) -> list[Array]:
        projected = self._contract("...ti,ikhd->...tkhd", normalise(self.attention_norm, h), self.query_key_value)
        return [projected[..., k, :, :] for k in range(3)]

    def _add(self, h: Array, query: Array, key: Array, value: Array, mask: Array) -> Array:
        scores = self._contract("...qhd,...khd->...hqk", query * query.shape[-1] ** -0.5, key)
        weights = jax.nn.softmax(jnp.where(mask[..., None, :, :], scores, jnp.finfo(scores.dtype).min), axis=-1)
        seen = self._contract("...hqk,...khd->...qhd", weights, value)
        h = h + self._contract("...qhd,hdo->...qo", seen, self.attention_out)
        hidden = self._contract("...i,io->...o", normalise(self.mlp_norm, h), self.mlp_in) + self.mlp_in_bias
        return h + self._contract("...i,io->...o", jax.nn.gelu(hidden), self.mlp_out) + self.mlp_out_bias

    def _contract(self, subscripts: str, a: Array, b: Array) -> Array:
        return contract(subscripts, a, b, self.compute_dtype)


def make_blocks(
    key: PRNGKeyArray, width: int, num_heads: int, num_layers: int, compute_dtype: Any
) -> tuple[TransformerBlock, ...]:
    """Blocks of one width, after a check of their sizes."""
    width, num_heads = check_count("width", width, 1), check_count("num_heads", num_heads, 1)
    if width % num_heads:
        raise ValueError(f"width must be a multiple of num_heads, got {width} and {num_heads}")
    keys = jax.random.split(key, check_count("num_layers", num_layers, 1))
    return tuple(TransformerBlock(each, width, num_heads, num_layers, compute_dtype) for each in keys)
