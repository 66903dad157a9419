"""Importance sampling from the prior against the number of latents that data determine.

The models of `benchmarks.importance_bias`, x = z W + 0.5 noise, with z standard normal in P dimensions. Here the rows
of W are orthogonal and of equal length, so that every latent has the same signal-to-noise ratio and a posterior
standard deviation of 1 / sqrt(1 + ratio), apart from all others. Evidence and posterior are known, and so is the
effective sample size that the estimate tends to with many draws: where it is small the estimate lies above it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from scipy.optimize import brentq
from scipy.stats import chi2

from benchmarks.importance_bias import NOISE, linear_gaussian
from benchmarks.timing import print_rows
from numpyro_kaem import LatentModel
from numpyro_kaem.posterior.weights import log_likelihood, sample_prior

DATA_SIZE, NUM_DATA, ENOUGH = 32, 40, 10
RATIOS = (4.0, 100.0)


def problem(latent_size: int, ratio: float):
    """Weights, data drawn from the model, their log-evidence, and posterior mean and standard deviation."""
    weight_key, data_key = jax.random.split(jax.random.key(latent_size))
    directions = jnp.linalg.qr(jax.random.normal(weight_key, (DATA_SIZE, latent_size)))[0].T
    weight = NOISE * ratio**0.5 * directions
    covariance = weight.T @ weight + NOISE**2 * jnp.eye(DATA_SIZE)
    marginal = dist.MultivariateNormal(jnp.zeros(DATA_SIZE), covariance)
    x = marginal.sample(data_key, (NUM_DATA,))
    mean = x @ weight.T / NOISE**2 / (1 + ratio)
    return weight, x, marginal.log_prob(x), mean, (1 + ratio) ** -0.5


def estimates(key, x, weight, numbers: tuple[int, ...], repetitions: int):
    """Log-evidence, effective sample size and posterior mean from draws in groups of so many, for all groups."""
    latent_model = LatentModel(lambda x: linear_gaussian(x, weight), {}, x, check=False)

    def from_draws(key):
        draws = sample_prior(latent_model, key, max(numbers))
        log_weights = log_likelihood(latent_model, draws)
        return [of_groups(log_weights, draws["z"], number) for number in numbers]

    found = jax.lax.map(from_draws, jax.random.split(key, repetitions))
    return [[values.reshape(-1, *values.shape[2:]) for values in group] for group in found]


def of_groups(log_weights, z, number: int):
    """The estimates of `estimates` for groups of one size."""
    log_weights = log_weights.reshape(-1, number, log_weights.shape[1])
    log_sum = logsumexp(log_weights, axis=1)
    ess = jnp.exp(2 * log_sum - logsumexp(2 * log_weights, axis=1))
    shares = jnp.exp(log_weights - log_sum[:, None])
    return log_sum - jnp.log(number), ess, jnp.einsum("gsb,gsp->gbp", shares, z.reshape(-1, number, z.shape[-1]))


def summary(found, exact, mean, deviation: float) -> dict[str, float]:
    """Median effective sample size, bias of the log-evidence, bias and error of posterior means."""
    evidence, ess, means = (np.asarray(values) for values in found)
    mean = np.asarray(mean)
    error = (means - mean) / deviation
    # Prior and posterior are alike in all directions, so the bias points from the posterior's mean to the prior's.
    towards = np.einsum("rbp,bp->rb", error, -mean / np.linalg.norm(mean, axis=1, keepdims=True))
    return {
        "ess": float(np.median(ess)),
        "evidence": float(np.mean(evidence - np.asarray(exact))),
        "bias": float(towards.mean() / mean.shape[1] ** 0.5),
        "error": float(np.sqrt(np.mean(error**2))),
    }


def viable(sizes: tuple[int, ...], ess: list[float]) -> str:
    """Up to how many latents the effective sample size is at least `ENOUGH`, its logarithm interpolated linearly."""
    below = np.flatnonzero(np.array(ess) < ENOUGH)
    if len(below) == 0:
        return f"> {sizes[-1]}"
    k = below[0]
    if k == 0:
        return f"< {sizes[0]}"
    logs = np.log(ess[k - 1 : k + 1])
    share = (logs[0] - np.log(ENOUGH)) / (logs[0] - logs[1])
    return f"{sizes[k - 1] + share * (sizes[k] - sizes[k - 1]):.1f}"


def exact_share(latents: float, ratio: float) -> float:
    """The median over data of E[w]^2 / E[w^2], the effective sample size over the number of draws.

    With v = 1 / ratio, a latent of maximum-likelihood estimate m has weights exp(-(z - m)^2 / (2 v)), hence
    E[w]^2 / E[w^2] = sqrt(v (v + 2)) / (1 + v) exp(-m^2 / ((1 + v) (v + 2))). The sum of m^2 / (1 + v) over latents is
    chi-squared, of which the product falls monotonically, so that its median is that of the chi-squared, put in.
    """
    v = 1 / ratio
    return float((np.sqrt(v * (v + 2)) / (1 + v)) ** latents * np.exp(-chi2.median(latents) / (v + 2)))


def exact_end(number: int, ratio: float) -> float:
    """The number of latents at which the exact median of the effective sample size is `ENOUGH`."""
    return brentq(lambda latents: np.log(number * exact_share(latents, ratio) / ENOUGH), 0.1, 32.0)


def cell(row: dict[str, float]) -> str:
    """Four figures of a setting."""
    ess = f"{row['ess']:,.0f}" if row["ess"] >= ENOUGH else f"{row['ess']:.1f}"
    # The sign of what rounds to zero says nothing.
    return " / ".join([ess, *(f"{row[name] + 0.0:z.2f}" for name in ("evidence", "bias", "error"))])


def main(quick: bool = False) -> None:
    """Print a table for each signal-to-noise ratio, and where importance sampling ends."""
    sizes = (1, 8) if quick else (1, 2, 3, 4, 6, 8, 12, 16, 32)
    numbers = (100, 1_000) if quick else (100, 1_000, 10_000, 100_000)
    compiled = jax.jit(estimates, static_argnums=(3, 4))
    found = {}
    for latent_size in sizes:
        for ratio in RATIOS:
            weight, x, *known = problem(latent_size, ratio)
            groups = compiled(jax.random.key(7), x, weight, numbers, 4)
            for number, group in zip(numbers, groups, strict=True):
                found[ratio, latent_size, number] = summary(group, *known)
    ends, exact = [], []
    for ratio in RATIOS:
        rows = []
        for latent_size in sizes:
            cells = (cell(found[ratio, latent_size, number]) for number in numbers)
            rows.append((str(latent_size), *cells))
        deviation = (1 + ratio) ** -0.5
        title = f"Importance sampling, signal-to-noise {ratio:g}, posterior standard deviation {deviation:.2f}"
        note = "ESS / bias of log-evidence / bias of mean / error of mean"
        print_rows(f"{title}: {note}", ("latents", *(f"{number:,} draws" for number in numbers)), rows)
        last = (viable(sizes, [found[ratio, size, number]["ess"] for size in sizes]) for number in numbers)
        ends.append((f"{ratio:g}", "estimated", *last, ""))
        factor = exact_share(31, ratio) / exact_share(32, ratio)
        places = (f"{exact_end(number, ratio):.1f}" for number in numbers)
        ends.append((f"{ratio:g}", "exact", *places, f"{factor:.1f}"))
        for latent_size in sizes:
            shares = (exact_share(latent_size, ratio) * number for number in numbers)
            exact.append(
                (
                    f"{ratio:g}",
                    str(latent_size),
                    *(f"{share:,.0f}" if share >= ENOUGH else f"{share:.2g}" for share in shares),
                )
            )
    header = ("signal-to-noise", "ESS", *(f"{number:,} draws" for number in numbers))
    title = f"Latents at which the median ESS falls below {ENOUGH}"
    print_rows(title, (*header, "times as many for each latent more"), ends)
    print_rows("Exact median ESS, over all data", ("signal-to-noise", "latents", *header[2:]), exact)
