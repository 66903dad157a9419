"""A training step by chains against the bare generator gradients that it needs: time, compilation, memory."""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm
from numpyro.infer import SVI

from benchmarks.samplers import LATENTS, NOISE, STEPS, TEMPERATURES, make_problem
from benchmarks.timing import alternate, print_rows
from numpyro_kaem import MALA, ULA, LangevinMLE, ThermodynamicMLE
from numpyro_kaem.convolutions import channels_last

# Of the author's JAX code (PritRaj1/thermo-ebms), the same sizes and 20 steps, on a machine where the bare generator
# gradients of these steps took as long as is said: a whole training step, and the first one with its compilation.
AUTHOR = {1: {"bare": 0.064, "step": 0.142, "first": 18.0}, 6: {"bare": 0.314, "step": 0.713, "first": 16.0}}


def bare_step(decoder, x, num_rungs: int):
    """The generator's gradients of a training step, and nothing else.

    These are those by z of `STEPS` steps and their start, for a latent per datum and rung, and those by parameters for
    a latent per datum.
    """
    params, static = eqx.partition(decoder, eqx.is_inexact_array)
    images = jnp.repeat(x, num_rungs, 0)

    @jax.jit
    def run(params, z, x, images):
        def log_likelihood(params, z, x):
            return jnp.sum(norm.logpdf(x, eqx.combine(params, static)(z), NOISE))

        gradient_by_z = channels_last(jax.value_and_grad(log_likelihood, 1))

        def step(z, _):
            value, gradient = gradient_by_z(params, z, images)
            return z + 1e-4 * gradient, value

        z, values = jax.lax.scan(step, z, None, STEPS + 1)
        return z, values, jax.grad(log_likelihood)(params, z[::num_rungs], x)

    z = jax.random.normal(jax.random.key(4), (len(images), LATENTS))
    return lambda: run(params, z, x, images)


def objectives() -> dict:
    """The objectives by kernel and number of rungs."""
    kernels = {"ULA": ULA(step_size=1e-3), "MALA": MALA(step_size=1e-3)}
    return {
        (name, rungs): LangevinMLE(kernel, STEPS) if rungs == 1 else ThermodynamicMLE(TEMPERATURES, kernel, STEPS)
        for name, kernel in kernels.items()
        for rungs in (1, len(TEMPERATURES))
    }


def make_step(model, x, objective):
    """A compiled training step as a function to be timed, and the seconds that the first one took."""
    svi = SVI(model, lambda x: None, optax.adam(1e-3), objective)
    state = jax.jit(svi.init)(jax.random.key(1), x)
    svi.get_params(state)
    start = time.perf_counter()
    compiled = jax.jit(svi.update).lower(state, x).compile()
    jax.block_until_ready(compiled(state, x))
    return lambda: compiled(state, x), time.perf_counter() - start, compiled


def main() -> None:
    """Print what a step takes, beside the bare gradients of its generator."""
    model, _, x, decoder = make_problem()
    functions = {("bare", rungs): bare_step(decoder, x, rungs) for rungs in (1, len(TEMPERATURES))}
    first, compiled = {}, {}
    for name, objective in objectives().items():
        functions[name], first[name], compiled[name] = make_step(model, x, objective)
    seconds = alternate(functions, runs=7)
    rows = []
    for name, values in seconds.items():
        bare = seconds["bare", name[1]]
        rows.append(
            (
                *map(str, name),
                f"{1e3 * values.min():.0f}",
                f"{np.median(values / bare):.3f}",
                f"{values.min() / bare.min():.3f}",
                f"{first.get(name, np.nan):.1f}",
            )
        )
    print_rows("Step", ("what", "rungs", "ms", "median ratio", "min ratio", "first"), rows)


if __name__ == "__main__":
    main()
