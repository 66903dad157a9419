# %% [markdown]
# # The temperature ladder
#
# Between a prior and a posterior lie the power posteriors. A gauge that hides on which side it measures makes a
# posterior with two separate modes, and the ladder tells their weights. Everything is checked by quadrature: the
# densities, the swap rates, and the evidence, which is the area under a curve.

# %%
import os
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import logsumexp
from sklearn.datasets import load_iris

from numpyro_kaem import KAPrior, Ladder, Langevin, ParallelTempering, TemperedSMC, plot_ladder

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
num_steps = 200 if smoke else 3_000
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)

# %% [markdown]
# ## Two modes
#
# The petals of 150 irises (R. A. Fisher, 1936) are short, if the flower is an *Iris setosa*, or long. Their lengths
# make the prior of the next flower's petal. A gauge shows how far that petal's length is from 3.2 cm, with an error of
# 0.05 cm, and does not show the side. Three flowers are measured; the pictures are of the first.

# %%
prior = KAPrior.from_samples(load_iris().data[:, 2])
readings = jnp.array([1.7, 1.4, 2.0])


def gauge(x):
    with numpyro.plate("flowers", x.shape[0]):
        z = numpyro.sample("z", prior)
        numpyro.sample("x", dist.Normal(jnp.abs(z - 3.2), 0.05), obs=x)


# %% [markdown]
# A sum over a fine grid is the yardstick for all that follows.

# %%
grid = np.linspace(-2.0, 11.0, 26_001)
width = grid[1] - grid[0]
log_prior = np.asarray(prior.log_prob(grid), np.float64)
log_likelihood = np.asarray(dist.Normal(jnp.abs(grid - 3.2), 0.05).log_prob(readings[:, None]), np.float64)


def log_normalizer(t, flower=0):
    return logsumexp(log_prior + t * log_likelihood[flower]) + np.log(width)


def power_posterior(t, flower=0):
    return np.exp(log_prior + t * log_likelihood[flower] - log_normalizer(t, flower))


exact_short = np.array([power_posterior(1.0, flower) @ (grid < 3.2) * width for flower in range(3)])
exact_evidence = np.array([log_normalizer(1.0, flower) for flower in range(3)])

# %% [markdown]
# Langevin chains on the posterior never cross from one mode to the other. Each reports one of them with great
# confidence, and all together count the chains that happened to start near it. R-hat shows that they disagree.

# %%
chains = Langevin(num_steps=num_steps, num_chains=8, progress=False).run(jax.random.key(0), gauge, {}, readings)
share = (chains.latents["z"].reshape(3, 8, -1) < 3.2).mean(2)
print("share of short petals, first flower, eight chains:", share[0])
print("by quadrature:", exact_short[0].round(3), "  R-hat:", chains.rhat[0].round(1))

# %% [markdown]
# ## Power posteriors
#
# $p_t(z) \propto p(z)\, p(x \mid z)^t$ is the prior at $t = 0$ and the posterior at $t = 1$. To look at one,
# NumPyro's `scale` raises the likelihood to the power t, and as every datum of a plate has its own posterior, one run
# on the data t shows them all.

# %%
shown = jnp.array([0.001, 0.003, 0.01, 0.03, 0.1, 1.0])


def tempered_gauge(x, t):
    with numpyro.plate("temperatures", t.shape[0]):
        z = numpyro.sample("z", prior)
        with numpyro.handlers.scale(scale=t):
            numpyro.sample("x", dist.Normal(jnp.abs(z - 3.2), 0.05), obs=x)


powers = TemperedSMC(num_particles=500 if smoke else 4_000, progress=False).run(
    jax.random.key(1), tempered_gauge, {}, jnp.full(6, readings[0]), shown
)
figure, axes = plt.subplots(2, 3, figsize=(10, 5), layout="constrained", sharex=True)
for axis, t, z in zip(axes.flat, np.asarray(shown), powers.latents["z"], strict=True):
    axis.hist(z, np.arange(0.0, 8.0, 0.05 if t > 0.05 else 0.1), density=True, color="0.8")
    axis.plot(grid, power_posterior(t), color="C0", lw=1.2)
    axis.plot(grid, np.exp(log_prior), color="C3", lw=1, ls=":")
    axis.set(title=f"t = {t:g}", xlim=(0.0, 8.0), yticks=[])
    axis.spines[["left", "right", "top"]].set_visible(False)
    axis.set_xlabel("petal length z, cm" if axis in axes[1] else "")
figure.legend(
    handles=[*axes[0, 0].lines, axes[0, 0].patches[0]],
    labels=["power posterior by quadrature", "prior", "draws of TemperedSMC"],
    loc="outside upper center",
    ncols=3,
    frameon=False,
)
figure.savefig(outputs / "temperature_ladder_powers.png", dpi=120)

# %% [markdown]
# ## Swaps
#
# `ParallelTempering` runs a chain at every rung of a ladder. Neighbours exchange their states now and then, and so what
# the lowest rung, fresh draws from the prior, finds in the other mode comes to the posterior. A `Ladder` of nine
# equally spaced rungs is a poor beginning: between the first two the power posterior changes more than between all the
# others. `adapt` places the rungs so that each interval has the same thermodynamic length,
# $\int \sqrt{\operatorname{Var}_t \log p(x \mid z)}\, dt$, as measured by the run before. That run knows nothing of
# what happens inside of a wide interval, and so it takes a second time.

