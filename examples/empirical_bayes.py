# %% [markdown]
# # Empirical Bayes
#
# Many noisy measurements of many effects tell how the effects are distributed. Learn that distribution by maximum
# marginal likelihood, and let it correct every single measurement: in a simulation where the truth is known, for
# eighteen baseball players, and for eight schools, which are too few. It takes about a minute and a half on two cores.

# %%
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.module import eqx_module
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam
from scipy.signal import argrelmin
from scipy.special import expit, logsumexp
from scipy.stats import binom, norm

from numpyro_kaem import BSpline, ImportanceMLE, ImportanceSampling, KAPrior, UnivariateEnergy, fit

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
num_steps, num_draws, num_iterations = (20, 500, 100) if smoke else (500, 5_000, 4_000)
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)

# %% [markdown]
# ## The model
#
# An effect $z_i$ comes from an unknown prior, and is measured with an error of known size $\sigma_i$. It is an ordinary
# NumPyro model: the prior is a normal distribution with learned location and scale, either as it is or tilted by a
# learned cubic spline. The spline starts at zero, so training starts at the normal distribution.
#
# The factor is a penalty. It says of the spline's coefficients that their second differences are normal with standard
# deviation `bend`, so that a small `bend` keeps the tilt close to a straight line, which only moves a normal
# distribution. It stands outside of the data plate and so is counted once.


# %%
def normal(location, scale):
    return dist.Normal(
        numpyro.param("location", location), numpyro.param("scale", scale, constraint=dist.constraints.positive)
    )


def tilt(domain, num_intervals, bend):
    basis = BSpline(num_intervals=num_intervals, degree=3, domain=domain)
    initial = UnivariateEnergy.init(jax.random.key(0), basis=basis, base_activation="identity", scale=0.0)
    energy = eqx_module("energy", initial)
    differences = jnp.diff(energy.spline_weight * energy.coefficients, 2)
    numpyro.factor("smoothness", dist.Normal(0.0, bend).log_prob(differences).sum())
    return energy


def normal_effects(y, error):
    prior = normal(0.0, 2.0)
    with numpyro.plate("data", y.shape[0]):
        z = numpyro.sample("z", prior)
        numpyro.sample("y", dist.Normal(z, error), obs=y)


def learned_effects(y, error, domain):
    prior = KAPrior(tilt(domain, num_intervals=20, bend=2.0), normal(0.0, 2.0))
    with numpyro.plate("data", y.shape[0]):
        z = numpyro.sample("z", prior)
        numpyro.sample("y", dist.Normal(z, error), obs=y)


# %% [markdown]
# ## Two populations
#
# 70 percent of two thousand effects are close to zero, the others close to three. Most errors are larger than the
# spread of either population, and the measurements show one lump with a shoulder.

# %%
rng = np.random.default_rng(0)
second = (rng.random(2_000) < 0.3).astype(int)
z = rng.normal(np.array([0.0, 3.0])[second], np.array([0.4, 0.6])[second])
error = rng.uniform(0.5, 1.5, 2_000)
y = rng.normal(z, error)

# %% [markdown]
# Maximum marginal likelihood is what `ImportanceMLE` does: every step takes 300 draws from the prior, which all data
# share. There is nothing but the prior to learn.

# %%
domain = (float(y.min()), float(y.max()))
effects = {"normal": normal_effects, "learned": partial(learned_effects, domain=domain)}


def train(model, *data, draws=300):
    return fit(
        jax.random.key(1),
        model,
        tuple(np.asarray(array, np.float32) for array in data),
        objective=ImportanceMLE(draws),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.05, num_steps, alpha=0.01)),
        num_epochs=num_steps,  # all data at once, so that an epoch is a step
        batch_size=len(data[0]),
        progress=False,
    ).params


params = {name: train(model, y, error) for name, model in effects.items()}
priors = {
    "normal": dist.Normal(params["normal"]["location"], params["normal"]["scale"]),
    "learned": KAPrior(
        params["learned"]["energy$params"], dist.Normal(params["learned"]["location"], params["learned"]["scale"])
    ),
}

