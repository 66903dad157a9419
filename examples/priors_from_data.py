# %% [markdown]
# # Priors from data
#
# Densities of real measurements by one call, and yesterday's posterior as today's prior: a regression on the first half
# of the diabetes data is updated with the second half, with and without the correlations of the first.

# %%
import os
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from sklearn.datasets import load_breast_cancer, load_diabetes

from numpyro_kaem import KAPrior, plot_densities

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
num_warmup, num_samples = (100, 100) if smoke else (500, 1_000)
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)

# %% [markdown]
# ## From samples
#
# Ten measurements of the cell nuclei of 569 breast tumours, on scales from 0.01 to 1,000. `from_samples` fits a density
# to each: a Normal tilted by a cubic spline, whose smoothness is chosen by cross-validation. The measurements are
# positive, and a log-normal reference keeps the densities so.

# %%
tumours = load_breast_cancer()
columns = [0, 1, 3, 4, 5, 8, 9, 10, 13, 23]
z, names = tumours.data[:, columns], tumours.feature_names[columns]
log_z = np.log(z)
prior = KAPrior.from_samples(z, reference=dist.LogNormal(log_z.mean(0), log_z.std(0)))

axes = plot_densities(prior, num_columns=5, figsize=(11, 4.2))
for axis, values, name in zip(axes, z.T, names, strict=True):
    bins = np.linspace(values.min(), np.quantile(values, 0.995), 36)
    axis.hist(values, bins, density=True, histtype="step", color="black", lw=0.7, label="569 tumours")
    axis.set_title(name, fontsize=9)
    axis.tick_params(labelsize=7)
figure = axes[0].figure
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=9)
figure.savefig(outputs / "from_samples.png", dpi=120)

# %% [markdown]
# Such a prior is an ordinary NumPyro distribution: draws, log-densities, quantiles.

# %%
print("median and 90 % interval of the texture:", np.round(prior.icdf(jnp.array([[0.5], [0.05], [0.95]]))[:, 1], 1))

# %% [markdown]
# ## Yesterday's posterior as today's prior
#
# The progression of diabetes of 442 patients, regressed on ten measurements, some of which say nearly the same: the
# first two serum values have a correlation of 0.9. Their coefficients are hard to tell apart, and so strongly
# correlated in the posterior.

# %%
x, y = load_diabetes(return_X_y=True)
x, y = x / x.std(0), (y - y.mean()) / y.std()
order = np.random.default_rng(0).permutation(len(y))
first, second = order[:221], order[221:]
measurements = load_diabetes().feature_names


def likelihood(theta, x, y):
    intercept, coefficients, log_sigma = theta[..., 0], theta[..., 1:11], theta[..., 11]
    numpyro.sample("y", dist.Normal(intercept + x @ coefficients, jnp.exp(log_sigma)), obs=y)


def vague(x, y):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
    coefficients = numpyro.sample("coefficients", dist.Normal(jnp.zeros(10), 1.0).to_event(1))
    log_sigma = numpyro.sample("log_sigma", dist.Normal(0.0, 1.0))
    theta = jnp.concatenate([intercept[None], coefficients, log_sigma[None]])
    likelihood(theta, x, y)


def run(model, *data):
    mcmc = MCMC(
        NUTS(model),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), *data)
    return mcmc


variables = ["intercept", "coefficients", "log_sigma"]


def vectors(mcmc):
    return np.column_stack([mcmc.get_samples()[name] for name in variables])


yesterday = az.from_numpyro(run(vague, x[first], y[first]))
everything, second_alone = vectors(run(vague, x, y)), vectors(run(vague, x[second], y[second]))

# %% [markdown]
# `from_posterior` turns the draws into a prior for the second half. By default its coordinates are independent; a
# Gaussian copula or a rotation to principal axes keeps their correlations. The logarithm of the noise is read, not the
# noise itself: copula and rotation may then be as unbounded as they like. The variables make one vector, in this order.

# %%
priors = {
    "independent": KAPrior.from_posterior(yesterday, variables).to_event(1),
    "copula": KAPrior.from_posterior(yesterday, variables, correlated=True),
    "principal axes": KAPrior.from_posterior(yesterday, variables, rotation="pca"),
}


def update(prior, x, y):
    likelihood(numpyro.sample("theta", prior), x, y)


def run_update(prior):
    return run(lambda x, y: update(prior, x, y), x[second], y[second]).get_samples()["theta"]


updated = {name: np.asarray(run_update(prior)) for name, prior in priors.items()}

# %% [markdown]
# Seen in the two coefficients that are hardest to tell apart: yesterday's posterior, what the second half makes of it,
# and the posterior given all data at once, which is the right answer.

# %%
pair = (1 + measurements.index("s1"), 1 + measurements.index("s2"))
figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), sharex=True, sharey=True, layout="constrained")
for axis, (name, draws) in zip(axes, updated.items(), strict=True):
    new = np.asarray(priors[name].sample(jax.random.key(1), (2_000,)))
    axis.plot(*new[:, pair].T, ".", ms=1.5, color="0.75", label="the prior, from the first half")
    axis.plot(*everything[:2_000, pair].T, ".", ms=1.5, color="C1", alpha=0.6, label="all data at once")
    axis.plot(*draws[:2_000, pair].T, ".", ms=1.5, color="C0", alpha=0.6, label="prior, updated with the second half")
    axis.set_title(name)
    axis.set_xlabel("coefficient of s1")
axes[0].set_ylabel("coefficient of s2")
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside lower center", ncols=3, markerscale=8)
figure.savefig(outputs / "updated_posteriors.png", dpi=120)

# %% [markdown]
# In figures: how far the updated posteriors are from the posterior given all data, by the Kullback-Leibler divergence
# between Normals of their moments, and by the largest shift of a mean in posterior standard deviations. Without the
# correlations the first half is all but wasted: the result is hardly nearer to the right one than that of the second
# half alone, and surer of itself than it should be. With them, half by half is as good as all at once.


# %%
def divergence(draws, truth):
    difference = draws.mean(0) - truth.mean(0)
    ours, theirs = np.cov(draws.T), np.cov(truth.T)
    ratio = np.linalg.solve(ours, theirs)
    log_det = np.linalg.slogdet(ratio)[1]
    return 0.5 * (np.trace(ratio) - len(ratio) - log_det + difference @ np.linalg.solve(ours, difference))


print(f"{'prior from the first half':28}{'KL, nats':>10}{'largest shift, sd':>20}{'sd of s1':>10}")
for name, draws in {"(second half alone)": second_alone, **updated}.items():
    shift = np.abs(draws.mean(0) - everything.mean(0)) / everything.std(0)
    print(f"{name:28}{divergence(draws, everything):>10.2f}{shift.max():>20.2f}{draws[:, pair[0]].std():>10.3f}")
print(f"{'(all data at once)':28}{0:>10.2f}{0:>20.2f}{everything[:, pair[0]].std():>10.3f}")
print(f"\nPictures are in {outputs.resolve()}")
