"""A training step of `ConvDecoder` against that of the same network in Flax NNX, and drawing of sequences."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.timing import alternate, print_rows
from numpyro_kaem import ConvDecoder, SequenceDecoder

BATCH, LATENTS = 128, 32


class FlaxDecoder(nnx.Module):
    """Dense layer and transposed convolutions, with the weights of a `ConvDecoder` of even size."""

    def __init__(self, decoder: ConvDecoder):
        rngs, self.first, self.num_layers = nnx.Rngs(0), decoder.grids[0], len(decoder.kernels)
        dense = decoder.dense_weight
        self.dense = nnx.Linear(*dense.shape, kernel_init=lambda *_: dense, rngs=rngs)
        for number, kernel in enumerate(decoder.kernels):
            *size, fan_in, fan_out = kernel.shape
            weight = jnp.swapaxes(kernel, 2, 3)
            options = {"strides": 2, "transpose_kernel": True, "kernel_init": lambda *_, weight=weight: weight}
            setattr(self, f"layer_{number}", nnx.ConvTranspose(fan_in, fan_out, size, **options, rngs=rngs))

    def __call__(self, z):
        h = self.dense(z).reshape(-1, *self.first)
        for number in range(self.num_layers):
            h = getattr(self, f"layer_{number}")(jax.nn.gelu(h))
        return h


def main() -> None:
    """Print milliseconds of a loss with its gradient, and the ratio of the two."""
    rows = []
    for shape in ((28, 28, 1), (32, 32, 3)):
        decoder = ConvDecoder(jax.random.key(0), LATENTS, shape)
        network = FlaxDecoder(decoder)
        z = jax.random.normal(jax.random.key(1), (BATCH, LATENTS))
        x = jax.random.bernoulli(jax.random.key(2), 0.3, (BATCH, *shape)).astype(float)
        ours, static = eqx.partition(decoder, eqx.is_inexact_array)
        definition, theirs = nnx.split(network)

        def loss(logits, x):
            return jnp.sum(jax.nn.softplus(logits) - x * logits) / BATCH

        @jax.jit
        def step(parameters, z, x, static=static):
            return jax.value_and_grad(lambda p: loss(eqx.combine(p, static)(z), x))(parameters)

        @jax.jit
        def flax_step(parameters, z, x, definition=definition):
            return jax.value_and_grad(lambda p: loss(nnx.merge(definition, p)(z), x))(parameters)

        np.testing.assert_allclose(step(ours, z, x)[0], flax_step(theirs, z, x)[0], rtol=1e-4)
        seconds = alternate({"ours": partial(step, ours, z, x), "flax": partial(flax_step, theirs, z, x)})
        mine, other = seconds["ours"], seconds["flax"]
        rows.append((str(shape), _milliseconds(mine), _milliseconds(other), f"{mine.min() / other.min():.2f}"))
    header = ("image", "ConvDecoder, ms: min / median", "Flax NNX, ms: min / median", "ratio of the least")
    print_rows(f"Loss and gradient of a decoder {LATENTS}-64-32, batch {BATCH}", header, rows)

    decoder = SequenceDecoder(jax.random.key(0), LATENTS, vocabulary_size=30, length=32, width=64)
    z = jax.random.normal(jax.random.key(1), (BATCH, LATENTS))
    arrays, static = eqx.partition(decoder, eqx.is_array)

    @jax.jit
    def draw(arrays, key, z):
        return eqx.combine(arrays, static).sample(key, z)

    @jax.jit
    def score(arrays, z, tokens):
        def of(arrays):
            return jnp.mean(eqx.combine(arrays, static).distribution(z).log_prob(tokens))

        return jax.value_and_grad(of)(arrays)

    @jax.jit
    def draw_anew(arrays, key, z):
        """Every token by a run over the whole sequence."""
        decoder = eqx.combine(arrays, static)

        def step(position, tokens):
            logits = decoder(z, tokens)[:, position]
            return tokens.at[:, position].set(jax.random.categorical(jax.random.fold_in(key, position), logits))

        return jax.lax.fori_loop(0, decoder.length, step, jnp.zeros((BATCH, decoder.length), int))

    key = jax.random.key(2)
    tokens = draw(arrays, key, z)
    calls = {
        "log-probabilities with their gradient": partial(score, arrays, z, tokens),
        "draws, with cached keys and values": partial(draw, arrays, key, z),
        "draws, each token by a run over all positions": partial(draw_anew, arrays, key, z),
    }
    seconds = alternate(calls, runs=5)
    rows = [(name, _milliseconds(times)) for name, times in seconds.items()]
    print_rows(f"SequenceDecoder, {BATCH} sequences of 32 tokens, width 64", ("what", "ms: min / median"), rows)


def _milliseconds(seconds: np.ndarray) -> str:
    return f"{1e3 * seconds.min():.1f} / {1e3 * np.median(seconds):.1f}"


if __name__ == "__main__":
    main()
