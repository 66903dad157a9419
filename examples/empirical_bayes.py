# %% [markdown]
# # Empirical Bayes
#
# Many noisy measurements of many effects tell how the effects are distributed. One call learns that distribution by
# maximum marginal likelihood, and corrects every single measurement by it: in simulations where the truth is known, for
# the claims of car drivers, the tumours of rats, eighteen baseball players, and eight schools, which are too few.

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from scipy.optimize import minimize
from scipy.special import expit, logsumexp
from scipy.stats import beta, betabinom, gamma, nbinom, norm
from scipy.stats import t as student

from numpyro_kaem import empirical_bayes

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)

# %% [markdown]
# ## Two populations
#
# 70 percent of two thousand effects are close to zero, the others close to three. Most errors are larger than the
# spread of either population, and the measurements show one lump with a shoulder. The likelihood is a function from
# effects to a NumPyro distribution of the measurements; what else it needs, here the size of the errors, follows as
# data.

# %%
rng = np.random.default_rng(0)
number = 300 if smoke else 2_000
second = (rng.random(number) < 0.3).astype(int)
effects = rng.normal(np.array([0.0, 3.0])[second], np.array([0.4, 0.6])[second])
error = rng.uniform(0.5, 1.5, number)
y = rng.normal(effects, error)

result = empirical_bayes(lambda effect, error: dist.Normal(effect, error), y, error)
print(result.to_pandas().head().round(2).to_string())

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
axes[0].hist(y, bins=40, density=True, color="0.9", label="measurements")
points = np.linspace(-3.0, 6.0, 361)
truth = 0.7 * norm.pdf(points, 0.0, 0.4) + 0.3 * norm.pdf(points, 3.0, 0.6)
axes[0].plot(points, truth, "k--", label="truth")
result.plot(axes[0])
axes[0].set(title="The prior of the effects", xlim=(-3.5, 6.5))
new = result.posterior(points, np.ones_like(points))
low, high = new.quantile([0.05, 0.95]).T
axes[1].fill_between(points, low, high, alpha=0.25, linewidth=0, label="90% interval")
axes[1].plot(points, new.mean, label="posterior mean")
axes[1].plot(points, points, color="0.8", zorder=0, label="no shrinkage")
axes[1].set(title="What a measurement with error 1 becomes", xlabel="measured y", ylabel="effect")
axes[1].legend()
figure.savefig(outputs / "empirical_bayes_two_populations.png", dpi=120)

# %% [markdown]
# The learned prior finds both populations, and a measurement is drawn towards the one that it probably comes from.
# Between the two it is uncertain which, and the interval says so.
#
# ## Beside other priors
#
# R's ebnm and ashr fit priors of other families. Written out here: a normal; a point mass at zero and a normal; a
# mixture of normals around zero of scales on a grid; and the *nonparametric* maximum-likelihood estimator, the best of
# all distributions (Kiefer and Wolfowitz 1956; Laird 1978). All of them are mixtures of components whose marginal
# densities are known, so that EM needs three lines. EM also bounds what is left to gain: no shares exceed the mean
# log-likelihood of its own by more than $\log \max_k D_k$, $D_k = \frac1n \sum_i p(y_i \mid k) / p(y_i)$.


# %%
def em(log_marginal, iterations=200 if smoke else 2_000):
    """Shares of components, and what is left to gain in log-likelihood per datum."""
    marginal = np.exp(log_marginal - log_marginal.max(1, keepdims=True))
    shares = np.full(marginal.shape[1], 1.0 / marginal.shape[1])
    for _ in range(iterations):
        shares = shares * (marginal.T @ (1.0 / (marginal @ shares)) / len(marginal))
    return shares, np.log(np.max(marginal.T @ (1.0 / (marginal @ shares)) / len(marginal)))


