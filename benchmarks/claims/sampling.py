"""Time of draws: exact priors, a latent energy drawn by short-run Langevin, a normal prior and a diffusion model.

Of all models only the shapes count, so none is trained. Latent priors draw `DRAWS` latents in one compiled call, by
themselves and through a decoder. The diffusion models (DDPM) draw by ancestral sampling over 1,000 steps, and over
fewer ones that are evenly spaced among these. Their networks have about the decoder's size: they are the decoder
behind an encoder of its own shape.
"""

import time
from collections.abc import Callable, Iterator
from itertools import islice

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from benchmarks.timing import alternate, print_rows
from numpyro_kaem import MLP, BSpline, ConvDecoder, ConvEncoder, DeepKAPrior, KAPrior, UnivariateEnergy
from numpyro_kaem._numerics.convolutions import channels_last
from numpyro_kaem.kaem import ClusterPrior

DRAWS, LATENTS, LANGEVIN_STEPS, DIFFUSION_STEPS = 200, 40, 60, 1000
KEY = jax.random.key(0)


def priors(latents: int, quick: bool = False) -> dict[str, object]:
    """Priors by name, untrained. A prior that is made in the call builds its tables there, as in training."""
    energy = UnivariateEnergy.init(KEY, (latents,), basis=BSpline(20, 3, (-3.0, 3.0)), scale=1.0)
    normal = dist.Normal(jnp.zeros(latents), 1.0).to_event(1)
    deep = MLP(KEY, latents, 1, hidden_sizes=(200, 200))
    known = {
        "normal": normal,
        "`KAPrior`, tables kept": KAPrior(energy, dist.Normal(0.0, 1.0)).tabulate().to_event(1),
        f"`DeepKAPrior` 200-200-1, {LANGEVIN_STEPS} steps": DeepKAPrior(deep, normal, num_steps=LANGEVIN_STEPS),
    }
    if quick:
        return known
    clusters = ClusterPrior(KEY, 10, latents)()
    return known | {
        "`KAPrior`, tables rebuilt": energy,
        "`ClusterPrior` of 10, tables kept": dist.MixtureSameFamily(
            clusters.mixing_distribution, clusters.component_distribution.base_dist.tabulate().to_event(1)
        ),
        "`ClusterPrior` of 10, tables rebuilt": ClusterPrior(KEY, 10, latents),
    }


def made(prior: object) -> dist.Distribution:
    """The distribution of what `priors` has."""
    if isinstance(prior, UnivariateEnergy):
        return KAPrior(prior, dist.Normal(0.0, 1.0)).to_event(1)
    return prior() if isinstance(prior, ClusterPrior) else prior


@eqx.filter_jit
def latents_of(prior: object, key: jax.Array) -> jax.Array:
    """Draws of latents."""
    return made(prior).sample(key, (DRAWS,))


@eqx.filter_jit
def data_of(prior: object, decoder: Callable, key: jax.Array) -> jax.Array:
    """Draws of latents, decoded."""
    return decoder(made(prior).sample(key, (DRAWS,)))


class Denoiser(eqx.Module):
    """Noise of pictures at a time: an encoder to a latent vector, features of the time added to it, and a decoder."""

    encoder: Callable
    decoder: Callable

    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        """Noise in x at the time, from 0 to 1."""
        z = self.encoder(x)
        return self.decoder(z + jnp.sin(1_000.0 * time / 1.2 ** jnp.arange(z.shape[-1])))


@eqx.filter_jit
def ancestral(denoiser: Callable, shape: tuple[int, ...], num_steps: int, key: jax.Array) -> jax.Array:
    """Draws of a diffusion model (Ho et al. 2020), its betas 1e-4 to 0.02 over 1,000 steps, or some of these steps."""
    every = np.cumprod(1.0 - np.linspace(1e-4, 0.02, DIFFUSION_STEPS))
    chosen = np.round(np.linspace(0, DIFFUSION_STEPS - 1, num_steps)).astype(int)
    kept = every[chosen]
    alpha = kept / np.concatenate([[1.0], kept[:-1]])
    noise = np.sqrt(1.0 - alpha) * (np.arange(num_steps) > 0)  # the last step adds none
    along = (chosen / DIFFUSION_STEPS, (1.0 - alpha) / np.sqrt(1.0 - kept), np.sqrt(alpha), noise)
    along = tuple(jnp.asarray(values[::-1], jnp.float32) for values in along)
    start, *keys = jax.random.split(key, 2)

    def step(x, given):
        (time, weight, scale, noise), key = given
        x = (x - weight * denoiser(x, time)) / scale
        return x + noise * jax.random.normal(key, x.shape), None

    loop = channels_last(lambda x, given: jax.lax.scan(step, x, given)[0])
    return loop(jax.random.normal(start, shape), (along, jax.random.split(keys[0], num_steps)))


def decoders() -> Iterator[tuple[str, int, Callable, Callable, tuple[int, ...], int]]:
    """Names, latents, decoders, denoisers, shapes of data, and how many of them a denoiser draws at once."""
    mlp = MLP(KEY, 10, 784)
    yield "MLP 10-256-256-784", 10, mlp, Denoiser(MLP(KEY, 784, 10), mlp), (784,), 100
    shape, channels = (32, 32, 3), (256, 128, 64)
    decoder = ConvDecoder(KEY, LATENTS, shape, channels)
    denoiser = Denoiser(ConvEncoder(KEY, shape, LATENTS, channels[::-1]), decoder)
    name = f"`ConvDecoder` {LATENTS} to 32 x 32 x 3, channels 256-128-64"
    yield name, LATENTS, decoder, denoiser, shape, 10


def seconds_of_diffusion(denoiser: Callable, shape: tuple[int, ...], num_steps: int) -> float:
    """Seconds of one call, compiled before."""
    given = denoiser, shape, num_steps, KEY
    compiled = ancestral.lower(*given).compile()
    start = time.perf_counter()
    jax.block_until_ready(compiled(*given))
    return time.perf_counter() - start


def main(quick: bool = False) -> None:
    """Print draws a second of every model, and their time over that of a normal prior with the same decoder."""
    for name, latents, decoder, denoiser, shape, few in islice(decoders(), 1 if quick else None):
        known = priors(latents, quick)
        functions: dict[str, Callable] = {}
        for prior_name, prior in known.items():
            functions[f"prior {prior_name}"] = lambda prior=prior: latents_of(prior, KEY)
            functions[f"data {prior_name}"] = lambda prior=prior, decoder=decoder: data_of(prior, decoder, KEY)
        seconds = {key: float(values.min()) for key, values in alternate(functions, runs=5 if quick else 12).items()}
        base, rows = seconds["data normal"], []
        for prior_name in known:
            alone, whole = seconds[f"prior {prior_name}"], seconds[f"data {prior_name}"]
            rates = (f"{DRAWS / taken:,.0f}" for taken in (alone, whole))
            rows.append((prior_name, *rates, f"{whole / base:.2f}"))
        for num_steps in (10,) if quick else (10, 100, DIFFUSION_STEPS):
            taken = seconds_of_diffusion(denoiser, (few, *shape), num_steps)
            row = (f"DDPM, {num_steps:,} steps", "", f"{few / taken:,.1f}", f"{taken / few / base * DRAWS:,.0f}")
            rows.append(row)
        header = ("prior", "latents a second", "data a second", "time over normal's")
        print_rows(f"Draws, {DRAWS} at once (DDPM: {few}), {name}", header, rows)
