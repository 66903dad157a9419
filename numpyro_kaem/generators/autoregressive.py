"""Distribution of sequences of tokens, each drawn from a categorical distribution that depends on those before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from numpyro.distributions import constraints
from numpyro.util import is_prng_key


def real_positions(tokens: Int[Array, "... length"], end_token: int | None) -> Bool[Array, "... length"]:
    """Whether a position is no padding: all up to the first end token, and that one."""
    if end_token is None:
        return jnp.ones(jnp.shape(tokens), bool)
    is_end = (tokens == end_token).astype(jnp.int32)
    return jnp.cumsum(is_end, axis=-1) - is_end == 0


def check_tokens(tokens: ArrayLike, vocabulary_size: int, length: int, end_token: int | None) -> None:
    """Raise an error for tokens of another length or kind, or where one that is no padding is outside the vocabulary.

    Values are looked at where they are known: of arrays that are traced, as under `jax.jit`, only shape and dtype are.
    """
    dtype = jnp.result_type(tokens)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"tokens must be whole numbers of an integer dtype, got {dtype}")
    shape = jnp.shape(tokens)
    if not shape or shape[-1] != length:
        raise ValueError(f"tokens must have a last axis of size {length}, got shape {shape}")
    if isinstance(tokens, Tracer) or (isinstance(tokens, jax.Array) and not tokens.is_fully_addressable):
        return
    values = np.asarray(tokens)
    outside = (values < 0) | (values >= vocabulary_size)
    if end_token is not None:
        is_end = values == end_token
        outside &= np.cumsum(is_end, axis=-1) == 0
    if outside.any():
        place = tuple(int(index[0]) for index in np.nonzero(outside))
        index = place[0] if len(place) == 1 else place
        others = f" and {outside.sum() - 1} more" if outside.sum() > 1 else ""
        raise ValueError(
            f"tokens must be at least 0 and below vocabulary_size={vocabulary_size}, "
            f"got {values[place]} at index {index}{others}"
        )


@runtime_checkable
class AutoregressiveDecoder(Protocol):
    """What the distribution asks of a decoder, an Equinox module such as `SequenceDecoder`."""

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""

    @property
    def length(self) -> int:
        """Number of positions."""

    @property
    def end_token(self) -> int | None:
        """The token behind which a sequence is padding."""

    def __call__(self, z: Array, tokens: Array) -> Array:
        """Logits of every position, given the tokens before it."""

    def sample(self, key: Array, z: Array) -> Array:
        """Sequences, one for each z."""


class AutoregressiveCategorical(dist.Distribution):
    r"""Sequences of tokens, drawn one after the other:

        log p(x | z) = sum_t log softmax(decoder(z, x)_t)[x_t],

    where the logits at t depend on the tokens before t. With an end token the sum ends at the first one, and draws are
    filled with it from there on: what follows in data has no part in the likelihood. It is a distribution of sequences
    whose padding is the end token, then.

    `SequenceDecoder.distribution` makes one. As an argument of `numpyro.sample` it serves training, where
    log-probabilities of all positions come from one call of the decoder, and `Predictive`, where draws take one step
    for each token.

    Args:
        decoder: an `AutoregressiveDecoder`, such as `SequenceDecoder`.
        z: latents, whose leading axes are the batch shape.
        validate_args: as in every NumPyro distribution.

    Raises:
        TypeError: by `log_prob`, for tokens of no integer dtype.
        ValueError: by `log_prob`, for tokens of another length, or outside of the vocabulary where their values are
            known. Where they are not, as under `jax.jit`, such a token has log-probability -inf.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        from numpyro.contrib.module import eqx_module
        from numpyro_kaem import SequenceDecoder

        network = SequenceDecoder(jax.random.key(0), 2, vocabulary_size=5, length=8, width=16, num_heads=2)


        def model(x=None, num_data=None):
            decoder = eqx_module("decoder", network)
            with numpyro.plate("data", num_data or len(x)):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
                return numpyro.sample("x", decoder.distribution(z), obs=x)


        with numpyro.handlers.seed(rng_seed=0):
            assert model(num_data=3).shape == (3, 8)
        ```
    """

    arg_constraints = {"z": constraints.real_vector}
    pytree_data_fields = ("decoder", "z")
    pytree_aux_fields = ("_ranks",)

    def __init__(
        self, decoder: AutoregressiveDecoder, z: Float[Array, "... in_size"], *, validate_args: bool | None = None
    ):
        self.decoder, self.z = decoder, z
        self._ranks = tuple(map(jnp.ndim, jax.tree.leaves(decoder)))
        super().__init__(jnp.shape(z)[:-1], (decoder.length,), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Whole numbers below the size of the vocabulary, at every position."""
        return constraints.independent(constraints.integer_interval(0, self.decoder.vocabulary_size - 1), 1)

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Int[Array, "... length"]:
        """Draw sequences, token by token."""
        assert is_prng_key(key)
        decoder, z, axes = self._decoders()

        def draw(decoder: AutoregressiveDecoder, z: Array, key: Array) -> Array:
            return decoder.sample(key, jnp.broadcast_to(z, sample_shape + z.shape))

        keys = jax.random.split(key, z.shape[: len(axes)]) if axes else key
        draws = _map(draw, len(axes))(decoder, z, keys)
        return jnp.moveaxis(draws, range(len(axes)), [len(sample_shape) + axis for axis in axes])

    def log_prob(self, value: Any) -> Float[Array, "..."]:
        """Log-probability of sequences; leading axes are broadcast with those of z."""
        check_tokens(value, self.decoder.vocabulary_size, self.event_shape[0], self.decoder.end_token)
        tokens = jnp.asarray(value)
        decoder, z, axes = self._decoders()
        if axes:
            shape = jnp.broadcast_shapes(self.z.shape[:-1], tokens.shape[:-1])
            tokens = jnp.broadcast_to(tokens, (*shape, tokens.shape[-1]))
        here, there = [tokens.ndim - self.z.ndim + axis for axis in axes], range(len(axes))
        log_probs = _map(_log_prob, len(axes))(decoder, z, jnp.moveaxis(tokens, here, there))
        return jnp.moveaxis(log_probs, there, here)

    def _decoders(self) -> tuple[AutoregressiveDecoder, Array, list[int]]:
        """Decoder, z, and the axes of the batch along which the decoders differ: they are in front in all arrays.

        All arrays have such axes in front when `vmap` or NumPyro's `scan` has returned the distribution.
        """
        leaf = jax.tree.leaves(self.decoder)[0]
        num_new = jnp.ndim(leaf) - self._ranks[0]
        axes = [axis for axis in range(num_new) if leaf.shape[axis] > 1]
        same = [axis for axis in range(num_new) if axis not in axes]
        decoder = jax.tree.map(lambda leaf: jnp.squeeze(leaf, same), self.decoder) if same else self.decoder
        return decoder, jnp.moveaxis(self.z, axes, range(len(axes))) if axes else self.z, axes


def _map(function: Callable, times: int) -> Callable:
    return _map(jax.vmap(function), times - 1) if times else function


def _log_prob(decoder: AutoregressiveDecoder, z: Array, tokens: Array) -> Array:
    log_probs = jax.nn.log_softmax(decoder(z, tokens), axis=-1)
    tokens = jnp.broadcast_to(tokens, log_probs.shape[:-1])
    is_known = (tokens >= 0) & (tokens < log_probs.shape[-1])
    chosen = jnp.take_along_axis(log_probs, jnp.where(is_known, tokens, 0)[..., None], axis=-1)[..., 0]
    chosen = jnp.where(is_known, chosen, -jnp.inf)
    return jnp.sum(jnp.where(real_positions(tokens, decoder.end_token), chosen, 0.0), axis=-1)
