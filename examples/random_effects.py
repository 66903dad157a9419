# %% [markdown]
# # Random effects that need not be normal
#
# Patients, schools, batches: a hierarchical model gives each group an effect, and nearly always a normal one. Here
# the effects of 312 patients have a learned density instead, fully Bayesian by NUTS and by marginal likelihood. The
# data prefer it by eight nats, and the shrinkage changes; the next visit is predicted no better. A simulation shows
# when normal effects mislead, and by how much. It takes about two minutes on two cores.

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
import optax
from jax.scipy.special import logsumexp
from numpyro.infer import MCMC, NUTS, init_to_median
from scipy.stats import skew
from surpyval.datasets import load_pbc2
from threadpoolctl import threadpool_limits

from numpyro_kaem import (
    BSpline,
    ImportanceMLE,
    KAPrior,
    TemperedSMC,
    UnivariateEnergy,
    centered_prior,
    compare_evidence,
    empirical_bayes,
    fit,
)

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
if smoke:
    jax.config.update("jax_disable_most_optimizations", True)  # of programs that compile longer than they run
num_warmup, num_samples = (20, 20) if smoke else (250, 300)
threadpool_limits(1)  # of NumPy: the matrices are small, and threads would wait for one another
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)

# %% [markdown]
# ## The data
#
# The Mayo Clinic's trial of primary biliary cirrhosis (Murtaugh and others, *Hepatology* 20, 1994; shipped by
# surpyval) measured the prothrombin time at every visit of 312 patients: the seconds that blood plasma takes to clot,
# which are more where the liver fails. The model has the first two visits; the third one is kept to see which model
# knew more.

# %%
visits = load_pbc2().sort_values(["id", "year"])
visits["visit"] = visits.groupby("id").cumcount()
times = np.log(visits[visits.visit < 3].pivot(index="id", columns="visit", values="prothrombin").to_numpy())
if smoke:
    times = times[:60]
third = times[:, 2]
y = jnp.asarray(times[:, :2], jnp.float32)
seen = jnp.isfinite(y)  # a few patients came once
y = jnp.where(seen, y, 0.0)
mean_of_patient = np.nanmean(times[:, :2], axis=1)
print(f"{len(y)} patients, {int(seen.sum())} visits, {np.isfinite(third).sum()} third visits")
print(f"skewness of the patients' mean logarithms {skew(mean_of_patient):.2f}")

# %% [markdown]
# ## The model
#
# The logarithm of a time is an intercept, plus a scale times the patient's effect, plus an error. Errors have
# Student's t distribution with four degrees of freedom, so that a single odd visit is not taken for an odd patient.
# The effects are standard normal, or have a learned density. `centered_prior` keeps its mean at zero and its variance
# at one, whatever the energy: intercept and scale mean the same in both models.
#
# The energy is a spline whose third differences are normal: a smoothness prior. Its level, slope and curvature are
# set to zero, for these would move and stretch a normal density, which is taken out again. What is left of the energy
# is how the density differs from a normal one, and with a `step` of zero it is normal: the normal model is inside of
# the other.

# %%
basis = BSpline(num_intervals=12, degree=3, domain=(-4.0, 5.0))
_, sizes, modes = np.linalg.svd(np.diff(np.eye(basis.num_basis), 3, axis=0), full_matrices=False)
bend = jnp.asarray(modes.T / sizes, jnp.float32)  # from the roughest to the smoothest
num_bends = bend.shape[1]


def learned_effects(bends):
    energy = UnivariateEnergy(jnp.zeros(()), jnp.ones(()), bend @ bends, basis)
    return centered_prior(KAPrior(energy, dist.Normal(0.0, 1.0)), unit_variance=True)


def hyperparameters(learned):
    intercept = numpyro.sample("intercept", dist.Normal(2.4, 0.2))
    scale = numpyro.sample("scale", dist.LogNormal(-2.5, 0.5))
    noise = numpyro.sample("noise", dist.LogNormal(-3.0, 0.5))
    if not learned:
        return intercept, scale, noise, dist.Normal(0.0, 1.0)
    step = numpyro.sample("step", dist.LogNormal(-1.5, 0.7))
    bends = numpyro.sample("bends", dist.Normal(0.0, step).expand([num_bends]).to_event(1))
    return intercept, scale, noise, learned_effects(bends)


