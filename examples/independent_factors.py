# %% [markdown]
# # Sources with noise, and missing values
#
# Sensors record mixtures of independent sources, each sensor with noise of its own and with gaps. Learn the mixing, the
# noise and the density of every source together, and get the sources back with error bars: independent factor analysis
# (H. Attias, 1999), with sources that are splines instead of mixtures of Gaussians. Then with more sources than
# sensors, and last, how many sources there are. It takes about a minute and a half on two cores.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import skimage.data
from numpyro.contrib.module import eqx_module
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA, FactorAnalysis, FastICA
from threadpoolctl import threadpool_limits

from numpyro_kaem import BSpline, KAPrior, LangevinMLE, TemperedSMC, UnivariateEnergy, fit, plot_evidence

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
if smoke:
    jax.config.update("jax_disable_most_optimizations", True)  # of programs that compile longer than they run
rng = np.random.default_rng(0)
threadpool_limits(1)  # of NumPy and scikit-learn: the matrices are small, and threads would wait for one another

# %% [markdown]
# ## The model
#
# $x = A z + b + \sigma \varepsilon$: every source $z_q$ has a `KAPrior`, a logistic distribution tilted by a cubic
# spline: tails are exponential, and the middle has any shape; every sensor has its own $\sigma$, with
# a weak prior that keeps it from vanishing. The scale of a source is fixed by its reference, or rather shared between
# $A$ and the spline, which only their product knows.
#
# The mask says which entries are seen. It is data, as `x` is: a masked entry counts nothing, and may hold any number.
# There are eight sensors and six sources, of which data switch some off, so that one program, compiled once, serves for
# all that follows: a source that is not used has no part in the likelihood, and its posterior is its prior.

# %%
num_sensors, most = 8, 6
num_train, num_held_out, num_epochs = 2_000, 20 if smoke else 200, 2 if smoke else 60
num_rows = num_train + num_held_out
held_out = slice(num_train, None)
basis = BSpline(num_intervals=16, degree=3, domain=(-5.0, 5.0))
tilt = UnivariateEnergy.init(jax.random.key(0), (most,), basis=basis, base_activation="identity", scale=0.0)
reference = dist.Logistic(jnp.zeros(most), 0.5)


def model(x, seen, used):
    a = numpyro.param("mixing", jnp.zeros((num_sensors, most)))
    b = numpyro.param("offset", jnp.zeros(num_sensors))
    noise = numpyro.param("noise", jnp.full(num_sensors, 0.5), constraint=dist.constraints.positive)
    numpyro.factor("noise prior", dist.LogNormal(jnp.log(0.5), 0.25).log_prob(noise).sum())
    sources = KAPrior(eqx_module("tilt", tilt), reference)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", sources.to_event(1))
        numpyro.sample("x", dist.Normal((used * z) @ a.T + b, noise).mask(seen).to_event(1), obs=x)


