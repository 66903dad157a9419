"""Plain chains, parallel tempering and tempered SMC on posteriors of one and of many modes, at equal costs.

Four independent latents z with prior Normal(0, 3); each is seen as x = 2 through a function with the noise 0.2:

- "equal": |z|, two modes a latent, of mass one half each by symmetry;
- "unequal": z where it is positive, -4 z where it is negative: modes at 2 and -0.5, the second a quarter as wide;
- "one": z itself.

So there are 16, 16 and 1 modes, whose masses and evidence are known by quadrature in one dimension. `GRADIENTS`
evaluations of the gradient for each sampler, warm-up counted and the search for step sizes on a few particles of SMC
not; chains start at draws from the prior.
"""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from benchmarks.timing import alternate, print_rows
from numpyro_kaem import Ladder, Langevin, ParallelTempering, TemperedSMC

LATENTS, NOISE, SPREAD, OBSERVED = 4, 0.2, 3.0, 2.0
FUNCTIONS: dict[str, Callable] = {
    "equal": jnp.abs,
    "unequal": lambda z: jnp.where(z > 0, z, -4.0 * z),
    "one": lambda z: z,
}


def make_model(name: str) -> Callable:
    """A NumPyro model of data that are all seen through the same function."""

    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENTS), SPREAD).to_event(1))
            numpyro.sample("x", dist.Normal(FUNCTIONS[name](z), NOISE).to_event(1), obs=x)

    return model


def truth(name: str) -> tuple[float, float, float, float]:
    """Of a latent: mass where it is positive, mean and standard deviation; and the log-evidence of all of them."""
    z = np.linspace(-8.0, 8.0, 800_001)
    seen = np.asarray(FUNCTIONS[name](jnp.asarray(z)), float)
    normal = np.exp(-0.5 * (z / SPREAD) ** 2 - 0.5 * ((seen - OBSERVED) / NOISE) ** 2) / (2 * np.pi * SPREAD * NOISE)
    mass = normal.sum()
    mean = (normal * z).sum() / mass
    deviation = ((normal * (z - mean) ** 2).sum() / mass) ** 0.5
    return normal[z > 0].sum() / mass, mean, deviation, LATENTS * np.log(mass * (z[1] - z[0]))


def samplers(size: int) -> dict[str, object]:
    """Samplers by name, each of 40 `size` evaluations of the gradient a datum."""
    return {
        "`Langevin`, 40 chains": Langevin(num_steps=size // 2, warmup=size // 2, num_chains=40, progress=False),
        "`ParallelTempering`, 8 rungs, 5 chains": ParallelTempering(
            Ladder.power(7), num_steps=size // 2, warmup=size // 2, num_chains=5, progress=False
        ),
        "`TemperedSMC`, 8 rungs, 10 moves": TemperedSMC(
            Ladder.power(8), num_particles=size // 2, num_mcmc_steps=10, progress=False
        ),
    }


def errors(name: str, posterior) -> dict[str, float]:
    """What a run has got wrong, means or root mean squares over the data."""
    positive, mean, deviation, log_evidence = truth(name)
    weights = np.exp(posterior.log_weights - posterior.log_weights.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    z = posterior.latents["z"]
    share = np.einsum("bs,bsp->bp", weights, z > 0)
    # All signs together are the modes; with `one` there is the one whose sign is known.
    mode = ((z > 0) * 2 ** np.arange(LATENTS)).sum(-1)
    found = np.stack([(weights * (mode == k)).sum(1) for k in range(2**LATENTS)], axis=1)
    signs = (np.arange(2**LATENTS)[:, None] >> np.arange(LATENTS)) & 1
    exact = np.where(signs == 1, positive, 1.0 - positive).prod(1)
    means = (np.einsum("bs,bsp->bp", weights, z) - mean) / deviation
    evidence = posterior.log_evidence
    return {
        "share": float(share.mean()),
        "variation": float(0.5 * np.abs(found - exact).sum(1).mean()),
        "mean": float(np.sqrt(np.mean(means**2))),
        "evidence": np.nan if evidence is None else float(np.sqrt(np.mean((evidence - log_evidence) ** 2))),
        "rhat": np.nan if posterior.rhat is None else float(np.median(posterior.rhat)),
    }


def runner(sampler, model: Callable, x: jax.Array, posteriors: dict, name: str) -> Callable:
    """A function that runs a sampler and keeps the posterior."""

    def run():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # R-hat is in the table
            posteriors[name] = sampler.run(jax.random.key(1), model, {}, x)
        return posteriors[name].latents

    return run


def main(quick: bool = False) -> None:
    """Print a table for each posterior."""
    num_data, size = (4, 200) if quick else (20, 2_000)
    x = jnp.full((num_data, LATENTS), OBSERVED)
    for name in ["unequal"] if quick else FUNCTIONS:
        rows, posteriors = [], {}
        model = make_model(name)
        functions = {key: runner(sampler, model, x, posteriors, key) for key, sampler in samplers(size).items()}
        seconds = alternate(functions, runs=1)
        base = next(iter(seconds.values()))
        for sampler_name, posterior in posteriors.items():
            found = errors(name, posterior)
            values = [f"{found['share']:.3f}", f"{found['variation']:.3f}", f"{found['mean']:.3f}"]
            values += ["" if np.isnan(found[key]) else f"{found[key]:.2f}" for key in ("evidence", "rhat")]
            values.append(f"{seconds[sampler_name][0] / base[0]:.2f}")
            rows.append((sampler_name, *values))
        header = ("sampler", "mass of z > 0", "variation", "error of mean", "error of log-evidence", "R-hat", "time")
        positive, *_, log_evidence = truth(name)
        modes = 1 if name == "one" else 2**LATENTS
        title = f"Modes: {modes} ({name}), mass of z > 0 {positive:.3f}, log-evidence {log_evidence:.2f}"
        print_rows(f"{title}, {40 * size:,} gradients", header, rows)
