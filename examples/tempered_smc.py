# %% [markdown]
# # Tempered SMC for any NumPyro model
#
# Particles are drawn from the prior and taken to the posterior step by step: for eight schools, a logistic regression
# and a mixture with two separate modes. Posterior means and the evidence are compared with long runs of NUTS, and with
# quadrature where there is one.

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.datasets import load_breast_cancer, load_iris

from numpyro_kaem import MALA, TemperedSMC, compare_evidence

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
num_draws, num_runs = (200, 2) if smoke else (3_000, 4)
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)


def nuts(model, *data, num_chains=2):
    mcmc = MCMC(
        NUTS(model),
        num_warmup=num_draws // 5,
        num_samples=num_draws,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(1), *data, extra_fields=("diverging",))
    return mcmc


def smc(model, *data, **options):
    return TemperedSMC(num_runs=num_runs, progress=False, **options).run(jax.random.key(0), model, {}, *data)


# %% [markdown]
# ## Eight schools
#
# Effects of coaching on test scores, with their standard errors (D. B. Rubin, *Journal of Educational Statistics* 6,
# 1981). The centred model has a funnel: where `tau` is small, so are all deviations of `theta`. NUTS has trouble in its
# neck and is usually given the non-centred model. TemperedSMC takes the centred one. With `whiten=True` its particles
# move in coordinates in which the prior is standard normal, which is what non-centring does, for every site and without
# a change to the model. Given `tau` all else is normal, so one sum over a fine grid is the yardstick.

# %%
effect = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
error = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def hierarchical(effect, error):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, error), obs=effect)


def schools_by_quadrature():
    tau = 5.0 * np.tan((np.arange(200_000) + 0.5) / 200_000 * np.pi / 2)[:, None]  # quantiles of the prior
    variance = error**2 + tau**2
    precision = 1 / 25 + np.sum(1 / variance, 1)
    mu = np.sum(effect / variance, 1) / precision
    log_terms = norm.logpdf(effect, 0.0, np.sqrt(variance)).sum(1) + 0.5 * (mu**2 * precision - np.log(25 * precision))
    weights = np.exp(log_terms - logsumexp(log_terms))
    keep = error**2 / variance  # how much of its deviation from mu a school's measurement loses
    theta = effect + keep * (mu[:, None] - effect)
    first = np.column_stack([mu, tau, theta])
    spread = np.column_stack([1 / precision, 0.0 * tau, keep * tau**2 + keep**2 / precision[:, None]])
    mean = weights @ first
    return mean, np.sqrt(weights @ (spread + first**2) - mean**2), logsumexp(log_terms) - np.log(len(tau))


schools = {
    "SMC, MALA()": smc(hierarchical, effect, error),
    "SMC, MALA(whiten=True)": smc(hierarchical, effect, error, kernel=MALA(whiten=True)),
}
centred = nuts(hierarchical, effect, error)
non_centred = nuts(numpyro.handlers.reparam(hierarchical, {"theta": LocScaleReparam(0.0)}), effect, error)


# %%
def moments(draws):
    columns = np.column_stack([draws["mu"], draws["tau"], draws["theta"]])
    return columns.mean(0), columns.std(0)


def show(name, mean, sd, notes=""):
    entries = "".join(f"{m:7.2f} ({s:.2f})" for m, s in list(zip(mean, sd, strict=True))[:4])
    print(f"{name:24}{entries}   {notes}")


mean, sd, log_evidence = schools_by_quadrature()
print(f"{'':24}{'mu':>10}{'tau':>14}{'school A':>15}{'school B':>14}    means (standard deviations)")
show("quadrature", mean, sd, f"log-evidence {log_evidence:.3f}")
for name, posterior in schools.items():
    notes = f"log-evidence {posterior.log_evidence[0]:.3f} +- {posterior.log_evidence_std_error[0]:.3f}"
    show(name, *moments({k: v[0] for k, v in posterior.latents.items()}), f"{notes}, ESS {posterior.ess[0]:.0f}")
