"""Posterior samplers against the bare gradients of their decoder, what they take to compile, and how they scale."""

import time
from collections.abc import Callable

import blackjax  # noqa: F401, whose import is not to be counted as compilation
import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.stats import norm
from numpyro.contrib.module import eqx_module

from benchmarks.timing import alternate, print_rows
from numpyro_kaem import (
    MALA,
    ULA,
    BSpline,
    ImportanceSampling,
    KAPrior,
    Ladder,
    Langevin,
    LatentModel,
    ParallelTempering,
    TemperedSMC,
    UnivariateEnergy,
)
from numpyro_kaem._numerics.convolutions import channels_last
from numpyro_kaem.posterior import chains, particles
from numpyro_kaem.posterior.chains import Problem

DATA, LATENTS, STEPS, NOISE = 64, 40, 20, 0.3
TEMPERATURES = Ladder.power(5, 3.0).temperatures


class Decoder(eqx.Module):
    """Three transposed convolutions from a latent vector to a 32 x 32 image of three channels.

    The loops here, the bare ones as well, go through `channels_last`, without which they are many times slower.
    """

    project: eqx.nn.Linear
    kernels: list[jax.Array]
    biases: list[jax.Array]

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        channels = (64, 32, 16, 3)
        self.project = eqx.nn.Linear(LATENTS, 4 * 4 * 64, key=keys[0])
        shapes = [(4, 4, channels[i], channels[i + 1]) for i in range(3)]
        self.kernels = [jax.nn.initializers.he_normal()(keys[i + 1], shapes[i]) for i in range(3)]
        self.biases = [jnp.zeros(shape[-1]) for shape in shapes]

    def __call__(self, z):
        """Images of latents `(*batch, LATENTS)`."""
        images = z.reshape(-1, LATENTS) @ self.project.weight.T + self.project.bias
        images = images.reshape(-1, 4, 4, 64)
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            layout = ("NHWC", "HWIO", "NHWC")
            images = jax.lax.conv_transpose(jax.nn.relu(images), kernel, (2, 2), "SAME", dimension_numbers=layout)
            images = images + bias
        return images.reshape(*z.shape[:-1], 32, 32, 3)


def make_problem(num_data: int = DATA):
    """A NumPyro model with a learned prior and the decoder, its parameters, images, and the bare decoder."""
    keys = jax.random.split(jax.random.key(0), 4)
    decoder = Decoder(keys[0])
    energy = UnivariateEnergy.init(keys[1], (LATENTS,), basis=BSpline(20, 3, (-3.0, 3.0)))

    def model(x):
        f, g = eqx_module("energy", energy), eqx_module("decoder", decoder)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", KAPrior(f, dist.Normal(0.0, 1.0)).to_event(1))
            numpyro.sample("x", dist.Normal(g(z), NOISE).to_event(3), obs=x)

    x = decoder(jax.random.normal(keys[2], (num_data, LATENTS)))
    x = x + NOISE * jax.random.normal(keys[3], x.shape)
    params = {"energy$params": eqx.filter(energy, eqx.is_inexact_array)}
    params["decoder$params"] = eqx.filter(decoder, eqx.is_inexact_array)
    return model, params, x, decoder


def bare_gradients(decoder, x, copies: int, rewrite: Callable = channels_last):
    """The decoder's gradients of `STEPS` Langevin steps of `copies` latents per datum, and nothing else."""
    images = jnp.repeat(x, copies, 0)

    @jax.jit
    def run(z):
        def log_likelihood(z):
            return jnp.sum(norm.logpdf(images, decoder(z), NOISE))

        def step(z, _):
            value, gradient = rewrite(jax.value_and_grad(log_likelihood))(z)
            return z + 1e-4 * gradient, value

        return jax.lax.scan(step, z, None, STEPS)

    z = jax.random.normal(jax.random.key(4), (len(images), LATENTS))
    return lambda: run(z)


def advance_chains(model, params, x, kernel, temperatures):
    """`STEPS` steps of the chains over a ladder, warm-up and recording included, as a function to be timed."""
    # The model itself would be traced at every call.
    problem = Problem(LatentModel(model, params, x))
    settings = chains.Settings(kernel, jnp.asarray(temperatures), len(temperatures) > 1, 1, STEPS)
    given = problem, settings, (x,), jax.random.split(jax.random.key(5), len(x))
    state, _ = chains.start(*given)
    span = jnp.asarray(0), jnp.asarray(STEPS), jnp.asarray(False)
    states = [state]

    def run():
        # Each call gives its memory to the next.
        states[0] = chains.advance(*given, span, states[0])
        return states[0]

    return run


