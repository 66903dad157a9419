"""A second call of samplers, `fit` and `to_arviz`, with a new key, new parameters and data, against the first."""

import gc
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.module import eqx_module

from benchmarks.timing import print_rows
from numpyro_kaem import (
    MLP,
    BSpline,
    ImportanceMLE,
    ImportanceSampling,
    KAPrior,
    Ladder,
    Langevin,
    ParallelTempering,
    TemperedSMC,
    UnivariateEnergy,
    fit,
)

EFFECTS = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
NUM_IMAGES, PIXELS, LATENTS = 1_000, 196, 10


def eight_schools(errors, effects):
    """Rubin's eight schools; errors and effects are data."""
    mu, tau = numpyro.sample("mu", dist.Normal(0.0, 10.0)), numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, errors), obs=effects)


def images() -> tuple[Callable, jax.Array]:
    """A KAEM of small binary images, and as many of them."""
    energy_key, decoder_key, data_key = jax.random.split(jax.random.key(0), 3)
    energy = UnivariateEnergy.init(energy_key, (LATENTS,), basis=BSpline(20, 3, (-3.0, 3.0)))
    decoder = MLP(decoder_key, LATENTS, PIXELS, hidden_sizes=(128, 128))

    def model(x):
        f, g = eqx_module("energy", energy), eqx_module("decoder", decoder)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", KAPrior(f, dist.Normal(0.0, 1.0)).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=g(z)).to_event(1), obs=x)

    return model, jax.random.bernoulli(data_key, 0.3, (NUM_IMAGES, PIXELS)).astype(float)


def main() -> None:
    """Print seconds of the first call and the following, and their ratio."""
    samplers = {
        "ImportanceSampling": lambda: ImportanceSampling(1_000),
        "Langevin": lambda: Langevin(num_steps=200, progress=False),
        "ParallelTempering": lambda: ParallelTempering(Ladder.power(4), num_steps=200, progress=False),
        "TemperedSMC": lambda: TemperedSMC(num_particles=200, num_mcmc_steps=5, progress=False),
    }

    def sample(name: str, i: int):
        return partial(samplers[name]().run, jax.random.key(i), eight_schools, {}, ERRORS, EFFECTS + i)

    rows = [_row(f"{name}, eight schools", partial(sample, name)) for name in samplers]
    rows.append(_row("to_arviz, eight schools", lambda i: sample("TemperedSMC", i)().to_arviz))

    model, x = images()
    # The model's own initial values, and others in their place: these are parameters.
    with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace() as sites:
        model(x[:2])
    weights = sites["decoder$params"]["value"]

    def train(i: int):
        return partial(
            fit,
            jax.random.key(i),
            model,
            jnp.roll(x, i, 1)[:800],
            objective=ImportanceMLE(100),
            optimizer=optax.adam(1e-3),
            num_epochs=2,
            batch_size=100,
            held_out=jnp.roll(x, i, 1)[800:],
            init_params={"decoder$params": jax.tree.map(lambda leaf: leaf * (1 + 0.01 * i), weights)},
            progress=False,
        )

    rows.append(_row("fit of a KAEM, 2 epochs, held-out data", train))
    params = train(0)().params

    def weigh(i: int):
        given = jax.tree.map(lambda leaf: leaf * (1 + 0.01 * i), params)
        return partial(ImportanceSampling(1_000).run, jax.random.key(i), model, given, jnp.roll(x, i, 1)[:200])

    rows.append(_row("ImportanceSampling, 200 images of a KAEM", weigh))
    header = ("what", "first call, s", "second", "third", "second over first")
    print_rows("Calls with a new key, new parameters and data of equal shapes, in one process", header, rows)


def _row(name: str, prepare: Callable) -> tuple[str, ...]:
    """Seconds of three calls of what `prepare` gives."""
    seconds = []
    for i in range(3):
        call = prepare(i)
        gc.collect()  # the garbage of earlier calls
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return (name, *(f"{value:.2f}" for value in seconds), f"{seconds[1] / seconds[0]:.3f}")


if __name__ == "__main__":
    main()
