# %% [markdown]
# # When posteriors mislead
#
# Where in a photograph was a patch cut out? The posterior is a spike in a plain of places that look much the same,
# and chains and particles miss it. What samplers say then, and what helps. After it: a prior that numbers cannot
# hold, values that are missing, and training with chains that stand still. All of it beside what is exactly right.

# %%
import os
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.scipy.ndimage import map_coordinates
from scipy.special import gammaln, logsumexp
from sklearn.datasets import load_digits, load_iris, load_sample_image

from numpyro_kaem import (
    MALA,
    HeldOut,
    ImportanceSampling,
    Ladder,
    Langevin,
    LangevinMLE,
    ParallelTempering,
    TemperedSMC,
    fit,
    plot_training,
)

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)


def told(run, *args):
    """What a run gives, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return run(*args), [str(warning.message) for warning in caught]


# %% [markdown]
# ## Where was the patch?
#
# Eight by eight pixels of a photograph (the summer palace in Beijing, which scikit-learn brings along) are taken at
# a place between the pixels, with a little noise. Any place of the photograph may be it.

# %%
photo = load_sample_image("china.jpg").mean(2)[:426] / 255
photo = jnp.asarray(photo.reshape(213, 2, 320, 2).mean((1, 3)), jnp.float32)
size, noise = 8, 0.05
offsets = jnp.stack(jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij"))
last = jnp.array(photo.shape) - size - 1.0


def cut(place):
    return map_coordinates(photo, offsets + place[:, None, None], order=1)


truth = jnp.array([130.4, 80.3])
patch = cut(truth) + noise * jax.random.normal(jax.random.key(5), (size, size))


def model(patch):
    place = numpyro.sample("place", dist.Uniform(jnp.zeros(2), last).to_event(1))
    numpyro.sample("patch", dist.Normal(cut(place), noise).to_event(2), obs=patch)


# %% [markdown]
# The place has two coordinates, so that sums over grids are the yardstick: a grid of the whole photograph, and a
# fine one about the best place on it.


# %%
@jax.jit
def log_likelihood(rows, columns):
    def at(row, column):
        return dist.Normal(cut(jnp.stack([row, column])), noise).log_prob(patch).sum()

    return jax.lax.map(lambda row: jax.vmap(lambda column: at(row, column))(columns), rows)


def grid(low, high, step):
    rows, columns = (np.arange(a + step / 2, b, step) for a, b in zip(low, high, strict=True))
    return rows, columns, np.asarray(log_likelihood(rows, columns), np.float64)


rows, columns, everywhere = grid((0, 0), last, 0.5)
best = np.unravel_index(everywhere.argmax(), everywhere.shape)
about = np.array([rows[best[0]], columns[best[1]]])
_, _, nearby = grid(about - 2, about + 2, 0.01)
exact = logsumexp(nearby) + 2 * np.log(0.01) - np.log(np.prod(last))
elsewhere = np.where((abs(rows - about[0]) > 2)[:, None] | (abs(columns - about[1]) > 2), everywhere, -np.inf)
plain = logsumexp(elsewhere) + 2 * np.log(0.5) - np.log(np.prod(last))
print(f"log-evidence {exact:.2f}; of all places but the right one {plain:.2f}")

figure, axes = plt.subplots(1, 3, figsize=(11, 2.9), width_ratios=[3, 1.2, 3], layout="constrained")
axes[0].imshow(photo, cmap="gray")
axes[0].plot(truth[1], truth[0], "s", mec="tab:orange", mfc="none", ms=9, mew=2)
axes[1].imshow(patch, cmap="gray")
image = axes[2].imshow(np.maximum(everywhere, -2_000), extent=(0, last[1], last[0], 0))
figure.colorbar(image, ax=axes[2], shrink=0.8)
for ax, title in zip(axes, ("the photograph", "the patch", "log-likelihood of every place"), strict=True):
    ax.set_title(title)
    ax.axis("off")
figure.savefig(outputs / "patch.png", dpi=120)

# %% tags=["checks"]
assert exact - plain > 50
assert np.abs(about - np.asarray(truth)).max() < 0.5

# %% [markdown]
# All of the posterior is within a pixel of the right place. Eight chains start at draws from the prior and climb
# what hill they are on.

# %%
sampler = Langevin(num_steps=200 if smoke else 1_000, num_chains=8, progress=False)
chains, warned = told(sampler.run, jax.random.key(0), model, {}, patch)
print(f"R-hat {chains.rhat[0]:.1f}", *warned, sep="\n")

places = chains.latents["place"][0].reshape(8, -1, 2)
heights = chains.log_likelihood[0].reshape(8, -1)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
left.imshow(photo, cmap="gray", alpha=0.6)
for chain in range(8):
    left.plot(places[chain, :, 1], places[chain, :, 0], ".", ms=3)
    right.plot(heights[chain])
left.plot(truth[1], truth[0], "s", mec="black", mfc="none", ms=9, mew=2)
left.set_title("eight chains, and the right place")
left.axis("off")
right.axhline(everywhere.max(), color="black", ls=":")
right.set(xlabel="step", title="log-likelihood; dotted: of the right place", yscale="symlog", ylim=(None, 1e3))
figure.savefig(outputs / "patch_chains.png", dpi=120)

# %% tags=["checks"]
assert chains.rhat[0] > 1.5
assert any("disagree" in message for message in warned)

# %% [markdown]
# ## Particles, few and many
#
# Tempering lets particles wander before the likelihood takes hold. Whether one of them is near the right place at
# the temperature at which it begins to pay is a matter of their number. A single run that has missed it is sure of
# itself: its error is that of the plain's evidence. Several runs tell, if one of them is lucky.

# %%
numbers = (125, 500) if smoke else (125, 250, 500, 1_000, 2_000, 4_000)
num_keys = 3 if smoke else 6
trials = []
for number in numbers:
    for key in range(num_keys):
        smc = TemperedSMC(num_particles=number, num_runs=4, progress=False)
        posterior, warned = told(smc.run, jax.random.key(key), model, {}, patch)
        trials.append((number, posterior.log_evidence[0], posterior.run_log_evidence[0], bool(warned)))

figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
for says_so, color in ((True, "tab:orange"), (False, "tab:blue")):
    shown = [(number * 1.05, runs) for number, _, runs, warned in trials if warned == says_so]
    label = f"the four runs of a call {'that warns' if says_so else 'without a warning'}"
    shift = 0.94 if says_so else 1.06
    ax.plot(
        np.repeat([number * shift for number, _ in shown], 4), np.ravel([runs for _, runs in shown]), "o", color=color,
        alpha=0.5, label=label,
    )  # fmt: skip
ax.axhline(exact, color="black", ls=":", label="exact")
ax.axhline(plain, color="black", ls="--", label="of all places but the right one")
ax.set(xscale="log", xticks=numbers, xticklabels=numbers, xlabel="particles of a run", ylabel="log-evidence")
ax.minorticks_off()
ax.legend()
figure.savefig(outputs / "patch_evidence.png", dpi=120)

# %% tags=["checks"]
for number, log_evidence, runs, warned in trials:
    assert warned or len(set(runs > (exact + plain) / 2)) == 1, "runs that differ are told"
    if number == 4_000:
        assert abs(log_evidence - exact) < 3

# %% [markdown]
# Where the four runs are in different places there is a warning. Where none of them has seen the right place there
# may be none, and there cannot be: what no draw has met leaves no trace. So a warning means that the answer is
# wrong, and silence is worth as much as the number of runs and particles behind it.
#
# Something that knows where to look helps more than particles: here the best of the places on a grid of pixels,
# around which importance sampling draws. Its answer is exact whatever the guide, which has only to cover the
# posterior.


# %%
def around_the_best(patch):
    numpyro.sample("place", dist.TruncatedNormal(jnp.asarray(about), 1.0, low=0.0, high=last).to_event(1))


guided = ImportanceSampling(20_000, guide=around_the_best).run(jax.random.key(0), model, {}, patch)
print(f"log-evidence {guided.log_evidence[0]:.2f} +- {guided.log_evidence_std_error[0]:.2f}, exact {exact:.2f}")

# %% tags=["checks"]
assert abs(guided.log_evidence[0] - exact) < 5 * guided.log_evidence_std_error[0] + 0.01

# %% [markdown]
# ## A prior that numbers cannot hold
#
# `Gamma(0.001, 0.001)` was the vague prior of a whole field. Most of its draws are smaller than the smallest number
# of float32. Chains and particles would move among the numbers that there are, and give the evidence of another
# prior.

# %%
counts = np.array([3, 5, 2, 4])


def vague(shape):
    def model(k):
        rate = numpyro.sample("rate", dist.Gamma(shape, shape))
        with numpyro.plate("n", len(k)):
            numpyro.sample("k", dist.Poisson(rate), obs=k)

    return model


def exact_vague(a):
    n, total = len(counts), counts.sum()
    return (
        a * np.log(a) - gammaln(a) + gammaln(a + total) - (a + total) * np.log(a + n) - gammaln(counts + 1).sum()
    )  # fmt: skip


draw = jax.random.loggamma(jax.random.key(0), 0.001, (20_000,)) - np.log(0.001)
figure, ax = plt.subplots(figsize=(8, 3), layout="constrained")
ax.hist(np.maximum(draw / np.log(10), -1_000), 100)
ax.axvline(np.log10(np.finfo(np.float32).tiny), color="tab:orange", label="smallest normal number of float32")
ax.axvline(np.log10(np.finfo(np.float64).tiny), color="tab:orange", ls=":", label="of float64")
ax.set(xlabel="log10 of draws from Gamma(0.001, 0.001)", ylabel="draws of 20,000")
ax.legend()
figure.savefig(outputs / "vague.png", dpi=120)

for shape in (0.001, 0.1):
    posterior = ImportanceSampling(200_000).run(jax.random.key(0), vague(shape), {}, counts)
    print(
        f"Gamma({shape}, {shape}): exact {exact_vague(shape):.3f}, importance sampling "
        f"{posterior.log_evidence[0]:.3f} +- {posterior.log_evidence_std_error[0]:.3f}"
    )
    try:
        posterior = TemperedSMC(num_particles=1_000, progress=False).run(jax.random.key(0), vague(shape), {}, counts)
        print(f"TemperedSMC {posterior.log_evidence[0]:.3f} +- {posterior.log_evidence_std_error[0]:.3f}")
    except ValueError as error:
        print("TemperedSMC refuses:", error)

# %% [markdown]
# ## Missing values
#
# NumPyro's idiom for a missing value is a latent without a density of its own, `mask(False)`, which is counted
# where all values are. The density of a draw must be that from which it was drawn, or weights and moves go wrong;
# where a mask takes away what nothing else gives back, the prior is improper, and refused.

# %%
lengths = load_iris().data[50:60, 2].copy()
is_missing = np.zeros(10, bool)
is_missing[[2, 7]] = True


def imputation(y):
    mean = numpyro.sample("mean", dist.Normal(4.0, 2.0))
    missing = numpyro.sample("missing", dist.Normal(mean, 0.5).expand([2]).mask(False))
    whole = jnp.asarray(y).at[jnp.flatnonzero(is_missing, size=2)].set(missing)
    numpyro.sample("y", dist.Normal(mean, 0.5), obs=whole)


y = np.where(is_missing, 0.0, lengths)
known = lengths[~is_missing]
precision = 1 / 2.0**2 + len(known) / 0.5**2
exact_mean = (4.0 / 2.0**2 + known.sum() / 0.5**2) / precision
exact_sd = (0.5**2 + 1 / precision) ** 0.5
figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), sharey=True, layout="constrained")
at = np.linspace(2.0, 6.5, 200)
samplers = {
    "ImportanceSampling": ImportanceSampling(20_000),
    "TemperedSMC": TemperedSMC(num_particles=4_000, progress=False),
    "ParallelTempering": ParallelTempering(Ladder.power(4), num_steps=4_000, progress=False),
}
for ax, (name, sampler) in zip(axes, samplers.items(), strict=True):
    posterior = sampler.run(jax.random.key(1), imputation, {}, y)
    drawn = posterior.resample(jax.random.key(2), 4_000).latents["missing"][0]
    ax.hist(np.ravel(drawn), 40, density=True, alpha=0.5)
    ax.plot(at, np.exp(-((at - exact_mean) ** 2) / exact_sd**2 / 2) / exact_sd / (2 * np.pi) ** 0.5, color="black")
    ax.set(title=f"{name}: sd {np.std(drawn):.3f}\nexact {exact_sd:.3f}", xlabel="missing length, cm")
    assert abs(np.std(drawn) - exact_sd) < 0.05 and abs(np.mean(drawn) - exact_mean) < 0.05
figure.savefig(outputs / "imputation.png", dpi=120)

# %% [markdown]
# ## Training with chains that stand still
#
# A factor model of counts: 64 pixels of handwritten digits, 0 to 16, with two latents. `LangevinMLE` finds step
# sizes by datum. With one step size for all of them, chains of data with sharp posteriors are never accepted, and
# say the same at every step: `history["stuck"]` counts them, and `history["importance_gap"]` says how far log p(x |
# z) at the chains' ends is below what weighted draws of the prior find. A warning comes in the first epoch; the
# score needs longer to show it.

# %%
pixels = load_digits().data.astype(np.float32)[:1_000]


def factors(x):
    weights = numpyro.param("weights", lambda key: 0.1 * jax.random.normal(key, (2, 64)))
    bias = numpyro.param("bias", jnp.log(pixels.mean(0) + 0.1))
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Poisson(jnp.exp(z @ weights + bias)).to_event(1), obs=x)


objectives = {
    "one step size, 0.5": LangevinMLE(MALA(step_size=0.5), num_steps=10, start="prior", persistent=False),
    "by datum (default)": LangevinMLE(),
}
results, messages = {}, {}
for name, objective in objectives.items():
    results[name], messages[name] = told(
        lambda objective=objective: fit(
            jax.random.key(0), factors, pixels, objective=objective, optimizer=optax.adam(1e-2), batch_size=100,
            num_epochs=2 if smoke else 20, progress=False,
            held_out=HeldOut(load_digits().data.astype(np.float32)[1_000:1_300], num_samples=2_000),
        )
    )  # fmt: skip
    print(f"{name}:", *messages[name], sep="\n  ")
axes = plot_training(results, metrics=["held_out_log_likelihood", "stuck", "importance_gap"])
axes[0].figure.savefig(outputs / "stuck_chains.png", dpi=120)

# %% tags=["checks"]
assert messages["one step size, 0.5"] and not messages["by datum (default)"]
scores = [results[name].history["held_out_log_likelihood"][-1] for name in objectives]
assert smoke or scores[1] > scores[0] + 5