def main() -> None:
    """Print the ratios of steps to bare gradients, the time to the first result, and how runs scale."""
    model, params, x, decoder = make_problem()
    functions = {"bare decoder, 1 temperature": bare_gradients(decoder, x, 1)}
    functions["bare decoder, 6 temperatures"] = bare_gradients(decoder, x, len(TEMPERATURES))
    functions["bare decoder as XLA has it, 1 temperature"] = bare_gradients(decoder, x, 1, rewrite=lambda fn: fn)
    for name, kernel in {"ULA": ULA(step_size=1e-3), "MALA": MALA(step_size=1e-3)}.items():
        functions[f"{name}, 1 temperature"] = advance_chains(model, params, x, kernel, [1.0])
        functions[f"{name}, 6 temperatures"] = advance_chains(model, params, x, kernel, TEMPERATURES)
    seconds = alternate(functions, runs=9)
    rows = []
    for name, values in seconds.items():
        bare = seconds["bare decoder, " + name.split(", ")[1]]
        ratio = jnp.median(jnp.asarray(values / bare))
        rows.append((name, f"{1e3 * min(values):.0f} ms", f"{ratio:.2f}"))
    print_rows(f"{STEPS} steps of {DATA} data", ("", "fastest", "ratio to the bare decoder"), rows)

    def total(sampler, x):
        start = time.perf_counter()
        sampler.run(jax.random.key(6), model, params, x)
        return time.perf_counter() - start

    samplers = {
        "ImportanceSampling": ImportanceSampling(100),
        "Langevin": Langevin(num_steps=STEPS, num_chains=1, progress=False),
        "ParallelTempering": ParallelTempering(TEMPERATURES, num_steps=STEPS, progress=False),
        "TemperedSMC, fixed": TemperedSMC(TEMPERATURES, num_particles=8, num_mcmc_steps=4, progress=False),
        "TemperedSMC, adaptive": TemperedSMC(num_particles=8, num_mcmc_steps=1, max_rungs=2000, progress=False),
    }
    compilations = []

    def listen(event, seconds, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    rows = []
    for name, sampler in samplers.items():
        compilations.clear()
        first, by_xla, second = total(sampler, x[:8]), sum(compilations), total(sampler, x[:8])
        rows.append((name, *(f"{seconds:.1f} s" for seconds in (first, second, first - second, by_xla))))
    header = ("", "first", "second", "difference", "compilation by XLA")
    print_rows("First run of a sampler and the next", header, rows)
    scaling()
    adaptive_ladders()


def scaling() -> None:
    """Print how the time of a run grows when one of its sizes doubles, compilation left out."""
    model, params, x, _ = make_problem(16)
    base = {"data": 4, "particles": 16, "rungs": 3, "steps": 3}

    def smc(data, particles, rungs, steps):
        ladder = jnp.linspace(0.0, 1.0, rungs + 1)
        return TemperedSMC(ladder, None, MALA(step_size=1e-3), particles, steps, progress=False), x[:data]

    def tempering(data, particles, rungs, steps):
        ladder = jnp.linspace(0.0, 1.0, rungs + 1)
        sampler = ParallelTempering(
            ladder, MALA(step_size=1e-3), 3 * steps, num_chains=particles // 8, warmup=0, progress=False
        )
        return sampler, x[:data]

    rows = []
    for name, make in {"TemperedSMC": smc, "ParallelTempering": tempering}.items():
        functions = {}
        for doubled in ("", *base):
            sampler, images = make(**{size: number * (2 if size == doubled else 1) for size, number in base.items()})
            functions[doubled] = lambda sampler=sampler, images=images: (
                sampler.run(jax.random.key(7), model, params, images).latents
            )
        seconds = alternate(functions, runs=2)
        ratios = [f"{min(seconds[size]) / min(seconds['']):.2f}" for size in base]
        rows.append((name, f"{min(seconds['']):.2f} s", *ratios))
    header = ("", "{data} data, {particles} particles, {rungs} rungs, {steps} steps".format(**base))
    print_rows("Time of a run when one size doubles", (*header, *(f"2 x {size}" for size in base)), rows)


def adaptive_ladders(num_data: int = 32) -> None:
    """Print what adaptive SMC costs, data x the largest number of rungs in a chunk, and how little of it is wasted."""

    def model(x, noise):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z, noise[:, None]).to_event(1), obs=x)

    # Half of the data are easy, half need several times the rungs.
    noise = jnp.where(jnp.arange(num_data) % 2 == 0, 1.0, 0.01)
    x = jax.random.normal(jax.random.key(8), (num_data, 4))
    rows = []
    for chunk in (num_data, num_data // 4):
        sampler = TemperedSMC(num_particles=200, chunk_size=200 * chunk, progress=False)
        sampler.run(jax.random.key(9), model, {}, x, noise)
        advance, calls = particles.advance, []
        particles.advance = lambda *args, calls=calls, advance=advance: calls.append(1) or advance(*args)
        start = time.perf_counter()
        posterior = sampler.run(jax.random.key(9), model, {}, x, noise)
        seconds, particles.advance = time.perf_counter() - start, advance
        needed = int(jnp.sum(jnp.isfinite(posterior.rungs.temperatures[:, 1:])))
        paid = len(calls) * chunk
        rows.append((str(chunk), str(needed), str(paid), f"{paid / needed:.2f}", f"{seconds:.1f} s"))
    header = ("data in a chunk", "rungs x data needed", "paid for", "ratio", "time")
    print_rows(f"Adaptive SMC of {num_data} data, every second one hard", header, rows)


if __name__ == "__main__":
    main()