# %% [markdown]
# Posteriors by importance sampling, from the same model. The prior is a good proposal, because a single measurement
# says little.


# %%
def posterior_means(model, params, *data, function=lambda z: z):
    posterior = ImportanceSampling(num_draws).run(
        jax.random.key(2), model, params, *(np.asarray(array, np.float32) for array in data)
    )
    weights = np.exp(posterior.log_weights - posterior.log_evidence[:, None]) / num_draws
    return np.einsum("is,is->i", weights, function(posterior.latents["z"])), posterior


sampled = {name: posterior_means(model, params[name], y, error) for name, model in effects.items()}

# %% [markdown]
# With one latent number per measurement everything can also be had by quadrature: a sum over a fine grid gives
# $\log p(y_i)$ and posterior means to all digits, for any prior.


# %%
def on_grid(log_mass, log_likelihood, points):
    """Log-evidence and posterior mean of each datum, for prior masses on points."""
    joint = log_likelihood + log_mass
    log_evidence = logsumexp(joint, axis=1)
    return log_evidence, np.exp(joint - log_evidence[:, None]) @ points


def log_mass(prior, points):
    return np.asarray(prior.log_prob(points.astype(np.float32)), np.float64) + np.log(points[1] - points[0])


points = np.linspace(y.min() - 3.0, y.max() + 3.0, 2_001)
log_likelihood = norm.logpdf(y[:, None], points, error[:, None])
truth = dist.MixtureSameFamily(
    dist.Categorical(np.array([0.7, 0.3])), dist.Normal(np.array([0.0, 3.0]), np.array([0.4, 0.6]))
)
exact = {
    name: on_grid(log_mass(prior, points), log_likelihood, points) for name, prior in {**priors, "true": truth}.items()
}

# %% [markdown]
# How well could any prior do? The *nonparametric* maximum-likelihood estimator is the best of all distributions
# (Kiefer and Wolfowitz 1956; Laird 1978). On a grid it is found by EM, three lines of NumPy. EM also bounds what it has
# left to gain: no prior on the grid exceeds its mean log-likelihood by more than $\log \max_z D(z)$,
# $D(z) = \frac1n \sum_i p(y_i \mid z) / p(y_i)$.


# %%
def npmle(log_likelihood, iterations):
    """Masses of the nonparametric maximum-likelihood prior, and the log-likelihood per datum still to be gained."""
    likelihood = np.exp(log_likelihood - log_likelihood.max(1, keepdims=True))
    mass = np.full(likelihood.shape[1], 1.0 / likelihood.shape[1])
    for _ in range(iterations):
        mass = mass * (likelihood.T @ (1.0 / (likelihood @ mass)) / len(likelihood))
    return mass, np.log(np.max(likelihood.T @ (1.0 / (likelihood @ mass)) / len(likelihood)))


atoms = np.linspace(y.min(), y.max(), 401)
mass, slack = npmle(norm.logpdf(y[:, None], atoms, error[:, None]), num_iterations)
with np.errstate(divide="ignore"):
    exact["nonparametric"] = on_grid(np.log(mass), norm.logpdf(y[:, None], atoms, error[:, None]), atoms)

# %%
bound = exact["nonparametric"][0].mean() + slack
print(f"{'prior':28}{'log-likelihood':>16}{'below the bound':>18}{'squared error':>16}")
print(f"{'none (the measurements)':28}{'':34}{np.mean((y - z) ** 2):16.3f}")
for name, (log_evidence, mean) in exact.items():
    score = log_evidence.mean()
    print(f"{name:28}{score:16.4f}{bound - score:18.4f}{np.mean((mean - z) ** 2):16.3f}")
print("\nBy importance sampling instead of quadrature:")
for name, (mean, posterior) in sampled.items():
    print(f"{name:28}{posterior.log_evidence.mean():16.4f}{'':18}{np.mean((mean - z) ** 2):16.3f}")