# %% [markdown]
# A patient's effect is one number, so that it can be integrated out on a grid:
#
# $$\log p(y_i \mid \theta) = \log \int p(y_i \mid x, \theta)\, p_\theta(x)\, dx .$$
#
# NUTS then samples 16 unknowns and not 328, and each patient's effect has its posterior on the grid at every draw. It
# also takes the model with effects as latent variables, as it is written below, in longer chains.

# %%
grid = jnp.linspace(-5.0, 7.0, 73)
log_width = jnp.log(grid[1] - grid[0])


def log_joint(intercept, scale, noise, effects, y, seen):
    """Of each patient's visits and each effect on the grid, of shape (patients, grid)."""
    visit = dist.StudentT(4.0, intercept + scale * grid, noise).log_prob(y[..., None])
    return jnp.where(seen[..., None], visit, 0.0).sum(1) + effects.log_prob(grid) + log_width


def model(y, seen, learned):
    parameters = hyperparameters(learned)
    with numpyro.plate("patients", len(y)):
        numpyro.factor("visits", logsumexp(log_joint(*parameters, y, seen), axis=1))


draws, by_chain = {}, {}
for name, learned in (("normal", False), ("learned", True)):
    mcmc = MCMC(
        NUTS(model, dense_mass=True, max_tree_depth=3 if smoke else 6, init_strategy=init_to_median),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), y, seen, learned, extra_fields=("diverging", "num_steps"))
    draws[name], by_chain[name] = mcmc.get_samples(), mcmc.get_samples(group_by_chain=True)
    summary = numpyro.diagnostics.summary(by_chain[name])
    worst = max(np.max(values["r_hat"]) for values in summary.values())
    fewest = min(np.min(values["n_eff"]) for values in summary.values())
    diverging = int(mcmc.get_extra_fields()["diverging"].sum())
    print(f"{name}: largest R-hat {worst:.3f}, smallest ESS {fewest:.0f}, {diverging} divergent transitions")
    for site in ("intercept", "scale", "noise", "step"):
        if site in summary:
            print(f"  {site} {draws[name][site].mean():.4f} +- {draws[name][site].std():.4f}")

# %% [markdown]
# ## By marginal likelihood
#
# The same model without priors on its parameters, the effects as latent variables: `ImportanceMLE` averages over
# draws of them and maximises, with the smoothness that NUTS has found. It knows nothing of its own uncertainty.

# %%
step_by_nuts = float(np.median(draws["learned"]["step"]))


def model_with_parameters(y, seen):
    intercept = numpyro.param("intercept", 2.35)
    scale = numpyro.param("scale", 0.07, constraint=dist.constraints.positive)
    noise = numpyro.param("noise", 0.03, constraint=dist.constraints.positive)
    bends = numpyro.param("bends", jnp.zeros(num_bends))
    numpyro.factor("smoothness", dist.Normal(0.0, step_by_nuts).log_prob(bends).sum())
    with numpyro.plate("patients", len(y)):
        x = numpyro.sample("effect", learned_effects(bends))
        visit = dist.StudentT(4.0, (intercept + scale * x)[..., None], noise)
        numpyro.sample("y", visit.expand([*jnp.shape(x), 2]).mask(seen).to_event(1), obs=y)


maximum = fit(
    jax.random.key(1),
    model_with_parameters,
    (y, seen),
    objective=ImportanceMLE(300),
    optimizer=optax.adam(optax.cosine_decay_schedule(0.02, 200)),
    num_epochs=5 if smoke else 200,
    batch_size=len(y),
    progress=False,
).params
by_maximum = learned_effects(maximum["bends"])
for site in ("intercept", "scale", "noise"):
    print(f"{site} {float(maximum[site]):.4f}")

# %% [markdown]
# ## What the effects look like, and what it does to patients