def mixture(y, error, location, scale, shares=None):
    """Mean log-likelihood, posterior means and slack of a mixture of normals; shares are learned unless given."""
    scale = np.maximum(scale, 1e-9)
    log_marginal = norm.logpdf(y[:, None], location, np.hypot(error[:, None], scale))
    shares, slack = em(log_marginal) if shares is None else (shares, 0.0)
    joint = log_marginal + np.log(np.maximum(shares, 1e-300))
    log_evidence = logsumexp(joint, axis=1)
    weight = scale**2 / (scale**2 + error[:, None] ** 2)
    means = weight * y[:, None] + (1.0 - weight) * location
    return log_evidence.mean(), np.sum(np.exp(joint - log_evidence[:, None]) * means, axis=1), slack


def best(family, start):
    """The member of a family of priors with the greatest marginal likelihood."""
    return family(minimize(lambda parameters: -family(parameters)[0], start, method="Nelder-Mead").x)


def families(y, error):
    shared = error.min() * np.sqrt(2.0) ** np.arange(-4, 16)
    yield "normal", best(lambda p: mixture(y, error, p[:1], np.exp(p[1:]), np.ones(1)), [y.mean(), np.log(y.std())])

    def spike_and_normal(p):
        share = expit(p[0])
        return mixture(y, error, np.array([0.0, p[1]]), np.array([0.0, np.exp(p[2])]), np.array([1 - share, share]))

    yield "point mass and normal", best(spike_and_normal, [0.0, y.mean(), np.log(y.std())])
    yield "normals around zero, scales on a grid", mixture(y, error, np.zeros(21), np.append(0.0, shared))
    atoms = np.linspace(y.min(), y.max(), 101 if smoke else 401)
    yield "nonparametric, 401 points", mixture(y, error, atoms, np.zeros(len(atoms)))


# %% [markdown]
# Three kinds of effects, with all errors of size one. How far the log-likelihood is below that of the best of all
# distributions, and squared errors relative to those under the true prior, which nothing beats on average.

# %%
grid = np.arange(-3_000, 3_001) / 100
truths = {
    "two lumps": 0.7 * norm.pdf(grid, 0.0, 0.4) + 0.3 * norm.pdf(grid, 3.0, 0.6),
    "most are zero": np.where(grid == 0, 80.0, 0.2 * student.pdf(grid / 3.0, 4.0) / 3.0),
    "skewed": gamma.pdf(grid, 1.5, scale=1.5),
}
names = ("learned", "learned, and a point mass at zero")
bounds, errors = {}, {}
for kind, density in truths.items():
    masses = density / density.sum()
    effects = rng.choice(grid, number, p=masses)
    y, error = rng.normal(effects, 1.0), np.ones(number)
    joint = norm.logpdf(y[:, None], grid) + np.log(np.maximum(masses, 1e-300))
    log_evidence = logsumexp(joint, axis=1, keepdims=True)
    oracle = np.exp(joint - log_evidence) @ grid
    rows = dict(families(y, error))
    for name, point_mass in zip(names, (None, 0.0), strict=True):
        learned = empirical_bayes(lambda effect: dist.Normal(effect, 1.0), y, point_mass=point_mass)
        rows[name] = learned.log_likelihood / number, learned.mean, 0.0
    rows["the true prior"] = log_evidence.mean(), oracle, 0.0
    best_of_all = rows["nonparametric, 401 points"]
    bound = best_of_all[0] + best_of_all[2]
    bounds[kind] = bound - rows["learned"][0]
    errors[kind] = np.sum((rows["learned"][1] - effects) ** 2) / np.sum((oracle - effects) ** 2)
    print(f"{kind:40}{'nats below':>12}{'squared error':>16}")
    for name, (score, mean, _) in rows.items():
        ratio = np.sum((mean - effects) ** 2) / np.sum((oracle - effects) ** 2)
        print(f"  {name:38}{bound - score:12.4f}{ratio:16.3f}")

# %% [markdown]
# No family is best on all three but the learned prior is never far from it: below the bound by some thousandths of a
# nat per measurement, and with squared errors within two percent of the least possible. The normals around zero, which
# are right for effects most of which are zero, pull two lumps and skewed effects to the wrong place; the nonparametric
# prior has the best likelihood of all, by atoms at what happened to be measured, and predicts a little worse for it.

# %% tags=["checks"]
assert smoke or (max(bounds.values()) < 0.005 and max(errors.values()) < 1.025)