# %% [markdown]
# The learned prior reaches the bound to a few thousandths of a nat per measurement. It is smooth, where the best
# distribution of all is a handful of spikes: nothing in the likelihood forbids them, and few believe in them. The
# normal prior cannot have two populations, and pulls the second one towards the first.

# %%
# EM comes to an atom as a narrow bump: the grid is cut in the valleys, and every piece is drawn as one atom.
pieces = np.split(np.arange(len(atoms)), argrelmin(mass)[0])
heights = np.array([mass[piece].sum() for piece in pieces])
places = np.array([np.average(atoms[piece], weights=mass[piece]) for piece in pieces])
kept = heights > 1e-3
colors = {"normal": "C7", "learned": "C0", "true": "black", "nonparametric": "C3"}
labels = {"normal": "normal", "learned": "learned (KAPrior)", "true": "truth", "nonparametric": "nonparametric"}
styles = {"normal": "-", "learned": "-", "true": "--", "nonparametric": ":"}

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
axes[0].hist(y, bins=40, density=True, color="0.9", label="measurements")
for name, prior in {**priors, "true": truth}.items():
    axes[0].plot(points, np.exp(prior.log_prob(points)), styles[name], color=colors[name], label=labels[name])
axes[0].vlines(places[kept], 0, heights[kept], "C3", label="nonparametric (masses)")
axes[0].plot(places[kept], heights[kept], "o", color="C3", markersize=4)
axes[0].set(title="The prior of the effects", xlabel="effect z", ylabel="density", xlim=(-3.5, 6.5), ylim=(0, None))
axes[0].legend(fontsize=8)

measured = np.linspace(-3.0, 6.0, 181)
single = norm.logpdf(measured[:, None], points, 1.0)
for name, prior in {**priors, "true": truth}.items():
    _, mean = on_grid(log_mass(prior, points), single, points)
    axes[1].plot(measured, mean, styles[name], color=colors[name], label=labels[name])
with np.errstate(divide="ignore"):
    _, mean = on_grid(np.log(mass), norm.logpdf(measured[:, None], atoms, 1.0), atoms)
axes[1].plot(measured, mean, styles["nonparametric"], color=colors["nonparametric"], label=labels["nonparametric"])
axes[1].plot(measured, measured, color="0.8", zorder=0, label="no shrinkage")
axes[1].set(title="What a measurement with error 1 becomes", xlabel="measured y", ylabel="posterior mean of z")
axes[1].legend(fontsize=8)
figure.savefig(outputs / "empirical_bayes_two_populations.png", dpi=120)

# %% [markdown]
# ## Eighteen baseball players
#
# Efron and Morris took the batting averages of 18 players after their first 45 at bats of the 1970 season and predicted
# those of the rest of the season. The data are of their *Data Analysis Using Stein's Estimator and its
# Generalizations*, Journal of the American Statistical Association 70 (1975), table 1. ("Williams" is Walt Williams of
# the Chicago White Sox, 270 at bats in the rest of the season; some copies of the table took the figures of Billy
# Williams.)

# %%
players = {  # hits in the first 45 at bats, batting average in the rest of the season
    "Clemente": (18, 0.346),
    "F. Robinson": (17, 0.298),
    "F. Howard": (16, 0.276),
    "Johnstone": (15, 0.222),
    "Berry": (14, 0.273),
    "Spencer": (14, 0.270),
    "Kessinger": (13, 0.263),
    "L. Alvarado": (12, 0.210),
    "Santo": (11, 0.269),
    "Swoboda": (11, 0.230),
    "Unser": (10, 0.264),
    "Williams": (10, 0.256),
    "Scott": (10, 0.303),
    "Petrocelli": (10, 0.264),
    "E. Rodriguez": (10, 0.226),
    "Campaneris": (9, 0.285),
    "Munson": (8, 0.316),
    "Alvis": (7, 0.200),
}
hits, rest = (np.array(column) for column in zip(*players.values(), strict=True))