# %%
fine = jnp.linspace(-4.0, 6.0, 201)
density = jax.jit(jax.vmap(lambda bends: jnp.exp(learned_effects(bends).log_prob(fine))))
densities = density(draws["learned"]["bends"])
low, middle, high = np.quantile(densities, [0.05, 0.5, 0.95], axis=0)


@jax.jit
def at_each_draw(key, d):
    """Log-evidence of each patient, and a draw of the effect from its posterior on the grid, between its points."""

    def at(key, d):
        effects = learned_effects(d["bends"]) if "bends" in d else dist.Normal(0.0, 1.0)
        joint = log_joint(d["intercept"], d["scale"], d["noise"], effects, y, seen)
        key_cell, key_place = jax.random.split(key)
        place = jax.random.uniform(key_place, (len(y),), minval=-0.5, maxval=0.5)
        return logsumexp(joint, axis=1), grid[jax.random.categorical(key_cell, joint)] + place * jnp.exp(log_width)

    return jax.lax.map(lambda pair: at(*pair), (jax.random.split(key, len(d["scale"])), d), batch_size=50)


log_evidence, levels = {}, {}
for name, d in draws.items():
    log_evidence[name], effect = map(np.asarray, at_each_draw(jax.random.key(2), d))
    levels[name] = np.asarray(d["intercept"])[:, None] + np.asarray(d["scale"])[:, None] * effect
colors = {"normal": "C7", "learned": "C0"}

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
left.plot(fine, np.exp(dist.Normal(0.0, 1.0).log_prob(fine)), color="C7", ls="--", label="normal")
left.plot(fine, middle, color="C0", label="learned, NUTS: median")
left.fill_between(fine, low, high, color="C0", alpha=0.3, lw=0, label="90 % credible band")
left.plot(fine, np.exp(by_maximum.log_prob(fine)), color="C1", lw=1, label="learned, marginal likelihood")
left.set(xlabel="effect, standard deviations", ylabel="density", title="312 patients: the distribution of effects")
left.legend(fontsize=8)

order = np.argsort(mean_of_patient)
shown = order[-25:]
place = np.arange(len(shown))
right.plot(np.exp(mean_of_patient[shown]), place, "x", color="black", ms=5, label="mean of the first two visits")
for offset, name in ((0.15, "normal"), (-0.15, "learned")):
    lower, median, upper = np.exp(np.quantile(levels[name][:, shown], [0.05, 0.5, 0.95], axis=0))
    right.errorbar(
        median, place + offset, xerr=(median - lower, upper - median), fmt="o", ms=3, lw=1.2, color=colors[name],
        label=f"{name} effects, 90 % interval",
    )  # fmt: skip
right.plot(np.exp(third[shown]), place, "D", color="C3", ms=4, mfc="none", label="third visit (not used)")
right.axvline(np.exp(draws["normal"]["intercept"].mean()), color="C7", ls=":", lw=1)
right.set(yticks=[], xlabel="prothrombin time, seconds", title="The 25 patients with the longest times")
right.legend(fontsize=8, loc="lower right")
figure.savefig(outputs / "random_effects.png", dpi=120)

# %% [markdown]
# ## The third visit
#
# The third visit was in nobody's data. Its predictive density is that of a visit at the posterior of the patient.

# %%
came = np.isfinite(third)
log_score = {}
for name, d in draws.items():
    at_visit = dist.StudentT(4.0, levels[name], np.asarray(d["noise"])[:, None]).log_prob(np.nan_to_num(third))
    log_score[name] = np.asarray(logsumexp(at_visit, axis=0) - np.log(len(at_visit)))
gain = (log_score["learned"] - log_score["normal"])[came]
print(f"{len(gain)} third visits: {gain.sum():.1f} +- {np.sqrt(len(gain)) * gain.std():.1f} nats for learned effects")

# %% [markdown]
# No gain here: most patients are in the middle, where both models say the same, and for the few far out a visit tells
# little, because disease moves in between. A better distribution of effects need not predict single visits better.
#
# ## Posterior predictive checks
#
# Data drawn anew from either model, patients and errors, beside the data: the skewness of the patients' means, and
# how far the longest mean is from the median.


