# %% [markdown]
# # Source separation
#
# Five photographs are mixed, and found again from the mixtures alone: by FastICA, whose densities are fixed, and by
# `ICA`, which learns the density of every source. In the cameraman of the former one sees the astronaut, in that of
# the latter nothing.

# %%
import os
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import skimage.data
from skimage.color import rgb2gray
from sklearn.decomposition import FastICA

from numpyro_kaem import ICA, effects

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)

# %% [markdown]
# Pixels are rows, photographs are sources: 262,144 rows of five numbers. Every mixture is a weighted sum of all five,
# and neither the weights nor the photographs are known to what follows.

# %%
names = ["astronaut", "camera", "moon", "brick", "grass"]
images = [getattr(skimage.data, name)() for name in names]
photographs = np.stack([rgb2gray(image) if image.ndim == 3 else image / 255.0 for image in images])
photographs = photographs[:, ::4, ::4] if smoke else photographs
side = photographs.shape[1]
sources = photographs.reshape(5, -1).T
sources = (sources - sources.mean(0)) / sources.std(0)

rng = np.random.default_rng(0)
mixing = rng.normal(size=(5, 5))
mixed = sources @ mixing.T

ica = ICA(random_state=0).fit(mixed)
fast = FastICA(whiten="unit-variance", max_iter=1_000, random_state=0).fit(mixed)


# %% [markdown]
# Order and sign of sources are conventions, so each photograph is put beside the source that is most like it. The row
# below a method shows what a source has of the other photographs: its difference from the true one, three times
# enlarged.


# %%
def matched(found):
    """The found sources in the order and with the signs of the photographs."""
    correlations = np.corrcoef(found.T, sources.T)[:5, 5:]
    of = np.abs(correlations).argmax(axis=0)
    return found[:, of] * np.sign(correlations[of, np.arange(5)])


def leakage(found):
    """The share of the variance of each source that is not the photograph's."""
    return np.mean((found - sources) ** 2, axis=0)


pictures = {"mixed": mixed / mixed.std(0)}
for name, method in (("FastICA", fast), ("ICA", ica)):
    pictures[name] = matched(method.transform(mixed))
    pictures[f"{name}: error x 3"] = 3.0 * (pictures[name] - sources)

figure, rows = plt.subplots(5, 5, figsize=(9, 9.4), layout="constrained")
for axes, (name, values) in zip(rows, pictures.items(), strict=True):
    axes[0].set_ylabel(name, fontsize=9)
    for axis, picture in zip(axes, values.T, strict=True):
        axis.imshow(picture.reshape(side, side), cmap="gray", vmin=-2.2, vmax=2.2)
        axis.set_xticks([])
        axis.set_yticks([])
for axes, name in ((rows[1], "FastICA"), (rows[3], "ICA")):
    for axis, photograph, share in zip(axes, names, leakage(pictures[name]), strict=True):
        axis.set_title(f"{photograph}: {share:.1%} wrong", fontsize=8)
figure.savefig(outputs / "separated.png", dpi=120)

# %% [markdown]
# ## The learned densities
#
# No two photographs have grey values of the same density: some have several lumps, some are skewed, all end at black
# and at white. `ica.sources_` are NumPyro distributions. FastICA and its relatives have the same score function for
# all of them, which is that of no such density.

# %%
z = ica.transform(mixed)
order = np.abs(np.corrcoef(z.T, sources.T)[:5, 5:]).argmax(axis=0)
figure, axes = plt.subplots(1, 5, figsize=(11, 2.4), layout="constrained")
for axis, name, at in zip(axes, names, order, strict=True):
    points = np.linspace(*np.quantile(z[:, at], [0.0, 1.0]) + np.array([-0.3, 0.3]), 500)
    grid = np.tile(points[:, None], (1, 5))
    axis.hist(z[:, at], 100, density=True, color="0.85", label="source")
    axis.plot(points, np.exp(ica.sources_.reference.log_prob(points)), color="C7", lw=1, ls="--", label="reference")
    axis.plot(points, np.exp(ica.sources_.log_prob(grid))[:, at], color="C0", lw=1.3, label="learned")
    axis.set_title(name, fontsize=9)
    axis.set_yticks([])
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=8)
figure.savefig(outputs / "source_densities.png", dpi=120)

# %% [markdown]
# ## What the coordinates do
#
# Sources are independent, so the variance of the mixtures is a sum of what each explains: [effects](../reading.md),
# here of a linear map, for which all are first-order and known to be the squares of the mixing matrix. Each
# coordinate is a photograph; along its quantiles go its grey values. What it does in a mixture is to add that
# photograph.

# %%
shares = effects(jax.random.key(0), ica.sources_, lambda z: z @ ica.mixing_.T + ica.mean_, 1_024)
print("photographs in the order of what they explain:", ", ".join(names[list(order).index(d)] for d in shares.ranking))
print(shares)

# %% tags=["checks"]
variances = np.asarray(ica.sources_.variance)
exact = (ica.mixing_**2).sum(axis=0) * variances
assert np.all(np.abs(shares.whole_total - exact / exact.sum()) < 0.01)
assert not shares.pairs

# %% [markdown]
# The likelihood is exact, so models can be compared by it on new rows. Fitted to every second pixel and scored on the
# others, here against a normal model of the five mixtures.

# %%
train, held_out = mixed[::2], mixed[1::2]
score = ICA(random_state=0).fit(train).score(held_out)
centred = held_out - train.mean(0)
covariance = np.cov(train.T)
mahalanobis = np.sum(centred @ np.linalg.inv(covariance) * centred, axis=1)
normal = -0.5 * (mahalanobis.mean() + np.linalg.slogdet(2.0 * np.pi * covariance)[1])
print(f"ICA {score:.3f} nats a pixel, a normal model {normal:.3f}")
print(f"steps of the search: {ica.n_iter_}")
print("share of a source that is not its photograph's, FastICA and ICA:")
for name, other, ours in zip(names, leakage(pictures["FastICA"]), leakage(pictures["ICA"]), strict=True):
    print(f"{name:12}{other:8.2%}{ours:8.2%}")

# %% [markdown]
# Draws of the sources, mixed, are new data: without any likeness to pictures, for pixels are rows here and know
# nothing of their neighbours, but with the densities and the dependence of the five mixtures.

# %%
new = ica.inverse_transform(ica.sources_.sample(jax.random.key(0), (10_000,)))
print("correlations of mixtures 1 and 2:", np.round([np.corrcoef(of[:, :2].T)[0, 1] for of in (mixed, new)], 2))

# %% tags=["checks"]
if not smoke:
    assert np.mean(leakage(pictures["ICA"])) < 0.6 * np.mean(leakage(pictures["FastICA"]))
assert score > normal