# %% [markdown]
# The effect is the log-odds of a hit, and the likelihood is binomial. Eighteen players cannot determine a density: the
# tilt is of a fixed reference, whose 95 percent range of batting averages is 0.17 to 0.40, and it is penalised. How
# much the penalty matters is seen by leaving it out.


# %%
def batting(hits, bend):
    prior = KAPrior(tilt((-2.0, 0.0), num_intervals=12, bend=bend), dist.Normal(-1.0, 0.3))
    with numpyro.plate("players", hits.shape[0]):
        z = numpyro.sample("z", prior)
        numpyro.sample("hits", dist.Binomial(45, logits=z), obs=hits)


bends = {"learned, penalised": 1.0, "learned, not penalised": 1e4}
players_params = {name: train(partial(batting, bend=bend), hits, draws=1_000) for name, bend in bends.items()}
players_priors = {name: KAPrior(p["energy$params"], dist.Normal(-1.0, 0.3)) for name, p in players_params.items()}
estimates = {
    name: posterior_means(partial(batting, bend=bend), players_params[name], hits, function=expit)[0]
    for name, bend in bends.items()
}

# %% [markdown]
# Beside them: no pooling, complete pooling, the estimator of James and Stein as Efron and Morris applied it (on the
# scale on which the variance is one), and the nonparametric prior. The error is against the rest of the season,
# summed over players.

# %%
log_odds = np.linspace(-2.2, 0.2, 601)
players_likelihood = binom.logpmf(hits[:, None], 45, expit(log_odds))
players_mass, players_slack = npmle(players_likelihood, 5 * num_iterations)
players_joint = np.exp(players_likelihood) * players_mass

scaled = np.sqrt(45) * np.arcsin(2 * hits / 45 - 1)
factor = 1 - (len(hits) - 3) / np.sum((scaled - scaled.mean()) ** 2)
shrunk = scaled.mean() + factor * (scaled - scaled.mean())
estimates |= {
    "no pooling": hits / 45,
    "complete pooling": np.full(18, hits.mean() / 45),
    "James-Stein": (np.sin(shrunk / np.sqrt(45)) + 1) / 2,
    "nonparametric": players_joint @ expit(log_odds) / players_joint.sum(1),
}