# %%
@jax.jit
def replicate(key, d):
    keys = jax.random.split(key, 3)
    learned = "bends" in d
    effects = learned_effects(d["bends"]) if learned else dist.Normal(0.0, 1.0)
    level = d["intercept"] + d["scale"] * effects.sample(keys[0], (len(y),))
    drawn = level[:, None] + d["noise"] * jax.random.t(keys[1], 4.0, y.shape)
    return jnp.sum(jnp.where(seen, drawn, 0.0), axis=1) / seen.sum(1)


checks = {"skewness of patients' means": lambda m: skew(m, axis=-1), "largest mean minus the median, log seconds":
          lambda m: m.max(-1) - np.median(m, axis=-1)}  # fmt: skip
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
tails = {}
for ax, (title, statistic) in zip(axes, checks.items(), strict=True):
    observed = statistic(mean_of_patient)
    for name, d in draws.items():
        keys = jax.random.split(jax.random.key(3), len(d["scale"]))
        replicated = statistic(np.asarray(jax.lax.map(lambda pair: replicate(*pair), (keys, d))))
        tails[name, title] = np.mean(replicated >= observed)
        bins = np.linspace(*np.quantile(replicated, [0.0, 0.995]), 30)
        ax.hist(replicated, bins=bins, density=True, alpha=0.5, color=colors[name], label=f"{name} effects")
        print(f"{title}: data {observed:.2f}, {name} {np.median(replicated):.2f}, share above {tails[name, title]:.3f}")
    ax.axvline(observed, color="black", label="the data")
    ax.set(title=title, yticks=[])
axes[0].legend(fontsize=8)
figure.savefig(outputs / "random_effects_checks.png", dpi=120)

# %% [markdown]
# ## Which model
#
# Leave-one-patient-out by ArviZ, whose pointwise log-likelihood is the integral over the patient's effect: a patient
# who is left out takes the effect along. Then the evidence by tempered SMC, which charges the learned density for all
# the shapes that it could have had.

# %%
idata = {}
for name in draws:
    shape = by_chain[name]["scale"].shape
    groups = {
        "posterior": {"scale": np.asarray(by_chain[name]["scale"])},
        "log_likelihood": {"visits": log_evidence[name].reshape(*shape, -1)},
    }
    idata[name] = az.from_dict(**groups) if az.__version__.startswith("0.") else az.from_dict(groups)
comparison = az.compare(idata)
print(comparison.to_string())

sampler = TemperedSMC(num_particles=16 if smoke else 128, num_runs=2, progress=False)
evidence = compare_evidence(
    {name: sampler.run(jax.random.key(4), model, {}, y, seen, name == "learned" and not smoke) for name in draws}
)
print(evidence.to_string())

# %% [markdown]
# Both prefer learned effects, the evidence by about eight nats although it pays for the freedom.
#
# ## When normal effects mislead: a simulation
#
# Two hundred groups, one measurement of each, whose error is half of the effects' standard deviation, equal to it, or
# twice as large. Four distributions of effects, all of mean zero and variance one. Normal effects are fitted in closed
# form, learned ones by `empirical_bayes`, which is the marginal likelihood of this model in one call.

# %%
num_groups, num_replicates = (50, 1) if smoke else (200, 6)
rng = np.random.default_rng(0)
shapes = {
    "normal": lambda n: rng.normal(size=n),
    "skewed": lambda n: rng.exponential(size=n) - 1.0,
    "two groups": lambda n: np.where(rng.random(n) < 0.2, 2.0, -0.5),
    "5 % outliers": lambda n: np.where(rng.random(n) < 0.05, 3.5, -3.5 / 19) / 0.9 + 0.43 * rng.normal(size=n),
}


def normal_groups(y, error):
    """Posterior means and 90 % intervals under normal effects of greatest marginal likelihood."""
    variance = max(y.var() - error**2, 1e-6)
    weight = variance / (variance + error**2)
    mean, spread = y.mean() + weight * (y - y.mean()), 1.645 * np.sqrt(weight) * error
    return mean, mean - spread, mean + spread


