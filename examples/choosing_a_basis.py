# %% [markdown]
# # Choosing a basis
#
# The functions of every basis, the energy that each fits to the same real measurements, and the density that comes of
# it: the mean area of 569 tumours, on a logarithmic scale.

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from sklearn.datasets import load_breast_cancer

from numpyro_kaem import RBF, RSWAF, BSpline, Chebyshev, Fourier, KAPrior, Wavelet

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)

# %% [markdown]
# Two groups, benign and malignant tumours, make one skewed density with a shoulder. The reference is a Normal of the
# data's mean and standard deviation, the domain covers the data with a margin. Half of the data are held out.

# %%
tumours = load_breast_cancer()
z = np.log(tumours.data[:, list(tumours.feature_names).index("mean area")])
order = np.random.default_rng(0).permutation(len(z))
train, held_out = z[order[: len(z) // 2]], z[order[len(z) // 2 :]]
reference = dist.Normal(float(train.mean()), float(train.std()))
margin = 0.1 * (z.max() - z.min())
domain = (float(z.min() - margin), float(z.max() + margin))
quantiles = np.quantile(train, np.linspace(0.0, 1.0, 11)[1:-1])

bases = {
    "BSpline(12, degree=3)": BSpline(12, 3, domain),
    "BSpline(12, degree=1)": BSpline(12, 1, domain),
    "BSpline(12, degree=0)": BSpline(12, 0, domain),
    "BSpline.from_knots(quantiles, 3)": BSpline.from_knots(np.array([domain[0], *quantiles, domain[1]]), 3),
    "RBF(15)": RBF(15, domain),
    "RSWAF(15)": RSWAF(15, domain),
    "Fourier(7)": Fourier(7, domain),
    "Chebyshev(14)": Chebyshev(14, domain),
    'Wavelet("mexican_hat", 15)': Wavelet("mexican_hat", 15, domain),
    'Wavelet("morlet", 15, scale=3)': Wavelet("morlet", 15, domain, scale=3.0),
    'Wavelet("dog", 15)': Wavelet("dog", 15, domain),
}
if smoke:
    bases = dict(list(bases.items())[:2])

# %% [markdown]
# Left: the functions. Middle: the fitted energy, the functions' weighted sum, whose smoothness was chosen by
# cross-validation. Right: the density, the reference times its exponential.


# %%
def fit(basis):
    prior = KAPrior.from_samples(train, basis=basis, reference=reference)
    return prior, float(jnp.mean(prior.log_prob(jnp.asarray(held_out, jnp.float32))))


def show(axes, name, prior, score):
    basis = prior.energy.basis
    points = jnp.linspace(domain[0] - 0.4, domain[1] + 0.4, 801)
    for axis in axes:
        axis.axvspan(*domain, color="0.95", lw=0)
        axis.tick_params(labelsize=7)
        axis.set_xlim(points[0], points[-1])
    series = isinstance(basis, Fourier | Chebyshev)  # of which the first seven are enough to look at
    axes[0].plot(points, basis(points)[:, : 7 if series else None], lw=0.9)
    axes[0].set_ylabel(name, fontsize=8)
    axes[1].plot(points, prior.energy(points), color="C3", lw=1.2)
    axes[2].hist(train, 30, density=True, color="0.8")
    axes[2].plot(points, jnp.exp(reference.log_prob(points)), color="C7", lw=1, ls="--")
    axes[2].plot(points, jnp.exp(prior.log_prob(points)), color="C0", lw=1.2)
    axes[2].set_title(f"{basis.num_basis} functions, held out {score:.3f} nats", fontsize=8)


priors = {}
for start in range(0, len(bases), 4):
    names = list(bases)[start : start + 4]
    figure, rows = plt.subplots(len(names), 3, figsize=(9, 2.0 * len(names)), layout="constrained", squeeze=False)
    for name, axes in zip(names, rows, strict=True):
        priors[name] = fit(bases[name])
        show(axes, name, *priors[name])
    for axis, title in zip(rows[0][:2], ("functions", "energy"), strict=True):
        axis.set_title(title, fontsize=9)
    for axis in rows[-1]:
        axis.set_xlabel("log mean area", fontsize=8)
    figure.savefig(outputs / f"bases_{start // 4 + 1}.png", dpi=120)

# %% [markdown]
# Held-out log-likelihood per tumour, beside that of the reference alone.

# %%
print(f"{'reference alone':36}{np.mean(np.asarray(reference.log_prob(held_out))):9.3f}")
for name, (prior, score) in priors.items():
    print(f"{name:36}{score:9.3f}   {prior.energy.basis.num_basis:3} functions")

# %% [markdown]
# ## Tails
#
# Outside of the domain the energy is constant and the density is the reference's, times one number on each side. So the
# reference decides how far draws may go. Here is the cubic spline with three references of the same centre and width.

# %%
center, width = float(np.median(train)), float(train.std())
references = {
    "Normal": dist.Normal(center, width),
    "StudentT, 3 degrees of freedom": dist.StudentT(3.0, center, width),
    "Uniform on the domain": dist.Uniform(*domain),
}
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
points = jnp.linspace(domain[0] - 2.0, domain[1] + 2.0, 1201)
axes.axvspan(*domain, color="0.95", lw=0, label="domain")
for name, tail in references.items():
    prior = KAPrior.from_samples(train, basis=BSpline(12, 3, domain), reference=tail)
    draws = prior.sample(jax.random.key(0), (100_000,))
    inside = points[tail.support(points)]
    label = f"{name}: draws from {draws.min():.1f} to {draws.max():.1f}"
    axes.plot(inside, prior.log_prob(inside) / np.log(10), label=label)
    if smoke:
        break
axes.set(ylim=(-7, 0.5), xlabel="log mean area", ylabel="log10 density")
axes.legend(fontsize=8, loc="lower center")
figure.savefig(outputs / "tails.png", dpi=120)