wide = np.linspace(-4.0, 2.0, 2_001)
wide_likelihood = binom.logpmf(hits[:, None], 45, expit(wide))
players_scores = {"nonparametric": np.log(players_joint.sum(1)).sum()} | {
    name: on_grid(log_mass(prior, wide), wide_likelihood, wide)[0].sum() for name, prior in players_priors.items()
}
errors = {name: np.sum((mean - rest) ** 2) for name, mean in estimates.items()}
print(f"{'':24}{'squared error':>14}{'log-likelihood of all 18':>28}")
for name in sorted(errors, key=errors.get, reverse=True):
    score = f"{players_scores[name]:28.2f}" if name in players_scores else ""
    print(f"{name:24}{errors[name]:14.4f}{score}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
average = np.linspace(0.1, 0.45, 351)
change = 1 / (average * (1 - average))  # of log-odds with the average
for name, prior in {**players_priors, "reference": dist.Normal(-1.0, 0.3)}.items():
    style = {"reference": ("0.6", "--"), "learned, penalised": ("C0", "-"), "learned, not penalised": ("C1", "-")}[name]
    density = np.exp(prior.log_prob(np.log(average / (1 - average)))) * change
    axes[0].plot(average, density, color=style[0], linestyle=style[1], label=name)
axes[0].plot(hits / 45, np.full(18, -0.6), "|", color="black", label="first 45 at bats")
axes[0].set(title="The prior of batting averages", xlabel="batting average", ylabel="density")
axes[0].legend(fontsize=8)
chosen = estimates["learned, penalised"]
for first, middle, last in zip(hits / 45, chosen, rest, strict=True):
    axes[1].plot([0, 1, 2], [first, middle, last], ".-", color="C0", alpha=0.6)
for name in ["Clemente", "Munson", "Alvis"]:
    axes[1].annotate(name, (2, players[name][1]), xytext=(6, -3), textcoords="offset points", fontsize=8)
axes[1].set(title="Eighteen players", ylabel="batting average", xlim=(-0.2, 2.45))
axes[1].set_xticks([0, 1, 2], ["first 45 at bats", "posterior mean", "rest of the season"])
figure.savefig(outputs / "empirical_bayes_baseball.png", dpi=120)

# %% [markdown]
# Any sensible prior removes about 70 percent of the error, and the learned ones do as well as James and Stein to within
# a few percent. The shape is another matter: the likelihoods of a narrow, a wide and a two-point prior differ by less
# than a factor of two for all players together. Eighteen data choose the amount of shrinkage, not the density.
#
# ## Eight schools
#
# Rubin's effects of coaching on test scores, with their standard errors (*Estimation in Parallel Randomized
# Experiments*, Journal of Educational Statistics 6, 1981).

# %%
school_effect = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
school_error = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(y, error, bend):
    prior = KAPrior(tilt((-22.0, 38.0), num_intervals=12, bend=bend), dist.Normal(8.0, 10.0))
    with numpyro.plate("schools", y.shape[0]):
        z = numpyro.sample("z", prior)
        numpyro.sample("y", dist.Normal(z, error), obs=y)


school_data = school_effect, school_error
schools_priors = {
    name: KAPrior(
        train(partial(schools, bend=bend), *school_data, draws=1_000)["energy$params"], dist.Normal(8.0, 10.0)
    )
    for name, bend in bends.items()
} | {"reference": dist.Normal(8.0, 10.0)}

# %% [markdown]
# The hierarchical normal model does not choose one prior: it averages over locations and scales. NUTS samples them.


# %%
def hierarchical(y, error):
    location = numpyro.sample("location", dist.Normal(0.0, 50.0))
    scale = numpyro.sample("scale", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", y.shape[0]):
        z = numpyro.sample("z", dist.Normal(location, scale))
        numpyro.sample("y", dist.Normal(z, error), obs=y)


mcmc = MCMC(
    NUTS(numpyro.handlers.reparam(hierarchical, {"z": LocScaleReparam(0.0)})),
    num_warmup=200 if smoke else 1_000,
    num_samples=200 if smoke else 4_000,
    progress_bar=False,
)
mcmc.run(jax.random.key(3), *school_data)
draws = mcmc.get_samples()

# %%
points = np.linspace(-60.0, 80.0, 2_001)
school_likelihood = norm.logpdf(school_effect[:, None], points, school_error[:, None])
rows = {}
for name, prior in schools_priors.items():
    log_masses = log_mass(prior, points)
    log_evidence, mean = on_grid(log_masses, school_likelihood, points)
    _, square = on_grid(log_masses, school_likelihood, points**2)
    rows[name] = (float(prior.variance) ** 0.5, log_evidence.sum(), mean, np.sqrt(square - mean**2))
precision = school_error**-2.0
pooled = np.sum(precision * school_effect) / precision.sum()
one_point = norm.logpdf(school_effect, pooled, school_error)
rows["all schools alike"] = (0.0, one_point.sum(), np.full(8, pooled), np.zeros(8))
rows["hierarchical normal"] = (None, None, np.asarray(draws["z"].mean(0)), np.asarray(draws["z"].std(0)))
print(f"{'prior':24}{'its sd':>8}{'log-likelihood':>16}   posterior means of the schools A to H")
for name, (sd, score, mean, _) in rows.items():
    figures = f"{'averaged':>8}{'':16}" if sd is None else f"{sd:8.1f}{score:16.2f}"
    print(f"{name:24}{figures}   {' '.join(f'{value:5.1f}' for value in mean)}")
low, high = np.quantile(draws["scale"], [0.05, 0.95])
gain = logsumexp(school_likelihood - one_point[:, None], axis=0, b=1 / 8).max()  # log max D(z), as above
print(f"\nNo prior gains more than {8 * gain:.4f} nats on the one by which all schools are alike.")
print(f"90 percent of the hierarchical model's scales lie between {low:.1f} and {high:.1f}.")

# %%
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
order = np.argsort(-school_effect)
shown = {
    "measured": (school_effect, school_error),
    "learned, not penalised": rows["learned, not penalised"][2:],
    "learned, penalised": rows["learned, penalised"][2:],
    "hierarchical normal": rows["hierarchical normal"][2:],
}
for offset, color, (name, (mean, sd)) in zip(
    (-0.24, -0.08, 0.08, 0.24), ("0.7", "C1", "C0", "C2"), shown.items(), strict=True
):
    axis.errorbar(np.arange(8) + offset, mean[order], sd[order], fmt="o", ms=4, color=color, label=name)
axis.set_xticks(range(8), [f"school {'ABCDEFGH'[school]}" for school in order])
axis.set(ylabel="effect (mean, ± one standard deviation)", title="Eight schools")
axis.legend(fontsize=8)
figure.savefig(outputs / "empirical_bayes_schools.png", dpi=120)

# %% [markdown]
# The best prior of all is a single point: that all schools are alike. Maximum likelihood goes there, if nothing holds
# it back, and then reports next to no uncertainty, which is wrong. But priors up to a standard deviation of about ten
# cost little more than one nat for all schools together. The data hardly object, so what holds a learned prior back,
# the penalty and the reference, decides the answer. With so few data average over priors, as the hierarchical model
# does, and learn a density when there are hundreds.

# %% tags=["checks"]
if not smoke:
    # Two populations.
    reached = {name: log_evidence.mean() for name, (log_evidence, _) in exact.items()}
    squared = {name: np.mean((mean - z) ** 2) for name, (_, mean) in exact.items()}
    assert 0 <= bound - reached["learned"] < 0.01
    assert squared["true"] < squared["learned"] < squared["normal"] < np.mean((y - z) ** 2)
    for name, (mean, posterior) in sampled.items():
        assert abs(posterior.log_evidence.mean() - reached[name]) < 0.02
        assert np.mean((mean - exact[name][1]) ** 2) < 0.01

    # Efron and Morris's own figures: total squared errors 0.077 and 0.022, and 17.56 and 5.01 on the arcsine scale.
    assert abs(errors["no pooling"] - 0.077) < 0.002
    assert abs(errors["James-Stein"] - 0.022) < 0.001
    scaled_rest = np.sqrt(45) * np.arcsin(2 * rest - 1)
    assert abs(np.sum((scaled - scaled_rest) ** 2) - 17.56) < 0.05
    assert abs(np.sum((shrunk - scaled_rest) ** 2) - 5.01) < 0.05
    for name in ["learned, penalised", "learned, not penalised"]:
        assert errors[name] < errors["complete pooling"] < errors["no pooling"]
        assert abs(errors[name] / errors["James-Stein"] - 1) < 0.1
    assert 0 <= players_scores["nonparametric"] - players_scores["learned, not penalised"] < 0.1
    assert players_scores["nonparametric"] - players_scores["learned, penalised"] < np.log(2)

    # Eight schools: all alike is the best prior of all, and a wide one is hardly worse.
    assert 8 * gain < 1e-6
    best = rows["all schools alike"][1]
    assert best - rows["learned, not penalised"][1] < 0.05
    assert rows["learned, not penalised"][0] < 2.0
    assert 5.0 < rows["learned, penalised"][0] < 10.0
    assert best - rows["reference"][1] < 1.5
    # Under hierarchical averaging no school's uncertainty is as small as maximum likelihood makes it.
    assert np.all(rows["hierarchical normal"][3] > 3 * rows["learned, not penalised"][3])
