"""Transformers that decode and encode sequences of tokens."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from numpyro_kaem.checks import check_count
from numpyro_kaem.generators.attention import TransformerBlock, make_blocks, normalise
from numpyro_kaem.generators.autoregressive import AutoregressiveCategorical, check_tokens, real_positions
from numpyro_kaem.generators.precision import check_compute_dtype, contract


class SequenceDecoder(eqx.Module):
    r"""Autoregressive decoder of sequences of tokens: a causal transformer that sees the latent at every position.

    The logits of position t come from z and from the tokens x_0, ..., x_{t-1}:

        h_t = z W + E[x_{t-1}] + P_t,   logits_t = norm(blocks(h)_t) V + b,

    without E[.] at t = 0. Blocks are attention to the positions up to t and a perceptron, each of what is normalised,
    each added to its input (Xiong et al.).

    `decoder(z, tokens)` gives the logits of all positions at once, `decoder.sample(key, z)` draws sequences token by
    token in one compiled loop that keeps the keys and values of earlier positions, and `decoder.distribution(z)` is
    the NumPyro distribution with both: `numpyro.sample("x", decoder.distribution(z), obs=x)`. All take any leading
    batch dimensions.

    With an `end_token` sequences may end early. What follows the first one is padding: it has no part in the
    likelihood, and draws fill it with the end token.

    Embeddings and z W start at unit variance, other weights as is said in MLP, and the logits at unit scale.

    Args:
        key: JAX random key.
        in_size: size of the last axis of z, at least 1.
        vocabulary_size: tokens are 0, ..., vocabulary_size - 1.
        length: number of positions, at least 1.
        width: size of the hidden vector of a position, a multiple of num_heads.
        num_heads: number of attention heads of a block.
        num_layers: number of blocks.
        end_token: the token behind which a sequence is padding; None where all sequences have the full length.
        compute_dtype: dtype to which the factors of matrix products are rounded, such as `jnp.bfloat16`; sums,
            normalisations, softmax, the parameters and their gradients keep the parameters' dtype. None for that dtype.

    Raises:
        TypeError: when called with tokens of no integer dtype.
        ValueError: for a size below 1, a width that is no multiple of num_heads, an end_token outside of the
            vocabulary, a compute_dtype that is not floating; when called, for a z or tokens whose last axes are not
            in_size and length, or a token outside of the vocabulary whose value is known, see `check_tokens`.

    References:
        A. Vaswani et al., Attention Is All You Need, NeurIPS 2017.

    Example:
        ```python
        import equinox as eqx
        import jax
        from numpyro_kaem import SequenceDecoder

        decoder = SequenceDecoder(jax.random.key(0), 10, vocabulary_size=27, length=12, width=32, end_token=0)
        z = jax.random.normal(jax.random.key(1), (3, 10))
        tokens = eqx.filter_jit(decoder.sample)(jax.random.key(2), z)
        assert tokens.shape == (3, 12)
        assert decoder(z, tokens).shape == (3, 12, 27)
        assert decoder.distribution(z).log_prob(tokens).shape == (3,)
        ```
    """

    latent_weight: Float[Array, "in_size width"]
    token_embedding: Float[Array, "vocabulary_size width"]
    position_embedding: Float[Array, "length width"]
    blocks: tuple[TransformerBlock, ...]
    norm: eqx.nn.LayerNorm
    out_weight: Float[Array, "width vocabulary_size"]
    out_bias: Float[Array, " vocabulary_size"]
    end_token: int | None = eqx.field(static=True)
    compute_dtype: np.dtype | None = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        in_size: int,
        vocabulary_size: int,
        length: int,
        *,
        width: int = 128,
        num_heads: int = 4,
        num_layers: int = 2,
        end_token: int | None = None,
        compute_dtype: Any = None,
    ):
        in_size = check_count("in_size", in_size, 1)
        vocabulary_size, length = check_count("vocabulary_size", vocabulary_size, 1), check_count("length", length, 1)
        self.end_token = _check_end_token(end_token, vocabulary_size)
        self.compute_dtype = check_compute_dtype(compute_dtype)
        keys = jax.random.split(key, 5)
        self.blocks = make_blocks(keys[0], width, num_heads, num_layers, self.compute_dtype)
        self.latent_weight = in_size**-0.5 * jax.random.normal(keys[1], (in_size, width))
        self.token_embedding = jax.random.normal(keys[2], (vocabulary_size, width))
        self.position_embedding = jax.random.normal(keys[3], (length, width))
        self.norm = eqx.nn.LayerNorm(width)
        self.out_weight = width**-0.5 * jax.random.normal(keys[4], (width, vocabulary_size))
        self.out_bias = jnp.zeros(vocabulary_size)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""
        return self.token_embedding.shape[-2]

    @property
    def length(self) -> int:
        """Number of positions."""
        return self.position_embedding.shape[-2]

    def __call__(self, z: Float[Array, "..."], tokens: ArrayLike) -> Float[Array, "... length vocabulary_size"]:
        """Logits of each position, given z and the tokens before it; leading axes of the two are broadcast.

        Of a token outside of the vocabulary whose value is not known, as under `jax.jit`, the nearest one's embedding
        is taken; the distribution gives it the log-probability -inf.
        """
        self.check_tokens(tokens)
        tokens = jnp.asarray(tokens)
        latent = self._embed_latent(z)
        batch_shape = _broadcast(z, tokens)
        before = self.token_embedding[jnp.clip(tokens[..., :-1], 0, self.vocabulary_size - 1)]
        before = jnp.pad(before, [(0, 0)] * (before.ndim - 2) + [(1, 0), (0, 0)])
        h = latent[..., None, :] + before + self.position_embedding
        h = jnp.broadcast_to(h, (*batch_shape, *h.shape[-2:]))
        mask = jnp.tri(self.length, dtype=bool)
        for block in self.blocks:
            h = block(h, mask)
        return self._logits(h)

    def sample(self, key: PRNGKeyArray, z: Float[Array, "..."]) -> Int[Array, "... length"]:
        """Draw a sequence for each z, token by token."""

        def choose(key: Array, logits: Array) -> Array:
            return jax.random.categorical(key, logits)

        tokens, _ = self._generate(z, jax.random.split(key, self.length), choose)
        return tokens

    def most_probable(self, z: Float[Array, "..."]) -> Int[Array, "... length"]:
        """The sequence for each z of which every token is the most probable one after those before it."""
        tokens, _ = self._generate(z, jnp.zeros(self.length), lambda _, logits: jnp.argmax(logits, axis=-1))
        return tokens

    def distribution(self, z: Float[Array, "..."], *, validate_args: bool | None = None) -> AutoregressiveCategorical:
        """The NumPyro distribution of sequences given z, of batch shape `z.shape[:-1]` and event shape `(length,)`."""
        self._check_latent(z)
        return AutoregressiveCategorical(self, z, validate_args=validate_args)

    def check_tokens(self, tokens: ArrayLike) -> None:
        """Raise an error that names the first token outside of the vocabulary, and its place; padding may be anything.

        Values are looked at where they are known. Call it on data before they go into compiled programs.
        """
        check_tokens(tokens, self.vocabulary_size, self.length, self.end_token)

    def padded(self, tokens: ArrayLike, lengths: ArrayLike | None = None) -> Int[Array, "... length"]:
        """Sequences as `sample` gives them: with the end token in place of all that follows the first one.

        With `lengths`, the number of tokens of each sequence, also in place of what follows these.
        """
        tokens = jnp.asarray(tokens)
        if self.end_token is None:
            if lengths is not None:
                raise ValueError("lengths need an end_token, which takes the place of what follows a sequence")
            return tokens
        is_real = real_positions(tokens, self.end_token)
        if lengths is not None:
            is_real &= jnp.arange(self.length) < jnp.asarray(lengths)[..., None]
        return jnp.where(is_real, tokens, self.end_token)

    def _generate(self, z: Array, choices: Array, choose: Any) -> tuple[Array, Array]:
        """Tokens and their logits: `choose(choices[t], logits_t)` one position after the other."""
        latent = self._embed_latent(z)
        batch_shape = latent.shape[:-1]

        def step(carry: tuple, at: tuple) -> tuple[tuple, tuple]:
            caches, previous, has_ended = carry
            position, choice, embedding = at
            before = jnp.where(position > 0, self.token_embedding[previous], 0.0)
            h, new_caches = latent + before + embedding, []
            for block, cache in zip(self.blocks, caches, strict=True):
                h, cache = block.step(h, cache, position)
                new_caches.append(cache)
            logits = self._logits(h)
            token = choose(choice, logits).astype(previous.dtype)
            if self.end_token is not None:
                token = jnp.where(has_ended, self.end_token, token)
                has_ended = has_ended | (token == self.end_token)
            return (tuple(new_caches), token, has_ended), (token, logits)

        caches = tuple(block.empty_cache(batch_shape, self.length) for block in self.blocks)
        start = caches, jnp.zeros(batch_shape, int), jnp.zeros(batch_shape, bool)
        at = jnp.arange(self.length), choices, self.position_embedding
        _, (tokens, logits) = jax.lax.scan(step, start, at)
        return jnp.moveaxis(tokens, 0, -1), jnp.moveaxis(logits, 0, -2)

    def _check_latent(self, z: Array) -> None:
        in_size = self.latent_weight.shape[-2]
        if jnp.ndim(z) == 0 or z.shape[-1] != in_size:
            raise ValueError(f"z must have a last axis of size {in_size}, got shape {jnp.shape(z)}")

    def _embed_latent(self, z: Array) -> Array:
        self._check_latent(z)
        return contract("...i,io->...o", z, self.latent_weight, self.compute_dtype)

    def _logits(self, h: Array) -> Array:
        return contract("...i,io->...o", normalise(self.norm, h), self.out_weight, self.compute_dtype) + self.out_bias


class SequenceEncoder(eqx.Module):
    """Encoder of sequences of tokens: a transformer that sees them in both directions, averaged over positions.

        h_t = E[x_t] + P_t,   out = mean_t(norm(blocks(h)_t)) V + b.

    The counterpart of `SequenceDecoder`, on any leading batch dimensions. With an `end_token` neither the mean nor
    attention looks behind the first one; itself it counts, so that there is no sequence of nothing.

    Args:
        key: JAX random key.
        vocabulary_size: tokens are 0, ..., vocabulary_size - 1.
        length: number of positions, at least 1.
        out_size: size of the last axis of the output, at least 1.
        width: size of the hidden vector of a position, a multiple of num_heads.
        num_heads: number of attention heads of a block.
        num_layers: number of blocks.
        end_token: the token behind which a sequence is padding; None where all sequences have the full length.
        compute_dtype: as of `SequenceDecoder`.

    Raises:
        TypeError: when called with tokens of no integer dtype.
        ValueError: for a size below 1, a width that is no multiple of num_heads, an end_token outside of the
            vocabulary, a compute_dtype that is not floating; when called, for tokens whose last axis is not of that
            length, or one outside of the vocabulary whose value is known. Where it is not, as under `jax.jit`, the
            nearest one's embedding is taken.

    Example:
        ```python
        import equinox as eqx
        import jax
        import jax.numpy as jnp
        from numpyro_kaem import SequenceEncoder

        encoder = SequenceEncoder(jax.random.key(0), 27, 12, 2 * 10, width=32, end_token=0)
        tokens = jnp.array([[8, 5, 12, 12, 15, 0, 0, 0, 0, 0, 0, 0]])
        assert eqx.filter_jit(encoder)(tokens).shape == (1, 20)
        ```
    """

    token_embedding: Float[Array, "vocabulary_size width"]
    position_embedding: Float[Array, "length width"]
    blocks: tuple[TransformerBlock, ...]
    norm: eqx.nn.LayerNorm
    out_weight: Float[Array, "width out_size"]
    out_bias: Float[Array, " out_size"]
    end_token: int | None = eqx.field(static=True)
    compute_dtype: np.dtype | None = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        vocabulary_size: int,
        length: int,
        out_size: int,
        *,
        width: int = 128,
        num_heads: int = 4,
        num_layers: int = 2,
        end_token: int | None = None,
        compute_dtype: Any = None,
    ):
        vocabulary_size, length = check_count("vocabulary_size", vocabulary_size, 1), check_count("length", length, 1)
        out_size = check_count("out_size", out_size, 1)
        self.end_token = _check_end_token(end_token, vocabulary_size)
        self.compute_dtype = check_compute_dtype(compute_dtype)
        keys = jax.random.split(key, 4)
        self.blocks = make_blocks(keys[0], width, num_heads, num_layers, self.compute_dtype)
        self.token_embedding = jax.random.normal(keys[1], (vocabulary_size, width))
        self.position_embedding = jax.random.normal(keys[2], (length, width))
        self.norm = eqx.nn.LayerNorm(width)
        self.out_weight = width**-0.5 * jax.random.normal(keys[3], (width, out_size))
        self.out_bias = jnp.zeros(out_size)

    def __call__(self, tokens: ArrayLike) -> Float[Array, "... out_size"]:
        """Map sequences, the last axis of tokens, to vectors of out_size."""
        self.check_tokens(tokens)
        tokens = jnp.asarray(tokens)
        is_real = real_positions(tokens, self.end_token)
        h = self.token_embedding[jnp.clip(tokens, 0, self.token_embedding.shape[0] - 1)] + self.position_embedding
        for block in self.blocks:
            h = block(h, is_real[..., None, :])
        mean = jnp.mean(normalise(self.norm, h), axis=-2, where=is_real[..., None])
        return contract("...i,io->...o", mean, self.out_weight, self.compute_dtype) + self.out_bias

    def check_tokens(self, tokens: ArrayLike) -> None:
        """Raise an error that names the first token outside of the vocabulary, and its place; see `SequenceDecoder`."""
        vocabulary_size, length = self.token_embedding.shape[0], self.position_embedding.shape[0]
        check_tokens(tokens, vocabulary_size, length, self.end_token)


def _check_end_token(end_token: int | None, vocabulary_size: int) -> int | None:
    if end_token is None:
        return None
    end_token = check_count("end_token", end_token, 0)
    if end_token >= vocabulary_size:
        raise ValueError(f"end_token must be below vocabulary_size={vocabulary_size}, got {end_token}")
    return end_token


def _broadcast(z: Array, tokens: Array) -> tuple[int, ...]:
    """The common batch shape."""
    try:
        return jnp.broadcast_shapes(z.shape[:-1], tokens.shape[:-1])
    except ValueError:
        raise ValueError(
            f"leading axes of z and tokens must broadcast, got shapes {z.shape} and {tokens.shape}"
        ) from None
