"""Bias and spread of the objectives' gradients, in a model whose log p(x) and its gradient are known."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from benchmarks.timing import print_rows
from numpyro_kaem import MALA, ULA, ImportanceMLE, Ladder, LangevinMLE, ThermodynamicMLE

DATA, LATENTS, PIXELS, NOISE = 16, 2, 5, 0.5
REPETITIONS = 2000

PARAMS = {
    "location": jnp.array([0.5, -0.3]),
    "loadings": jax.random.normal(jax.random.key(0), (LATENTS, PIXELS)),
}


def model(x):
    """Factor analysis: z ~ N(location, 1), x ~ N(z loadings, NOISE)."""
    location = numpyro.param("location", PARAMS["location"])
    loadings = numpyro.param("loadings", PARAMS["loadings"])
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(location, 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z @ loadings, NOISE).to_event(1), obs=x)


def exact_loss(params, x):
    """Minus the log-likelihood in closed form."""
    covariance = params["loadings"].T @ params["loadings"] + NOISE**2 * jnp.eye(PIXELS)
    mean = params["location"] @ params["loadings"]
    return -jnp.sum(dist.MultivariateNormal(mean, covariance).log_prob(x))


def objectives() -> dict:
    """The objectives at a few settings."""
    mala, ula = MALA(step_size=0.05, precondition=False), ULA(step_size=0.02, precondition=False)
    ladder = Ladder.power(5, 3.0)
    smc = {"sampler": "smc", "num_particles": 16}
    return {
        "ImportanceMLE(10)": ImportanceMLE(10),
        "ImportanceMLE(100)": ImportanceMLE(100),
        "ImportanceMLE(1000)": ImportanceMLE(1000),
        "LangevinMLE(ULA, 5 steps, prior start)": LangevinMLE(ula, 5, start="prior"),
        "LangevinMLE(ULA, 50 steps, prior start)": LangevinMLE(ula, 50, start="prior"),
        "LangevinMLE(MALA, 5 steps, prior start)": LangevinMLE(mala, 5, start="prior"),
        "LangevinMLE(MALA, 50 steps, prior start)": LangevinMLE(mala, 50, start="prior"),
        "LangevinMLE(MALA, 5 steps)": LangevinMLE(mala, 5),
        "ThermodynamicMLE(6 rungs, 5 steps)": ThermodynamicMLE(ladder, mala, 5),
        "ThermodynamicMLE(6 rungs, 50 steps)": ThermodynamicMLE(ladder, mala, 50),
        'ThermodynamicMLE(6 rungs, 50 steps, "path")': ThermodynamicMLE(ladder, mala, 50, gradient="path"),
        "ThermodynamicMLE(6 rungs, SMC, 5 moves)": ThermodynamicMLE(ladder, mala, 5, **smc),
        'ThermodynamicMLE(6 rungs, SMC, 5 moves, "path")': ThermodynamicMLE(ladder, mala, 5, gradient="path", **smc),
    }


def main() -> None:
    """Print bias and standard deviation of each gradient, in units of the exact gradient's norm."""
    x_key, z_key, run_key = jax.random.split(jax.random.key(1), 3)
    z = jax.random.normal(z_key, (DATA, LATENTS))
    x = 1.3 * z @ PARAMS["loadings"] + NOISE * jax.random.normal(x_key, (DATA, PIXELS))
    exact = jax.grad(exact_loss)(PARAMS, x)

    def flat(tree):
        return {name: np.asarray(value, np.float64).reshape(-1, PARAMS[name].size) for name, value in tree.items()}

    exact = flat(exact)
    rows = []
    for name, objective in objectives().items():

        def gradient(key, objective=objective):
            return jax.grad(lambda p: objective.loss_with_mutable_state(key, p, model, None, x)["loss"])(PARAMS)

        keys = jax.random.split(run_key, REPETITIONS)
        draws = flat(jax.jit(lambda keys, gradient=gradient: jax.lax.map(gradient, keys, batch_size=100))(keys))
        row = [name]
        for site in PARAMS:
            norm = np.linalg.norm(exact[site])
            mean, spread = draws[site].mean(0), np.sqrt(draws[site].var(0).sum())
            bias = np.linalg.norm(mean - exact[site]) / norm
            row += [f"{bias:.3f}", f"{spread / REPETITIONS**0.5 / norm:.3f}", f"{spread / norm:.2f}"]
        rows.append(tuple(row))
    header = ["objective"]
    for what in ("prior", "generator"):
        header += [f"{what}: bias", "±", "standard deviation"]
    print_rows(
        f"Gradients of {DATA} data, relative to the exact one ({REPETITIONS:,} repetitions)", tuple(header), rows
    )


if __name__ == "__main__":
    main()