for name, mcmc in {"NUTS, centred": centred, "NUTS, non-centred": non_centred}.items():
    divergences = int(mcmc.get_extra_fields()["diverging"].sum())
    show(name, *moments(mcmc.get_samples()), f"{divergences} divergences")

# %% [markdown]
# Is one effect for all schools the better model? The evidence of both, and the odds if neither is preferred beforehand:


# %%
def alike(effect, error):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    with numpyro.plate("schools", 8):
        numpyro.sample("y", dist.Normal(mu, error), obs=effect)


models = {"hierarchical": schools["SMC, MALA(whiten=True)"], "alike": smc(alike, effect, error)}
print(compare_evidence(models).round(3).to_string())

# %% [markdown]
# ## Logistic regression
#
# Which of 569 tumours are malignant (W. N. Street, W. H. Wolberg and O. L. Mangasarian, 1993), by the means of ten
# measurements of their cells' nuclei, standardised. Radius, perimeter and area are nearly the same number, so that
# their coefficients are known only together. Ten moves per rung are the default; more of them make the particles
# forget their common ancestors.

# %%
cancer = load_breast_cancer()
features = ((cancer.data - cancer.data.mean(0)) / cancer.data.std(0))[:, :10].astype(np.float32)
malignant = 1 - cancer.target
names = ["intercept", *(name.removeprefix("mean ") for name in cancer.feature_names[:10])]


def logistic(features, malignant):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.5))
    slope = numpyro.sample("slope", dist.Normal(jnp.zeros(features.shape[1]), 2.5).to_event(1))
    with numpyro.plate("tumours", features.shape[0]):
        numpyro.sample("malignant", dist.Bernoulli(logits=intercept + features @ slope), obs=malignant)


def coefficients(draws):
    return np.column_stack([draws["intercept"], draws["slope"]])


mcmc = nuts(logistic, features, malignant)
reference = coefficients(mcmc.get_samples())
by_chain = mcmc.get_samples(group_by_chain=True)
ess = np.concatenate([np.atleast_1d(numpyro.diagnostics.effective_sample_size(by_chain[k])) for k in by_chain])
regressions = {
    "10 moves per rung": smc(logistic, features, malignant),
    "50 moves per rung": smc(logistic, features, malignant, num_mcmc_steps=50),
}
print(
    "Largest of the 11 differences of means between TemperedSMC and NUTS, in standard errors, and range of the ratios"
)
print("of standard deviations:")
for name, posterior in regressions.items():
    draws = coefficients({k: v[0] for k, v in posterior.latents.items()})
    difference = draws.mean(0) - reference.mean(0)
    std_error = np.sqrt(draws.var(0) / posterior.ess[0] + reference.var(0) / ess)
    ratio = draws.std(0) / reference.std(0)
    print(
        f"{name}: {np.abs(difference / std_error).max():.1f}, {ratio.min():.2f} to {ratio.max():.2f};  "
        f"ESS {posterior.ess[0]:.0f}, R-hat {posterior.rhat[0]:.3f}, log-evidence {posterior.log_evidence[0]:.2f} +- "
        f"{posterior.log_evidence_std_error[0]:.2f}"
    )

# %%
figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
shown = {
    "NUTS": reference,
    **{f"TemperedSMC, {k}": coefficients({n: v[0] for n, v in p.latents.items()}) for k, p in regressions.items()},
}
for offset, color, (name, draws) in zip((-0.2, 0.0, 0.2), ("0.5", "C1", "C0"), shown.items(), strict=True):
    axis.errorbar(np.arange(11) + offset, draws.mean(0), draws.std(0), fmt="o", ms=4, color=color, label=name)
axis.axhline(0.0, color="0.8", lw=1, zorder=0)
axis.set_xticks(range(11), names, rotation=30, ha="right")
axis.set(ylabel="coefficient (mean, ± one standard deviation)", title="Malignant tumours")
axis.legend(fontsize=8)
figure.savefig(outputs / "tempered_smc_logistic.png", dpi=120)

