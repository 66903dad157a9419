"""How far the log-evidence by importance sampling from the prior lies below the truth.

Linear-Gaussian models with known evidence: x = z W + 0.5 noise in 10 dimensions, z standard normal in P. The
rows of W have length one, 40 data are drawn from the model itself. Printed for each number S of shared draws:
the bias in nats per datum (mean over data and repetitions, with its standard error), what the formula
-Var(w) / (2 S E[w]^2) says, and the effective sample size.

Run with `python -m benchmarks.importance_bias`; it takes about a minute.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from numpyro_kaem import LatentModel
from numpyro_kaem.posterior.weights import log_likelihood, log_sum_exp, sample_prior

DATA_SIZE, NUM_DATA, NOISE = 10, 40, 0.5


def linear_gaussian(x, weight):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(weight.shape[0]), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z @ weight, NOISE).to_event(1), obs=x)


def log_normal(x, covariance):
    return dist.MultivariateNormal(jnp.zeros(DATA_SIZE), covariance).log_prob(x)


def main():
    print(f"{'P':>3} {'S':>7} {'bias':>9} {'+-':>7} {'formula':>9} {'ESS':>8}")
    for latent_size in (1, 2, 5, 10):
        weight_key, data_key, draw_key = jax.random.split(jax.random.key(latent_size), 3)
        weight = jax.random.normal(weight_key, (latent_size, DATA_SIZE))
        weight /= jnp.linalg.norm(weight, axis=1, keepdims=True)
        signal, identity = weight.T @ weight, jnp.eye(DATA_SIZE)
        covariance = signal + NOISE**2 * identity
        x = dist.MultivariateNormal(jnp.zeros(DATA_SIZE), covariance).sample(data_key, (NUM_DATA,))
        exact = log_normal(x, covariance)
        # The square of a normal density is a normal density of half the variance, up to a factor.
        log_second_moment = log_normal(x, signal + NOISE**2 / 2 * identity)
        log_second_moment -= DATA_SIZE / 2 * jnp.log(4 * jnp.pi * NOISE**2)
        relative_variance = np.expm1(np.asarray(log_second_moment - 2 * exact, np.float64))

        for num_samples in (100, 1_000, 10_000):

            def estimate(key, x, weight=weight, num_samples=num_samples):
                latent_model = LatentModel(lambda x: linear_gaussian(x, weight), {}, x, check=False)
                log_weights = log_likelihood(latent_model, sample_prior(latent_model, key, num_samples))
                log_sum = log_sum_exp(log_weights)
                ess = jnp.exp(2 * log_sum - log_sum_exp(2 * log_weights))
                return log_sum - jnp.log(num_samples), ess

            keys = jax.random.split(draw_key, 1_000_000 // num_samples)
            estimates, ess = jax.jit(lambda keys, x: jax.lax.map(lambda k: estimate(k, x), keys))(keys, x)
            errors = np.mean(estimates - exact, axis=1)
            formula = -np.mean(relative_variance) / (2 * num_samples)
            print(
                f"{latent_size:>3} {num_samples:>7} {errors.mean():>9.4f} "
                f"{errors.std() / len(errors) ** 0.5:>7.4f} {formula:>9.4f} {np.mean(ess):>8.1f}"
            )


if __name__ == "__main__":
    main()