# %% [markdown]
# ## Claims of car drivers
#
# 9,461 drivers of a Belgian insurance company by their claims of one year (P. Thyrion, *Contribution à l'étude du bonus
# pour non sinistre en assurance automobile*, ASTIN Bulletin 1, 1960). How many claims are to be expected of each in the
# next? The effect is the logarithm of a driver's rate, the likelihood is Poisson, and the numbers of drivers are
# weights. Robbins' formula of 1956 needs no prior, but the number of drivers with a claim more. A gamma prior makes the
# counts negative binomial.

# %%
claims, drivers = np.arange(8), np.array([7840, 1317, 239, 42, 14, 4, 4, 1])
result = empirical_bayes(lambda log_rate: dist.Poisson(jnp.exp(log_rate)), claims, weights=drivers)
expected = np.exp(result.sample(jax.random.key(0), 20_000)).mean(0)


def gamma_prior(parameters):
    shape, rate = np.exp(parameters)
    return drivers @ nbinom.logpmf(claims, shape, rate / (1.0 + rate)), (claims + shape) / (1.0 + rate)


fitted = gamma_prior(minimize(lambda parameters: -gamma_prior(parameters)[0], [0.0, 1.0], method="Nelder-Mead").x)
robbins = np.append((claims[1:]) * drivers[1:] / drivers[:-1], np.nan)
print(f"{'claims':>8}{'drivers':>9}{'Robbins':>9}{'gamma':>9}{'learned':>9}")
for row in zip(claims, drivers, robbins, fitted[1], expected, strict=True):
    print("{:8}{:9}{:9.3f}{:9.3f}{:9.3f}".format(*row))
print(f"log-likelihood: gamma {fitted[0]:.2f}, learned {result.log_likelihood:.2f}")

# %% [markdown]
# Nearly six nats speak against the gamma prior. The learned one agrees with Robbins where there are many drivers, and
# does not follow his formula where there are few: its estimate after two claims, of 42 drivers with three, has an error
# of a sixth. Beyond three claims it says half as much again as the gamma prior: there are drivers of another kind.

# %% tags=["checks"]
assert 5 < result.log_likelihood - fitted[0] < 6
assert np.abs(expected[:2] - robbins[:2]).max() < 0.03
assert abs(expected[2] / robbins[2] - 1.0) < 0.3
assert np.all((expected / fitted[1])[4:] > 1.45) and np.all((expected / fitted[1])[4:] < 1.65)

# %% [markdown]
# ## Tumours of rats
#
# Seventy-one groups of female rats that were given no drug, by how many had a tumour of the uterus (R. E. Tarone, *The
# Use of Historical Control Information in Testing for a Trend in Proportions*, Biometrics 38, 1982). The effect is the
# log-odds of a tumour, the likelihood is binomial; beside it the usual beta prior.

# %%
groups = """
0/20 0/20 0/20 0/20 0/20 0/20 0/20 0/19 0/19 0/19 0/19 0/18 0/18 0/17 1/20 1/20 1/20 1/20 1/19 1/19 1/18 1/18
2/25 2/24 2/23 2/20 2/20 2/20 2/20 2/20 2/20 1/10 5/49 2/19 5/46 3/27 2/17 7/49 7/47 3/20 3/20 2/13 9/48 10/50
4/20 4/20 4/20 4/20 4/20 4/20 4/20 10/48 4/19 4/19 4/19 5/22 11/46 12/49 5/20 5/20 6/23 5/19 6/22 6/20 6/20 6/20
16/52 15/46 15/47 9/24 4/14
"""
tumours, rats = np.array([group.split("/") for group in groups.split()], int).T

result = empirical_bayes(lambda logit, n: dist.Binomial(n, logits=logit), tumours, rats)


def beta_prior(parameters):
    a, b = np.exp(parameters)
    return betabinom.logpmf(tumours, rats, a, b).sum(), (tumours + a) / (rats + a + b), (a, b)


