"""A training step by chains against the bare generator gradients that it needs, and an epoch against its steps."""

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
from numpyro_kaem import MALA, ULA, LangevinMLE, ThermodynamicMLE, fit
from numpyro_kaem._numerics.convolutions import channels_last

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
    compiled = run.lower(params, z, x, images).compile()
    return lambda: compiled(params, z, x, images), compiled


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
    functions, first, compiled = {}, {}, {}
    for rungs in (1, len(TEMPERATURES)):
        functions["bare", rungs], compiled["bare", rungs] = bare_step(decoder, x, rungs)
    for name, objective in objectives().items():
        functions[name], first[name], compiled[name] = make_step(model, x, objective)
    seconds = alternate(functions, runs=15)
    rows = []
    for (name, rungs), values in seconds.items():
        bare, author = seconds["bare", rungs].min(), AUTHOR[rungs]
        megabytes, bare_megabytes = (_megabytes(compiled[key, rungs]) for key in (name, "bare"))
        row = [name, str(rungs), f"{1e3 * values.min():.0f}", f"{values.min() / bare:.2f}"]
        row += [f"{values.min() / bare / (author['step'] / author['bare']):.2f}" if name != "bare" else ""]
        first_over = f"{first[name, rungs] / bare / (author['first'] / author['bare']):.2f}" if name != "bare" else ""
        row += [f"{first[name, rungs]:.1f}" if name != "bare" else "", first_over, f"{megabytes:.0f}"]
        rows.append((*row, f"{megabytes / bare_megabytes:.2f}"))
    # Machines are as fast as their bare gradients: by these the figures of another one are scaled.
    over = "over the author's"
    header = ("step", "rungs", "ms", "over bare", over, "first step, s", over, "memory, MB", "over bare")
    print_rows(f"Training steps, {len(x)} images, {LATENTS} latents, {STEPS} moves", header, rows)
    print_rows("Epochs of `fit`", ("steps", "s an epoch", "s of the steps alone", "overhead"), [epoch(model)])


def _megabytes(compiled) -> float:
    """What a compiled step holds at its peak: arguments, results and temporary arrays."""
    memory = compiled.memory_analysis()
    parts = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
    return (sum(parts) - memory.alias_size_in_bytes) / 1e6


def epoch(model, steps: int = 16) -> tuple[str, ...]:
    """Epochs of `fit`, with its progress bar, against as many steps in a compiled loop of their own."""
    _, _, x, _ = make_problem(steps * 64)
    objective, optimizer = LangevinMLE(ULA(step_size=1e-3), STEPS), optax.adam(1e-3)
    svi = SVI(model, lambda x: None, optimizer, objective)
    state = jax.jit(svi.init)(jax.random.key(1), x[:64])
    svi.get_params(state)
    batches = x.reshape(steps, 64, *x.shape[1:])
    loop = jax.jit(channels_last(lambda state, batches: jax.lax.scan(lambda s, b: svi.update(s, b), state, batches)))
    jax.block_until_ready(loop(state, batches))
    alone = []
    ends = []

    def at_the_end(number, row, params):
        """Time the steps alone between two epochs, so that both see the same machine."""
        ends.append(time.perf_counter())
        start = time.perf_counter()
        jax.block_until_ready(loop(state, batches))
        alone.append(time.perf_counter() - start)
        ends.append(time.perf_counter())

    fit(
        jax.random.key(2),
        model,
        x,
        objective=objective,
        optimizer=optimizer,
        num_epochs=7,
        batch_size=64,
        callbacks=[at_the_end],
    )
    epochs = np.array(ends[2::2]) - np.array(ends[1:-1:2])
    overhead = np.median(epochs / np.array(alone[1:])) - 1
    return str(steps), f"{np.median(epochs):.2f}", f"{np.median(alone):.2f}", f"{100 * overhead:.1f} %"


if __name__ == "__main__":
    main()