# %%
ladders, runs = {"equally spaced": Ladder.power(8, exponent=1.0)}, {}
for before, after in [("equally spaced", "adapted"), ("adapted", "adapted twice")]:
    sampler = ParallelTempering(ladders[before], num_steps=num_steps, num_chains=10, progress=False)
    runs[before] = sampler.run(jax.random.key(2), gauge, {}, readings)
    ladders[after] = ladders[before].adapt(runs[before])
ladders["power law, exponent 5"] = Ladder.power(8)
for name in ["adapted twice", "power law, exponent 5"]:
    sampler = ParallelTempering(ladders[name], num_steps=num_steps, num_chains=10, progress=False)
    runs[name] = sampler.run(jax.random.key(2), gauge, {}, readings)

for name, ladder in ladders.items():
    print(f"{name:22}", " ".join(f"{t:.5f}" for t in ladder.temperatures))
print(f"\n{'':22}share of short petals    lowest swap rate    round trips per 100 steps    ESS")
print(f"{'quadrature':22}{exact_short.round(3)!s:25}")
for name, run in runs.items():
    short = (run.latents["z"] < 3.2).mean(1).round(3)
    print(
        f"{name:22}{short!s:25}{run.rungs.swap_acceptance[0].min():10.2f}"
        f"{100 * run.rungs.round_trip_rate[0]:22.1f}{run.ess[0]:22.0f}"
    )

# %% [markdown]
# How often two rungs should swap follows from their densities alone: it is the mean of $\min(1, e^{(t' - t)(\ell -
# \ell')})$ over log-likelihoods $\ell$ and $\ell'$ of the two. The black dashes below are that mean over grids.


# %%
def exact_swap_rate(low, high):
    levels = (np.arange(1_000) + 0.5) / 1_000  # quantiles of the log-likelihood at both rungs
    order = np.argsort(log_likelihood[0])

    def quantiles(t):
        return np.interp(levels, np.cumsum(power_posterior(t)[order]) * width, log_likelihood[0][order])

    difference = quantiles(low)[:, None] - quantiles(high)
    return np.exp(np.minimum((high - low) * difference, 0.0)).mean()


figure, axes = plt.subplots(1, 4, figsize=(11, 3), layout="constrained", sharey=True)
for axis, (name, run) in zip(axes, runs.items(), strict=True):
    plot_ladder(run, datum=0, panels=["rates"], ax=axis)
    exact = [exact_swap_rate(low, high) for low, high in pairwise(ladders[name].temperatures)]
    axis.plot(np.arange(8) + 0.5, exact, "_", color="black", ms=14, label="swaps, by quadrature")
    axis.set(title=name, ylabel="")
    axis.get_legend().remove()
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
figure.savefig(outputs / "temperature_ladder_swaps.png", dpi=120)

# %% [markdown]
# ## The evidence is an area
#
# $\log p(x) = \int_0^1 E_t[\log p(x \mid z)]\, dt$. Thermodynamic integration joins the means at the rungs by straight
# lines, and where the curve is bent and rungs are far apart it cuts the corner: what lies between the lines and the
# curve is its error. The curve increases, so that it runs through the grey boxes, large ones where rungs are missing;
# these are known without quadrature. (Beyond t = 0.2 the curve is nearly flat.)

# %%
curve_t = np.concatenate([[0.0], np.geomspace(1e-5, 1.0, 1_000)])
curve = np.array([power_posterior(t) @ log_likelihood[0] * width for t in curve_t])
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharey=True)
for axis, name in zip(axes, ["equally spaced", "adapted twice", "power law, exponent 5"], strict=True):
    plot_ladder(runs[name], datum=0, panels=["integrand"], ax=axis)
    axis.plot(curve_t, curve, color="black", label="quadrature")
    axis.set(title=name, xlim=(-0.004, 0.2), ylim=(-97.0, 5.0))
axes[0].legend(fontsize=8, loc="lower right")
figure.savefig(outputs / "temperature_ladder_evidence.png", dpi=120)

# %% [markdown]
# Steppingstone sampling takes each rung for the importance proposal of the next. No straight lines are involved, and
# all four ladders serve. The estimate of the trapezoids' bias comes of the variances at adjacent rungs: good where the
# bias is small, and a warning elsewhere. Tempered SMC, in the run above, chose few rungs for itself.

# %%
print(f"{'':24}{'steppingstone':19}{'thermodynamic':19}{'its bias, estimated':>20}{'measured':>12}")
for name, run in runs.items():
    stone, line = run.evidence["steppingstone"], run.evidence["thermodynamic"]
    print(
        f"{name:24}{stone.log_evidence[0]:6.3f} +- {stone.std_error[0]:.3f}   {line.log_evidence[0]:6.3f} +- "
        f"{line.std_error[0]:.3f}   {line.bias[0]:20.3f}{line.log_evidence[0] - exact_evidence[0]:12.3f}"
    )
print(f"{'TemperedSMC':24}{powers.log_evidence[-1]:6.3f} +- {powers.log_evidence_std_error[-1]:.3f}")
print(f"{'quadrature':24}{exact_evidence[0]:6.3f}")
ladder = powers.rungs.temperatures[-1]
print("\nThe ladder that TemperedSMC found:", ladder[np.isfinite(ladder)].round(4))