# %% [markdown]
# ## Two modes
#
# A dozen irises (R. A. Fisher, 1936) drawn at random. A third of all 150 are of the species *setosa*, whose petals are
# of another length than the others', but nobody told whether they are the short or the long ones. The two means are
# unknown, and so the posterior has two modes: a likely one, and one with the roles exchanged. Two unknowns are few
# enough for a grid.

# %%
length = np.random.default_rng(2).choice(load_iris().data[:, 2], 12, replace=False)
print("petal lengths:", np.sort(length))


def species(length):
    mean = numpyro.sample("mean", dist.Normal(4.0, 2.0).expand([2]).to_event(1))
    kind = dist.Categorical(jnp.array([1 / 3, 2 / 3]))
    with numpyro.plate("flowers", length.shape[0]):
        numpyro.sample("length", dist.MixtureSameFamily(kind, dist.Normal(mean, 0.6)), obs=length)


axis_grid = np.linspace(-2.0, 10.0, 601)
mean_grid = np.stack(np.meshgrid(axis_grid, axis_grid, indexing="ij"))
log_terms = np.log([1 / 3, 2 / 3])[:, None, None, None] + norm.logpdf(length, mean_grid[..., None], 0.6)
log_joint = logsumexp(log_terms, 0).sum(-1) + norm.logpdf(mean_grid, 4.0, 2.0).sum(0)
mass = np.exp(log_joint - logsumexp(log_joint))
log_evidence = logsumexp(log_joint) + 2 * np.log(axis_grid[1] - axis_grid[0])

posterior = smc(species, length)
mcmc = nuts(species, length, num_chains=4)
chains = np.asarray(mcmc.get_samples(group_by_chain=True)["mean"])
particles = posterior.latents["mean"][0]
print(f"{'':14}probability of short setosa    means of the two species    log-evidence")
probability = mass[mean_grid[0] < mean_grid[1]].sum()
first, second = (mass * mean_grid).sum((1, 2))
print(f"{'quadrature':14}{probability:18.3f}{first:24.2f}{second:8.2f}{log_evidence:18.3f}")
first, second = particles.mean(0)
print(
    f"{'TemperedSMC':14}{(particles[:, 0] < particles[:, 1]).mean():18.3f}{first:24.2f}{second:8.2f}"
    f"{posterior.log_evidence[0]:18.3f} +- {posterior.log_evidence_std_error[0]:.3f}"
)
for number, draws in enumerate(chains):
    first, second = draws.mean(0)
    print(f"NUTS, chain {number + 1}{(draws[:, 0] < draws[:, 1]).mean():19.3f}{first:24.2f}{second:8.2f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained", sharex=True, sharey=True)
for axis in axes:
    axis.contour(axis_grid, axis_grid, mass.T / mass.max(), [0.01, 0.05, 0.2, 0.5, 0.9], colors="0.6", linewidths=0.8)
    axis.plot([0, 8], [0, 8], ":", color="0.7", lw=1)
    axis.set(xlabel="mean petal length of setosa, cm", xlim=(0.0, 8.0), ylim=(0.0, 8.0), aspect="equal")
axes[0].scatter(*particles[:: max(1, len(particles) // 1_000)].T, s=3, color="C0", zorder=3)
axes[0].set(title="TemperedSMC, particles", ylabel="mean petal length of the others, cm")
for number, draws in enumerate(chains):
    axes[1].scatter(
        *draws[:: max(1, num_draws // 250)].T, s=3, color=f"C{number}", zorder=3, label=f"chain {number + 1}"
    )
axes[1].set(title="NUTS, draws of four chains")
axes[1].legend(markerscale=3, fontsize=8)
figure.savefig(outputs / "tempered_smc_modes.png", dpi=120)

# %% [markdown]
# Every chain of NUTS stays in the mode near which it began, so that the share of chains in a mode says nothing of its
# probability. The particles were spread over both modes while these were still joined, and weighted ever since.
