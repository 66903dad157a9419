"""A training step of `ImportanceMLE` against the same step hand-written for a standard normal prior."""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI

from benchmarks.timing import alternate, print_rows
from numpyro_kaem import MLP, BSpline, ImportanceMLE, KAPrior, UnivariateEnergy

DRAWS = BATCH = 100
PIXELS, LATENTS, HIDDEN = 784, 40, (256, 256)


def main() -> None:
    """Print the time of a step, the ratio of the two, and the time of the first step with its compilation."""
    data_key, energy_key, decoder_key, run_key = jax.random.split(jax.random.key(0), 4)
    x = jax.random.bernoulli(data_key, 0.2, (BATCH, PIXELS)).astype(jnp.float32)
    decoder = MLP(decoder_key, LATENTS, PIXELS, hidden_sizes=HIDDEN)
    energy = UnivariateEnergy.init(energy_key, (LATENTS,), basis=BSpline(20, 3, (-3.0, 3.0)))

    def model(x):
        f, g = eqx_module("energy", energy), eqx_module("decoder", decoder)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", KAPrior(f, dist.Normal(0.0, 1.0)).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=g(z)).to_event(1), obs=x)

    svi = SVI(model, lambda *args: None, optax.adam(1e-3), ImportanceMLE(DRAWS))
    state = jax.jit(svi.init)(run_key, x)
    params, static = eqx.partition(decoder, eqx.is_inexact_array)
    svi.get_params(state)
    update = jax.jit(svi.update)
    first = {"numpyro_kaem": _seconds(lambda: update(state, x))}

    optimizer = optax.adam(1e-3)

    def loss(params, key, x):
        logits = eqx.combine(params, static)(jax.random.normal(key, (DRAWS, LATENTS)))
        log_likelihood = logits @ x.T - jnp.sum(jax.nn.softplus(logits), -1, keepdims=True)
        return -jnp.sum(jax.nn.logsumexp(log_likelihood, 0) - jnp.log(DRAWS))

    @jax.jit
    def plain(params, optimizer_state, key, x):
        key, draw_key = jax.random.split(key)
        value, gradient = jax.value_and_grad(loss)(params, draw_key, x)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return optax.apply_updates(params, updates), optimizer_state, key, value

    plain_state = (params, optimizer.init(params), run_key)
    first["plain JAX"] = _seconds(lambda: plain(*plain_state, x))
    steps = {"numpyro_kaem": lambda: update(state, x), "plain JAX": lambda: plain(*plain_state, x)}
    seconds = alternate(steps, runs=100)
    rows = [
        (
            name,
            f"{1e3 * times.min():.2f} / {1e3 * np.median(times):.2f} / {1e3 * times.max():.2f}",
            f"{times.min() / seconds['plain JAX'].min():.2f}",
            f"{first[name]:.1f}",
        )
        for name, times in seconds.items()
    ]
    title = f"Training step, S = B = {DRAWS}, {PIXELS} pixels, MLP {LATENTS}-256-256-{PIXELS}, Adam"
    header = ("what", "ms: min / median / max", "time over plain JAX's", "first step with compilation, s")
    print_rows(title, header, rows)


def _seconds(function) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