fitted = beta_prior(minimize(lambda parameters: -beta_prior(parameters)[0], [0.0, 2.0], method="Nelder-Mead").x)
a, b = fitted[2]
print(f"log-likelihood: beta({a:.1f}, {b:.1f}) {fitted[0]:.2f}, learned {result.log_likelihood:.2f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
rate = np.linspace(0.002, 0.5, 300)
logits = np.log(rate / (1.0 - rate))
band = result.density_band(logits)
change = 1.0 / (rate * (1.0 - rate))  # of log-odds with the rate
axes[0].fill_between(rate, band.low * change, band.high * change, alpha=0.25, linewidth=0)
axes[0].plot(rate, band.density * change, label="learned, with 95% band")
axes[0].plot(rate, beta.pdf(rate, a, b), "C1", label="beta")
axes[0].set(title="The prior of tumour rates", xlabel="rate", ylim=(0.0, 9.0))
axes[0].legend()
low, middle, high = expit(result.quantile([0.05, 0.5, 0.95])).T
order = np.argsort(tumours / rats, kind="stable")
place = np.arange(len(order))
axes[1].vlines(place, low[order], high[order], "C0", alpha=0.4)
axes[1].plot(place, middle[order], "C0.", label="posterior median, 90% interval")
axes[1].plot(place, fitted[1][order], "C1.", ms=4, label="posterior mean, beta prior")
axes[1].plot(place, (tumours / rats)[order], "k_", label="share of the group")
axes[1].set(title="Seventy-one groups", xlabel="group", ylabel="rate")
axes[1].legend()
figure.savefig(outputs / "empirical_bayes_rats.png", dpi=120)

# %% [markdown]
# Seventy-one groups are few: the smoothness that is chosen leaves a normal prior of log-odds, and the band is wide. The
# beta prior fits a little better, by a nat for all groups, and says the same of them.

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
at_bats = np.full(len(hits), 45)
result = empirical_bayes(lambda logit, n: dist.Binomial(n, logits=logit), hits, at_bats)

# %% [markdown]
# Beside it: no pooling, complete pooling, and the estimator of James and Stein as Efron and Morris applied it (on the
# scale on which the variance is one). The error is against the rest of the season, summed over players.

# %%
scaled = np.sqrt(45) * np.arcsin(2 * hits / 45 - 1)
factor = 1 - (len(hits) - 3) / np.sum((scaled - scaled.mean()) ** 2)
shrunk = scaled.mean() + factor * (scaled - scaled.mean())
estimates = {
    "no pooling": hits / 45,
    "complete pooling": np.full(18, hits.mean() / 45),
    "James-Stein": (np.sin(shrunk / np.sqrt(45)) + 1) / 2,
    "learned": expit(result.sample(jax.random.key(1), 20_000)).mean(0),
}
for name, estimate in estimates.items():
    print(f"{name:20}{np.sum((estimate - rest) ** 2):8.4f}")
mean, std = float(result.prior.mean), float(result.prior.variance) ** 0.5
print(f"learned prior of the log-odds: mean {mean:.2f}, standard deviation {std:.2f}")

# %% [markdown]
# Eighteen data choose the amount of shrinkage, not the density: with so few the call stays with a normal prior, of
# greatest marginal likelihood.
#
# ## Eight schools
#
# Rubin's effects of coaching on test scores, with their standard errors (*Estimation in Parallel Randomized
# Experiments*, Journal of Educational Statistics 6, 1981).

# %%
school_effect = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
school_error = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
result = empirical_bayes(lambda effect, error: dist.Normal(effect, error), school_effect, school_error)
mean, std = float(result.prior.mean), float(result.prior.variance) ** 0.5
print(f"learned prior: mean {mean:.1f}, standard deviation {std:.2f}, log-likelihood {result.log_likelihood:.2f}")
for scale in (5.0, 10.0, 20.0):
    score = norm.logpdf(school_effect, mean, np.hypot(school_error, scale)).sum()
    print(f"normal prior of standard deviation {scale:4.1f}: log-likelihood {score:.2f}")

# %% [markdown]
# The best prior is next to a single point: that all schools are alike. Posteriors under it have next to no width, which
# is wrong: a standard deviation of ten costs little more than a nat for all schools together. The data hardly object,
# and one prior is not enough to say so. With so few average over priors, as a hierarchical model with NUTS does, and
# learn a density when there are hundreds.
