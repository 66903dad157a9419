# %% [markdown]
# # A density with credible bands, from noisy measurements
#
# A prior on the energy makes the prior itself uncertain: NUTS samples a density, its smoothness and the latent values
# behind 569 noisy measurements together. The result is a density with credible bands, and a posterior for every single
# value. It takes about one minute on two cores.

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.module import random_eqx_module
from numpyro.distributions.transforms import LowerCholeskyAffine
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import TransformReparam
from sklearn.datasets import load_breast_cancer

from numpyro_kaem import BSpline, KAPrior, UnivariateEnergy, plot_densities

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
num_warmup, num_samples = (20, 20) if smoke else (500, 1_000)
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)

# %% [markdown]
# The Wisconsin breast cancer data describe the cell nuclei in images of 569 tumours. For every image they hold the mean
# compactness of its nuclei (perimeter squared over area: how far their outlines are from circles) *and the standard
# error of that mean*. The median error is two fifths of the spread of the means: the histogram shows the distribution
# of true values, blurred.

# %%
data = load_breast_cancer()
columns = dict(zip(data.feature_names, data.data.T, strict=True))
measured, error = columns["mean compactness"], columns["compactness error"]
center, unit = measured.mean(), measured.std()
x, noise = jnp.asarray((measured - center) / unit), jnp.asarray(error / unit)
print(f"{len(x)} tumours; standard errors relative to the spread of the means: median {np.median(noise):.2f}")

# %% [markdown]
# ## The model
#
# `random_eqx_module` puts a prior on the energy's coefficients. Here it is a random walk, the prior of Bayesian
# P-splines: coefficients of neighbouring B-splines differ by Normal(0, step) increments, and how large they are
# is learned from the data. With small steps the energy is constant and the density is its reference. The weights of
# the energy are not named in the `prior`, so they stay at 0 (base) and 1 (spline).
#
# The walk is a running sum of independent normals, a lower triangular matrix times a vector; NumPyro's
# `TransformReparam` lets NUTS move the independent normals, which do not depend on the step.

# %%
basis = BSpline(num_intervals=20, degree=3, domain=(-3.5, 3.5))
energy = UnivariateEnergy.init(jax.random.key(0), basis=basis, scale=0.0)
reference = dist.Normal(0.0, 1.0)


def random_walk(step, size):
    """A Gaussian random walk c_1, ..., c_size with steps of the given standard deviation."""
    independent = dist.Normal(0.0, 1.0).expand([size]).to_event(1)
    running_sum = jnp.tril(jnp.ones((size, size)))
    return dist.TransformedDistribution(independent, LowerCholeskyAffine(jnp.zeros(size), step * running_sum))


@numpyro.handlers.reparam(config={"energy/coefficients": TransformReparam()})
def model(x, noise):
    step = numpyro.sample("step", dist.HalfNormal(1.0))
    f = random_eqx_module("energy", energy, prior={"coefficients": random_walk(step, basis.num_basis)})
    with numpyro.plate("tumours", x.shape[0]):
        z = numpyro.sample("z", KAPrior(f, reference))
        numpyro.sample("x", dist.Normal(z, noise), obs=x)


mcmc = MCMC(
    NUTS(model, target_accept_prob=0.95),
    num_warmup=num_warmup,
    num_samples=num_samples,
    num_chains=2,
    chain_method="vectorized",
    progress_bar=False,
)
mcmc.run(jax.random.key(1), x, noise, extra_fields=("diverging", "num_steps"))
draws = mcmc.get_samples()
by_chain = mcmc.get_samples(group_by_chain=True)
summary = numpyro.diagnostics.summary({name: by_chain[name] for name in ("step", "energy/coefficients", "z")})
for name, values in summary.items():
    print(
        f"{name:20} largest R-hat {np.max(values['r_hat']):.3f}, "
        f"smallest effective sample size {np.min(values['n_eff']):.0f}"
    )
print(f"{int(mcmc.get_extra_fields()['diverging'].sum())} divergent transitions")

# %% [markdown]
# ## The density
#
# Every draw of the coefficients is a density. Their pointwise quantiles are credible bands. The density of the true
# values is narrower than the histogram of the measurements, because the noise is taken out. Its shoulder lies where the
# malignant tumours are, of which the model knows nothing.

# %%
coefficients = draws["energy/coefficients"]
weights = (jnp.broadcast_to(weight, len(coefficients)) for weight in (energy.base_weight, energy.spline_weight))
prior = KAPrior(UnivariateEnergy(*weights, coefficients, basis), reference)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
plot_densities(prior, draws=True, ax=left)
left.hist(x, bins=40, density=True, histtype="step", color="black", lw=0.7, label="measurements")
left.set(title="", xlabel="mean compactness of the nuclei, standardised", xlim=(-2.0, 4.5))
for diagnosis, style in (("malignant", ":"), ("benign", "--")):
    chosen = data.target == list(data.target_names).index(diagnosis)
    left.axvline(np.median(x[chosen]), color="C1", ls=style, label=f"median of the {diagnosis} (not used)")
left.legend(fontsize=8)

z = center + unit * np.asarray(draws["z"])
order = np.argsort(error)
chosen = order[:: len(order) // 25]
lower, median, upper = np.quantile(z[:, chosen], [0.05, 0.5, 0.95], axis=0)
place = np.arange(len(chosen))
right.errorbar(measured[chosen], place + 0.15, xerr=1.645 * error[chosen], fmt=".", color="0.6", label="measured")
right.errorbar(
    median,
    place - 0.15,
    xerr=(median - lower, upper - median),
    fmt=".",
    color="C0",
    label="posterior of the true value",
)
right.set(xlabel="mean compactness of the nuclei", yticks=[], ylabel="tumours, by standard error")
figure.legend(*right.get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
figure.savefig(outputs / "bayesian_density.png", dpi=120)

# %% [markdown]
# On the right, every twentieth or so tumour, the precisely measured ones at the bottom: the worse a measurement, the
# more its posterior is drawn to where tumours are common, and the shorter its interval is than the measurement's own.
#
# ## How smooth
#
# The size of the walk's steps has a posterior as well. Bands account for not knowing it.

# %%
step = np.asarray(draws["step"])
print(
    "step of the random walk, nats a knot interval: 5, 50 and 95 per cent:",
    np.quantile(step, [0.05, 0.5, 0.95]).round(2),
)
spread = z.std(axis=1)
print(
    f"standard deviation: measurements {measured.std():.4f}, true values {spread.mean():.4f} "
    f"({np.quantile(spread, 0.05):.4f} to {np.quantile(spread, 0.95):.4f})"
)