objective = LangevinMLE(num_steps=10, persistent=True)
optimizer = optax.adam(optax.cosine_decay_schedule(0.03, num_epochs * num_train // 250, alpha=0.01))
sampler = TemperedSMC(num_particles=20 if smoke else 200, num_mcmc_steps=5, progress=False)


def train(mixing, *data):
    """Parameters of greatest likelihood of the rows to learn from; `mixing` is where it starts, of sources in use."""
    start = np.zeros((num_sensors, most), np.float32)
    start[: len(mixing), : mixing.shape[1]] = mixing
    result = fit(
        jax.random.key(1),
        model,
        tuple(part[:num_train] for part in data),
        objective=objective,
        optimizer=optimizer,
        num_epochs=num_epochs,
        batch_size=250,
        init_params={"mixing": start},
        progress=False,
    )
    return result.params


def posterior_of(params, *data):
    return sampler.run(jax.random.key(2), model, params, *data)


def in_use(num_sources):
    return np.broadcast_to(np.float32(np.arange(most) < num_sources), (num_rows, most))


def mixing_by_ica(x, num_sources):
    return FastICA(num_sources, random_state=0, max_iter=1_000, tol=1e-3).fit(x[:num_train]).mixing_


# %% [markdown]
# ## Three sources, eight sensors, a fifth of the entries missing
#
# One source has two lumps, one is skewed, one has heavy tails. The truth is simulated, so that all that is claimed can
# be checked. Training starts at FastICA's mixing of the data with gaps filled by each sensor's mean.

# %%
truth_z = np.column_stack(
    [
        np.where(rng.random(num_rows) < 0.4, -1.2, 0.8) + 0.25 * rng.normal(size=num_rows),
        rng.exponential(size=num_rows) - 1.0,
        rng.laplace(size=num_rows) / 2**0.5,
    ]
)
truth_a = rng.normal(size=(num_sensors, 3))
truth_noise = np.linspace(0.2, 0.9, num_sensors).round(1)
complete = (truth_z @ truth_a.T + truth_noise * rng.normal(size=(num_rows, num_sensors))).astype(np.float32)
seen = rng.random(complete.shape) > 0.2
x = np.where(seen, complete, 0.0).astype(np.float32)

filled = np.where(seen, x, (x * seen).sum(0) / seen.sum(0))
data = x, seen, in_use(3)
params = train(mixing_by_ica(filled, 3), *data)
posterior = posterior_of(params, *(part[held_out] for part in data))

# %% [markdown]
# Beside it normal sources, which is factor analysis: all of it has a closed form, and gaps are no obstacle to EM
# (D. Rubin and D. Thayer, 1982).


# %%
def normal_posterior(x, seen, a, b, noise):
    """Means, of shape (rows, sources), covariances and log-evidence of rows under normal sources."""
    weight = seen / noise**2
    covariance = np.linalg.inv(np.eye(a.shape[1]) + np.einsum("nd,dq,dr->nqr", weight, a, a))
    residual = np.where(seen, x - b, 0.0)
    mean = np.einsum("nqr,dr,nd->nq", covariance, a, weight * residual)
    both = seen[:, :, None] & seen[:, None, :]
    of_x = np.where(both, a @ a.T + np.diag(noise**2), np.eye(len(a)))
    square = np.einsum("nd,nd->n", residual, np.linalg.solve(of_x, residual[..., None])[..., 0])
    log_evidence = -0.5 * (square + np.linalg.slogdet(of_x)[1] + np.log(2 * np.pi) * seen.sum(1))
    return mean, covariance, log_evidence


def factor_analysis(x, seen, a, num_steps=200):
    b, noise = np.zeros(num_sensors), np.full(num_sensors, 0.5)
    for _ in range(num_steps):
        mean, covariance, _ = normal_posterior(x, seen, a, b, noise)
        z = np.column_stack([mean, np.ones(len(x))])  # with a source of ones, whose column is the offset
        square = np.einsum("nq,nr->nqr", z, z)
        square[:, :-1, :-1] += covariance
        square, cross = np.einsum("nd,nqr->dqr", seen, square), (seen * x).T @ z
        columns = np.linalg.solve(square, cross[..., None])[..., 0]
        noise = np.sqrt(((seen * x**2).sum(0) - (cross * columns).sum(1)) / seen.sum(0))
        a, b = columns[:, :-1], columns[:, -1]
    return {"mixing": a, "offset": b, "noise": noise}


normal = factor_analysis(x[:num_train], seen[:num_train], mixing_by_ica(filled, 3))
mean, covariance, normal_evidence = normal_posterior(x[held_out], seen[held_out], *normal.values())
steps = np.linalg.cholesky(covariance)[:, None] @ rng.normal(size=(num_held_out, 400, 3, 1))
fits = {
    "learned sources": (params, posterior.latents["z"][..., :3]),
    "normal sources": (normal, mean[:, None] + steps[..., 0]),
}
print("noise of the sensors, true   ", truth_noise)
for name, (learned, _) in fits.items():
    print(f"noise of the sensors, {name}:", np.asarray(learned["noise"]).round(2))

# %% [markdown]
# Sources come in any order, with any sign and scale. Columns of the learned mixing are put beside the true ones; the
# factor between two columns is that between the sources.


# %%
def matched(a, truth):
    """Order of the columns of `a`, what the sources are to be multiplied by, and cosines of the columns."""
    cosine = (a / np.linalg.norm(a, axis=0)).T @ (truth / np.linalg.norm(truth, axis=0))
    order = linear_sum_assignment(-np.abs(cosine).T)[1]
    factor = np.einsum("dq,dq->q", a[:, order], truth) / np.einsum("dq,dq->q", truth, truth)
    return order, factor, np.abs(cosine[order, np.arange(truth.shape[1])])


print(f"{'':18}{'cosines of columns':>26}{'correlation with truth':>28}{'90 % intervals cover':>24}{'width':>8}")
recovered = {}
for name, (learned, draws) in fits.items():
    order, factor, cosines = matched(np.asarray(learned["mixing"])[:, :3], truth_a)
    z = draws[..., order] * factor
    z = z - z.mean((0, 1)) + truth_z[:num_train].mean(0)  # an offset of a source is one of the sensors
    low, high = np.quantile(z, [0.05, 0.95], axis=1)
    inside = (low < truth_z[held_out]) & (truth_z[held_out] < high)
    correlation = [np.corrcoef(z[..., q].mean(1), truth_z[held_out, q])[0, 1] for q in range(3)]
    recovered[name] = z
    print(
        f"{name:18}{np.array2string(cosines, precision=3):>26}{np.array2string(np.array(correlation), precision=3):>28}"
        f"{inside.mean():24.3f}{(high - low).mean():8.2f}"
    )

# %% [markdown]
# Normal sources do not know a direction in the space of sources from another: their mixing is right only up to a
# rotation. The learned densities are the third thing that training finds.

# %%
order, factor, _ = matched(np.asarray(params["mixing"])[:, :3], truth_a)
log_prob = jax.jit(lambda prior, z: prior.log_prob(z))
means = posterior.latents["z"].mean((0, 1))
grid = np.linspace(-3.5, 3.5, 400)
true_densities = [
    (0.4 * np.exp(-8 * (grid + 1.2) ** 2) + 0.6 * np.exp(-8 * (grid - 0.8) ** 2)) / (0.25 * (2 * np.pi) ** 0.5),
    np.where(grid > -1.0, np.exp(-(grid + 1.0)), 0.0),
    np.exp(-(2**0.5) * np.abs(grid)) / 2**0.5,
]
figure, axes = plt.subplots(2, 3, figsize=(10, 5.6), layout="constrained")
shown = np.argsort(seen[held_out].sum(1), kind="stable")[:: max(1, num_held_out // 25)]
for q, title in enumerate(["two lumps", "skewed", "heavy tails"]):
    at = np.repeat((grid / factor[q] + means[order[q]])[:, None], most, axis=1)
    density = np.exp(log_prob(KAPrior(params["tilt$params"], reference), at))[:, order[q]] / np.abs(factor[q])
    axes[0, q].plot(grid, true_densities[q], "0.6", lw=4, label="truth")
    axes[0, q].plot(grid, density, "C0", label="learned")
    axes[0, q].set(title=title, xlabel="source", ylim=(0, None))
    z = recovered["learned sources"][shown, :, q]
    low, middle, high = np.quantile(z, [0.05, 0.5, 0.95], axis=1)
    axes[1, q].errorbar(
        truth_z[held_out][shown, q], middle, [middle - low, high - middle], fmt="o", ms=3, lw=0.8, color="C0"
    )
    axes[1, q].axline((0, 0), slope=1, color="0.6", lw=1)
    axes[1, q].set(xlabel="true source", ylabel="posterior median, 90 % interval" if q == 0 else "")
axes[0, 0].legend()
plt.show()

# %% [markdown]
# ## What was missing
#
# Draws of the sources make draws of what the sensors would have said. The entries that were held back tell how good
# these are.

# %%
missing = ~seen[held_out]
print(f"{missing.sum()} missing entries{'':10}{'root mean square error':>26}{'90 % intervals cover':>24}{'width':>8}")
for name, (learned, z) in fits.items():
    a, b, sigma = (np.asarray(learned[site]) for site in ("mixing", "offset", "noise"))
    draws = z @ a[:, :3].T + b
    draws = draws + sigma * rng.normal(size=draws.shape)
    low, high = np.quantile(draws, [0.05, 0.95], axis=1)
    inside = ((low < complete[held_out]) & (complete[held_out] < high))[missing]
    error = (draws.mean(1) - complete[held_out])[missing]
    print(f"{name:30}{np.sqrt(np.mean(error**2)):21.3f}{inside.mean():24.3f}{(high - low)[missing].mean():8.2f}")
difference_of_sources = posterior.log_evidence - normal_evidence
print(
    f"held-out log-evidence, learned less normal: {difference_of_sources.mean():.3f} +- "
    f"{difference_of_sources.std() / num_held_out**0.5:.3f} nats a row"
)

# %% [markdown]
# ## Two sensors, three sources
#
# With more sources than sensors no matrix takes the data back to the sources: what is left is a posterior. Sparse
# sources show as directions of the scatter. The other six sensors are masked, and training starts at random; of three
# starts the one of the largest evidence is kept.

# %%
sparse_z = np.where(rng.random((num_rows, 3)) < 0.2, 2.0, 0.2) * rng.normal(size=(num_rows, 3))
angle = np.deg2rad([10.0, 65.0, 130.0])
sparse_a = np.stack([np.cos(angle), np.sin(angle)])
y = np.zeros((num_rows, num_sensors), np.float32)
y[:, :2] = sparse_z @ sparse_a.T + 0.3 * rng.normal(size=(num_rows, 2))
data = y, np.broadcast_to(np.arange(num_sensors) < 2, y.shape), in_use(3)

starts = [train(rng.normal(size=(2, 3)), *data) for _ in range(1 if smoke else 3)]
posteriors = [posterior_of(start, *(part[:num_held_out] for part in data)) for start in starts]
best = int(np.argmax([one.log_evidence.mean() for one in posteriors]))
columns = np.asarray(starts[best]["mixing"])[:2, :3]
order, factor, cosines = matched(columns, sparse_a)
print("nats a row of each start:", np.array([one.log_evidence.mean() for one in posteriors]).round(3))
print("angles between learned and true columns, degrees:", np.rad2deg(np.arccos(np.minimum(cosines, 1.0))).round(1))
print("noise:", np.asarray(starts[best]["noise"])[:2].round(3), "true: 0.3")

z, truth = posteriors[best].latents["z"][..., order] * factor, sparse_z[:num_held_out]
low, high = np.quantile(z, [0.05, 0.95], axis=1)
inside = (low < truth) & (truth < high)
print(f"90 % intervals of the sources cover {inside.mean():.3f}")
print("their widths, 10, 50 and 90 % of the rows:", np.quantile(high - low, [0.1, 0.5, 0.9]).round(2))

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
axes[0].plot(y[:, 0], y[:, 1], ".", ms=2, color="0.7")
for column in (columns / np.linalg.norm(columns, axis=0)).T:
    axes[0].axline((0, 0), tuple(column), color="C0", lw=1)
axes[0].set(title="two sensors, learned directions", xlim=(-6, 6), ylim=(-6, 6), aspect="equal")
widest = np.argsort(-(high - low).max(1))[:2]
for axis, row in zip(axes[1:], widest, strict=True):
    for q in range(3):
        axis.hist(z[row, :, q], 40, histtype="step", color=f"C{q}", label=f"source {q + 1}")
        axis.axvline(truth[row, q], color=f"C{q}", ls=":")
    axis.set(title="posterior at x = ({:.2f}, {:.2f})".format(*y[row, :2]), yticks=[])
axes[2].legend(title="dotted: truth", fontsize=8)
plt.show()

# %% [markdown]
# ## How many sources
#
# Four photographs, mixed at random and recorded by eight sensors with noise: 2,000 pixels to learn from, and others to
# score. The sources are real, and nothing about them is simulated but their mixing; their number is known. The
# log-evidence of a held-out pixel, by tempered SMC, says how well a model with K sources foresees it.
#
# Beside it are the likelihoods of scikit-learn's `FactorAnalysis` (normal sources, a noise for every sensor) and `PCA`
# (normal sources, one noise for all).


# %%
def photograph(name):
    values = getattr(skimage.data, name)()[:300, :400]
    return (values @ [0.2125, 0.7154, 0.0721] if values.ndim == 3 else values).ravel()


pictures = np.column_stack([photograph(name) for name in ("camera", "chelsea", "coffee", "astronaut")]).astype(float)
pictures = (pictures - pictures.mean(0)) / pictures.std(0)
pixels = pictures[rng.choice(len(pictures), num_rows, replace=False)]
noise = rng.uniform(0.2, 0.6, num_sensors)
x = (pixels @ rng.normal(size=(4, num_sensors)) + noise * rng.normal(size=(num_rows, num_sensors))).astype(np.float32)

log_evidence, std_error, scores = {}, {}, {"FactorAnalysis": {}, "PCA": {}}
for count in [2, 4] if smoke else range(2, most + 1):
    scores["FactorAnalysis"][count] = FactorAnalysis(count).fit(x[:num_train]).score_samples(x[held_out])
    scores["PCA"][count] = PCA(count).fit(x[:num_train]).score_samples(x[held_out])
    data = x, np.ones(x.shape, bool), in_use(count)
    posterior = posterior_of(train(mixing_by_ica(x, count), *data), *(part[held_out] for part in data))
    log_evidence[count], std_error[count] = posterior.log_evidence, posterior.log_evidence_std_error

# %% [markdown]
# Differences to the model of four sources are paired by pixel. Their standard error is that of the mean over the
# held-out pixels, which contains the noise of SMC; the latter alone is in the last column.

# %%
scores = {"learned sources": log_evidence, **scores}
print(f"{'K':>2}" + "".join(f"{name + ', nats a pixel':>34}" for name in scores) + f"{'error of SMC':>16}")
for count in log_evidence:
    cells = ""
    for values in scores.values():
        difference = values[count] - values[4]
        error = difference.std() / num_held_out**0.5
        cells += f"{values[count].mean():14.3f} ({difference.mean():+.3f} +- {error:.3f})"
    print(f"{count:>2}{cells}{np.sqrt(np.sum(std_error[count] ** 2)) / num_held_out:16.3f}")

# %%
axis = plot_evidence(scores, baseline=("learned sources", 4))
axis.axvline(4, color="0.8", zorder=0)
axis.set_xlabel("number of sources")
plt.show()

# %% tags=["checks"]
if not smoke:
    gain = {count: (values - log_evidence[4]).mean() for count, values in log_evidence.items()}
    assert gain[2] < gain[3] < -0.3 and max(abs(gain[5]), abs(gain[6])) < 0.15
    assert log_evidence[4].mean() > scores["FactorAnalysis"][4].mean() + 0.3
    assert difference_of_sources.mean() > 0.3 and cosines.min() > 0.99
    assert 0.85 < inside.mean() < 0.95
