# %% [markdown]
# # Lifetimes
#
# How long people live, from a study that most of them outlived: subjects enter at different ages and many are alive
# when it ends. A learned density of lifetimes, truncated at the entry and censored at the exit, beside Kaplan and
# Meier.

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, Trace_ELBO
from surpyval import KaplanMeier
from surpyval.datasets import load_framingham

from numpyro_kaem import BSpline, KAPrior, RightCensoredPrior, UnivariateEnergy

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
num_steps = 5 if smoke else 80
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)

# %% [markdown]
# ## The data
#
# The Framingham Heart Study followed 4,434 people, who were between 32 and 70 years old when they were first examined,
# for 24 years; 1,550 of them died. (These are its teaching data, which are slightly perturbed.) Time is age here. Who
# was examined at 60 says nothing about death before 60, so a lifetime is *left-truncated* at the age of entry; who was
# alive at the end is *right-censored* there.

# %%
subjects = load_framingham().query("PERIOD == 1")
data = {}
for name, code in (("women", 2), ("men", 1)):
    group = subjects[code == subjects.SEX]
    entry = group.AGE.to_numpy(np.float32)
    exit = entry + group.TIMEDTH.to_numpy(np.float32) / 365.25
    data[name] = entry, exit, group.DEATH.to_numpy(bool)
    print(f"{name}: {len(group)} subjects, {group.DEATH.sum()} deaths, last exit at {exit.max():.1f}")

# %% [markdown]
# ## The model
#
# The reference is Gompertz's law of mortality, by which the death rate doubles every eight years; a spline on 20
# intervals between the ages of 32 and 95 tilts it. Neighbouring coefficients are held together by a prior on their
# second differences, of standard deviation 0.3. The likelihood is one line: the lifetime, truncated at the entry and,
# for the living, censored at the exit.

# %%
basis = BSpline(num_intervals=20, degree=3, domain=(32.0, 95.0))
gompertz = dist.Gompertz(7.7e-4, jnp.log(2.0) / 8.0)


def lifetime_of(coefficients):
    zero = jnp.zeros(())
    return KAPrior(UnivariateEnergy(zero, zero + 1.0, coefficients, basis), gompertz)


def model(data):
    for name, (entry, exit, died) in data.items():
        coefficients = numpyro.param(f"{name}_coefficients", jnp.zeros(basis.num_basis))
        second_differences = dist.Normal(0.0, 0.3).log_prob(jnp.diff(coefficients, 2))
        numpyro.factor(f"{name}_smoothness", jnp.sum(second_differences) - 0.005 * jnp.sum(coefficients**2))
        lifetime = lifetime_of(coefficients)
        with numpyro.plate(f"{name}_subjects", len(entry)):
            observed = RightCensoredPrior(lifetime.truncate(low=entry), censored=~died)
            numpyro.sample(f"{name}_exit", observed, obs=exit)


svi = SVI(model, lambda data: None, optax.adam(optax.cosine_decay_schedule(0.3, num_steps)), Trace_ELBO())
result = svi.run(jax.random.key(0), num_steps, data, progress_bar=False)
print(f"minus the log posterior density: {result.losses[0]:.1f} at first, {result.losses[-1]:.1f} in the end")
lifetimes = {name: lifetime_of(result.params[f"{name}_coefficients"]) for name in data}

# %% [markdown]
# ## Beside Kaplan and Meier
#
# Nobody was seen below 32, so both survival curves are those of people who have reached that age: the prior is
# truncated there. The step function is the estimate of Kaplan and Meier with the same entries, and the band its
# pointwise 95 percent interval, which begins with the first death. The curves are apart by 0.03 at most, inside of the
# band at every age. Dotted: the same estimate without the entries, as if everybody had been followed from birth. It
# counts the years before the entry, in which by design nobody died, as years of survival.

# %%
ages = np.linspace(40.0, 88.0, 481)
figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
differences, inside = {}, {}
for axis, color, (name, (entry, exit, died)) in zip(axes, ("C0", "C1"), data.items(), strict=True):
    kaplan_meier = KaplanMeier.fit(exit.astype(float), c=1 - died, tl=entry.astype(float))
    steps, band = kaplan_meier.sf(ages), kaplan_meier.cb(ages, on="sf")
    curve = np.asarray(lifetimes[name].truncate(low=32.0).survival(ages))
    low, high = np.nanmin(band, axis=1), np.nanmax(band, axis=1)
    differences[name], inside[name] = (
        np.max(np.abs(curve - steps)),
        np.mean(((curve >= low) & (curve <= high))[steps < 1.0]),
    )
    axis.fill_between(ages, low, high, step="post", color="0.85", label="Kaplan-Meier, 95 %")
    axis.step(ages, steps, where="post", color="0.4", lw=1, label="Kaplan-Meier")
    axis.step(
        ages,
        KaplanMeier.fit(exit.astype(float), c=1 - died).sf(ages),
        where="post",
        color="0.4",
        ls=":",
        label="without entries",
    )
    axis.plot(ages, curve, color=color, lw=2, label="learned density")
    axis.set_title(name)
    axis.set_xlabel("age")
    axis.legend(loc="lower left")
axes[0].set_ylabel("share of those alive at 32 who are still alive")
figure.savefig(outputs / "lifetimes_survival.png", dpi=120)

for name in data:
    print(f"{name}: largest difference of the curves {differences[name]:.3f}, ", end="")
    print(f"inside the band at {inside[name]:.0%} of ages")

# %% tags=["checks"]
assert smoke or (max(differences.values()) < 0.03 and min(inside.values()) == 1.0)

# %% [markdown]
# ## What a density adds
#
# Kaplan and Meier's curve is a step function without a density; the learned one has a density, a death rate and
# quantiles, and goes on beyond the age of 95, where its domain ends, by Gompertz's law. Survival far out is computed
# from its own side: the logarithm of the chance to reach 150 is finite where the probability is zero in float32.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
ages = np.linspace(40.0, 100.0, 400)
for color, (name, lifetime) in zip(("C0", "C1"), lifetimes.items(), strict=True):
    adult = lifetime.truncate(low=32.0)
    axes[0].plot(ages, np.exp(adult.log_prob(ages)), color=color, label=name)
    axes[1].semilogy(ages, np.exp(adult.log_prob(ages) - adult.log_survival(ages)), color=color, label=name)
    median, quarter = (float(adult.icdf(q)) for q in (0.5, 0.75))
    print(f"{name}: half of them live to {median:.1f} or more, a quarter to {quarter:.1f}; ", end="")
    print(f"log of the chance to reach 150: {float(adult.log_survival(150.0)):.0f}")
whole = gompertz.log_prob(ages) + gompertz.concentration * jnp.expm1(gompertz.rate * ages)
axes[1].semilogy(ages, np.exp(whole), color="0.4", ls="--", lw=1, label="reference: Gompertz's law")
axes[0].set_ylabel("density of the age at death")
axes[1].set_ylabel("death rate per year")
for axis in axes:
    axis.set_xlabel("age")
    axis.legend()
figure.savefig(outputs / "lifetimes_rates.png", dpi=120)
print(f"\nPictures are in {outputs.resolve()}")
