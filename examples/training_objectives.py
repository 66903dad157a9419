# %% [markdown]
# # Three ways to train one model
#
# The same model of handwritten digits, trained by importance-sampled, Langevin and thermodynamic maximum likelihood,
# and compared by the held-out log-likelihood.
#
# The objectives differ in where a gradient looks for the posterior of a digit. `ImportanceMLE` weighs draws from the
# prior that all digits share, `LangevinMLE` runs a Markov chain for every digit, and `ThermodynamicMLE` a population of
# them over a ladder of temperatures. The model, the optimiser and the number of passes are the same.

# %%
import os
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.module import eqx_module
from sklearn.datasets import load_digits

from numpyro_kaem import (
    MLP,
    BSpline,
    HeldOut,
    ImportanceMLE,
    ImportanceSampling,
    KAPrior,
    Ladder,
    LangevinMLE,
    ThermodynamicMLE,
    UnivariateEnergy,
    fit,
    plot_samples,
    plot_training,
)

smoke = bool(os.environ.get("NUMPYRO_KAEM_SMOKE"))
epochs = 2 if smoke else 100

# %% [markdown]
# The 1,797 digits of scikit-learn have 8 x 8 pixels, cut here at half of their range; 297 are held out.

# %%
x = jnp.asarray(load_digits().data > 8, jnp.float32)
x = x[jax.random.permutation(jax.random.key(0), len(x))]
x_train, x_held_out = x[:1500], x[1500:]

LATENTS = 6
energy_key, decoder_key, fit_key, score_key = jax.random.split(jax.random.key(1), 4)
energy = UnivariateEnergy.init(energy_key, (LATENTS,), basis=BSpline(num_intervals=12, degree=3, domain=(-3.0, 3.0)))
decoder = MLP(decoder_key, LATENTS, 64, hidden_sizes=(128, 128))


def model(x):
    f, g = eqx_module("energy", energy), eqx_module("decoder", decoder)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", KAPrior(f, dist.Normal(0.0, 1.0)).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=g(z)).to_event(1), obs=x)


# %% [markdown]
# Persistent chains take up, at every epoch, where they were when their digit was last seen. Their step sizes are found
# on the way, for every temperature its own.

# %%
objectives = {
    "importance, 50 draws": ImportanceMLE(50),
    "importance, 1,000 draws": ImportanceMLE(1000),
    "Langevin": LangevinMLE(num_steps=5, persistent=True),
    "thermodynamic": ThermodynamicMLE(Ladder.power(4, 3.0), num_steps=5, persistent=True),
}
results, seconds = {}, {}
for name, objective in objectives.items():
    start = time.perf_counter()
    results[name] = fit(
        fit_key,
        model,
        x_train,
        objective=objective,
        optimizer=optax.adam(2e-3),
        num_epochs=epochs,
        batch_size=100,
        held_out=HeldOut(x_held_out, num_samples=2000, every=5),
        progress=False,
    )
    seconds[name] = time.perf_counter() - start

# %% [markdown]
# All are scored alike, at the parameters of their best held-out score while training, by 20,000 draws from each model's
# prior.

# %%
sampler = ImportanceSampling(1000 if smoke else 20_000, chunk_size=1000)
scores = {
    name: sampler.run(score_key, model, result.best_params, x_held_out).log_evidence for name, result in results.items()
}
print(f"{'':25s}{'held-out nats per digit':>28s}{'seconds, compilation included':>33s}")
for name, score in scores.items():
    error = score.std() / len(score) ** 0.5
    print(f"{name:25s}{f'{score.mean():.2f} +- {error:.2f}':>28s}{seconds[name]:33.0f}")

# %% [markdown]
# What each objective tells of itself while it trains: the effective sample size of the shared draws, and the
# log-evidence that the ladder estimates beside the held-out score.

# %%
metrics = ["held_out_log_likelihood", "ess", "log_evidence_steppingstone"]
score, draws, ladder = plot_training(results, metrics=metrics)
score.set_ylim(-26, -15)
history = results["thermodynamic"].history
ladder.plot(history["held_out_epoch"], history["held_out_log_likelihood"], "k--", label="held-out score")
ladder.set_ylim(-26, -10)
ladder.legend(fontsize=8)
plt.show()

# %% [markdown]
# Digits drawn from the models: one look-up per latent coordinate, one pass through the generator.

# %%
rows = {}
for name, result in results.items():
    prior = KAPrior(
        numpyro.handlers.substitute(lambda: eqx_module("energy", energy), result.best_params)(), dist.Normal()
    )
    generator = numpyro.handlers.substitute(lambda: eqx_module("decoder", decoder), result.best_params)()
    z = prior.sample(jax.random.key(3), (16,))
    rows[name] = jax.nn.sigmoid(generator(z)).reshape(16, 8, 8)
figure, axes = plt.subplots(len(rows), 1, figsize=(9, 1.0 * len(rows) + 0.4), layout="constrained")
for axis, (name, images) in zip(axes, rows.items(), strict=True):
    plot_samples(images, num_columns=16, ax=axis).set_title(name, fontsize=9, loc="left")
plt.show()