def learned_groups(y, error):
    """The same under learned effects."""
    result = empirical_bayes(lambda effect, error: dist.Normal(effect, error), y, np.full(len(y), error))
    return result.mean, *result.quantile([0.05, 0.95]).T


# %%
ways = {"normal": normal_groups, "learned": learned_groups}
print(f"{'effects':14}{'error':>6}  root mean squared error   of the 5 % largest: bias       covered by 90 % intervals")
print(f"{'':22}{'normal':>10}{'learned':>10}{'normal':>18}{'learned':>10}{'normal':>16}{'learned':>10}")
table = {}
for shape, draw in shapes.items():
    for ratio in (0.5,) if smoke else (0.5, 1.0, 2.0):
        scores = {name: [] for name in ways}
        for _ in range(num_replicates):
            truth = draw(num_groups)
            truth /= truth.std()
            measured = rng.normal(truth, ratio)
            largest = truth >= np.quantile(truth, 0.95)
            for name, way in ways.items():
                mean, lower, upper = way(measured, ratio)
                inside = (lower <= truth) & (truth <= upper)
                scores[name].append(
                    [np.mean((mean - truth) ** 2), np.mean((mean - truth)[largest]), np.mean(inside[largest])]
                )
        square, bias, covered = np.mean([scores[name] for name in ways], axis=1).T  # each by the ways
        row = table[shape, ratio] = [*np.sqrt(square), *bias, *covered]
        print(
            f"{shape:14}{ratio:6.1f}{'':2}{row[0]:10.2f}{row[1]:10.2f}{row[2]:18.2f}{row[3]:10.2f}"
            f"{row[4]:16.2f}{row[5]:10.2f}"
        )

figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
place = np.arange(len(shapes))
titles = "root mean squared error", "bias of the 5 % largest effects", "their coverage by 90 % intervals"
shown_ratio = 0.5
for k, (ax, title) in enumerate(zip(axes, titles, strict=True)):
    for offset, name, column in ((-0.2, "normal", 2 * k), (0.2, "learned", 2 * k + 1)):
        values = [table[shape, shown_ratio][column] for shape in shapes]
        ax.bar(place + offset, values, width=0.38, color=colors[name], label=f"{name} effects")
    ax.set_xticks(place, list(shapes), fontsize=8)
    ax.set_title(title, fontsize=10)
axes[1].axhline(0.0, color="black", lw=0.8)
axes[2].axhline(0.9, color="black", ls=":", lw=1)
axes[0].set_ylim(0.0, 0.65)
axes[0].legend(fontsize=8, ncols=2, loc="upper right")
figure.suptitle("200 groups, one measurement of each, error half of the effects' standard deviation", fontsize=10)
figure.savefig(outputs / "random_effects_simulation.png", dpi=120)

# %% [markdown]
# Where effects are normal, not knowing it costs nothing to speak of. Where they are not, and errors are half of the
# effects' standard deviation, normal effects shrink the largest ones too far, and the 90 % intervals of outliers
# cover about half of them. Where one measurement says little, with errors twice as large as the effects, no shape can
# be learned from 200 groups, and it does not matter which one is taken. The largest effects are mostly covered less
# than 90 % of the time by either: they were chosen for being large.
#
# On the right of the first figure, two visits that disagree are read as an odd visit and drawn to the middle by both
# models, and patients whose two visits agree stay where they are under learned effects.

# %% tags=["checks"]
if not smoke:
    assert evidence.index[0] == "learned" and evidence["log_bayes_factor"].iloc[1] < -4.0
    assert comparison.index[0] == "learned"
    assert tails["normal", "skewness of patients' means"] < 0.01
    for name in draws:
        assert abs(draws[name]["intercept"].mean() - 2.366) < 0.01
    outliers = table["5 % outliers", 0.5]
    assert outliers[1] < 0.9 * outliers[0] and outliers[5] > outliers[4] + 0.1
    assert table["two groups", 0.5][1] < 0.6 * table["two groups", 0.5][0]
    normal = table["normal", 1.0]
    assert abs(normal[1] / normal[0] - 1.0) < 0.03
    assert all(0.905 < error < 0.935 for shape in shapes for error in table[shape, 2.0][:2])
