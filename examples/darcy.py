# %% [markdown]
# # Fields of a differential equation
#
# Flow through porous rock: pairs of a permeability and the pressure that solves Darcy's equation with it. A model of
# such pairs is trained, and asked what a picture cannot show: how well do the pairs that it draws solve the equation?
# Then it is the prior of an inverse problem: what is the rock between sixteen wells?

# %%
import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import Trace_ELBO
from scipy.fft import idctn
from scipy.sparse import diags_array
from scipy.sparse.linalg import splu, svds

from numpyro_kaem import KAEM, MLP, TemperedSMC, plot_traversals, traverse

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
num_train, num_held_out, num_epochs = (200, 20, 1) if smoke else (2_000, 200, 40)
num_scored = 3 if smoke else 12
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)

# %% [markdown]
# ## Fields
#
# On the unit square, with pressure zero at its border,
#
# $$-\nabla \cdot (a \nabla u) = 1, \qquad \log a \sim N\big(0, c\,(-\Delta + 9)^{-2}\big).$$
#
# The Gaussian field, whose covariance has the Laplacian of Neumann's boundary condition, is that of Li et al.
# (*Fourier neural operator for parametric partial differential equations*, ICLR 2021). They cut it at zero into two
# kinds of rock; here it is the logarithm of the permeability, of standard deviation 0.7.

# %%
size = 32


def log_permeabilities(rng, number):
    k = np.arange(size)
    spectrum = 1 / (np.pi**2 * (k[:, None] ** 2 + k**2) + 9)
    spectrum[0, 0] = 0  # fields of mean zero
    fields = idctn(spectrum * rng.normal(size=(number, size, size)), axes=(1, 2), norm="ortho")
    return 0.7 * size / np.sqrt(np.sum(spectrum**2)) * fields


# %% [markdown]
# Finite volumes: what flows between two of 32 x 32 cells is the difference of their pressures times the harmonic mean
# of their permeabilities. The border is half a cell away. That makes the equations $A u = f$ with a symmetric positive
# definite matrix, which SciPy factorises for every field anew.


# %%
def flow_matrix(log_a):
    a = np.exp(log_a)
    right, below, total = np.zeros((3, size, size))
    right[:, :-1] = 2 / (1 / a[:, :-1] + 1 / a[:, 1:])
    below[:-1] = 2 / (1 / a[:-1] + 1 / a[1:])
    for border in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        total[border] += 2 * a[border]
    total += right + below
    total[:, 1:] += right[:, :-1]
    total[1:] += below[:-1]
    to_right, to_below = -right.ravel()[:-1], -below.ravel()[:-size]
    return diags_array(
        [to_below, to_right, total.ravel(), to_right, to_below], offsets=[-size, -1, 0, 1, size], format="csc"
    )


source = np.full(size**2, 1 / size**2)


def solve(log_a):
    return splu(flow_matrix(log_a)).solve(source).reshape(size, size)


log_a = log_permeabilities(np.random.default_rng(0), num_train + num_held_out)
u = np.stack([solve(field) for field in log_a])
spread = np.array([log_a[:num_train].std(), u[:num_train].std()])
x = np.stack([log_a, u], axis=-1) / spread
train, held_out = np.split(x.astype(np.float32), [num_train])

# %% tags=["checks"]
assert abs(flow_matrix(log_a[0]) - flow_matrix(log_a[0]).T).max() == 0
# Of a = 1 the pressure at the centre is 0.07367, by the series of the Poisson equation on the square.
assert abs(solve(np.zeros((size, size)))[15:17, 15:17].mean() - 0.07367) < 3e-4

# %%
LIMITS = ({"cmap": "cividis", "vmin": -2.5, "vmax": 2.5}, {"cmap": "magma", "vmin": 0, "vmax": 6})


def show(grid, fields):
    """Pairs in columns, log a above u."""
    for column, field in enumerate(fields):
        for row in range(2):
            grid[row, column].imshow(field[..., row], **LIMITS[row])
            grid[row, column].set(xticks=[], yticks=[])
    for row, name in enumerate(("log a", "u")):
        grid[row, 0].set_ylabel(name)


figure, grid = plt.subplots(2, 8, figsize=(10, 2.7), layout="constrained")
show(grid, held_out[:8])
figure.suptitle("Permeabilities and the pressures that they cause", fontsize=10)
figure.savefig(outputs / "darcy_fields.png", dpi=120)

# %% [markdown]
# ## The model
#
# A pair is a picture of two channels, each divided by its standard deviation. Sixteen latents; a normal likelihood,
# whose noise is learned. `KAEM.create` would choose a `ConvDecoder` and a `ConvEncoder`, which have to find first that
# fields are smooth. Principal components know: the generator makes the coefficients of 64 of them, and starts as a
# linear model, with its latents as the first sixteen. The encoder has the same coefficients to read from.

# %%
latent_size, num_components = 16, 64
flat = train.reshape(num_train, -1)
mean = flat.mean(0)
_, singular_values, axes = svds(flat - mean, num_components, rng=0)
scale, axes = singular_values[::-1] / num_train**0.5, axes[::-1]  # the largest first
left_over = (flat.var(0).mean() - np.sum(scale[:latent_size] ** 2) / flat.shape[1]) ** 0.5


class Generator(eqx.Module):
    mean: jax.Array
    components: jax.Array
    gain: jax.Array
    correction: MLP

    def __call__(self, z):
        coefficients = self.gain * self.correction(z)
        coefficients = coefficients.at[..., :latent_size].add(z)
        return (self.mean + coefficients @ self.components).reshape(*z.shape[:-1], size, size, 2)


class Encoder(eqx.Module):
    mean: jax.Array
    components: jax.Array
    log_scale: jax.Array
    gain: jax.Array
    correction: MLP

    def __call__(self, x):
        coefficients = (x.reshape(*x.shape[:-3], -1) - self.mean) @ self.components
        loc = coefficients[..., :latent_size]
        linear = jnp.concatenate([loc, jnp.broadcast_to(self.log_scale, loc.shape)], axis=-1)
        return linear + self.gain * self.correction(coefficients)


decoder_key, encoder_key, prior_key = jax.random.split(jax.random.key(0), 3)
center, zero = jnp.asarray(mean), jnp.zeros(())
modules = {
    "generator": Generator(
        center, jnp.asarray(scale[:, None] * axes), zero, MLP(decoder_key, latent_size, num_components, (128, 128))
    ),
    "encoder": Encoder(
        center,
        jnp.asarray(axes.T / scale),
        jnp.log(left_over / jnp.asarray(scale[:latent_size])),
        zero,
        MLP(encoder_key, num_components, 2 * latent_size, (128, 128)),
    ),
}

# %% [markdown]
# Trained by NumPyro's `Trace_ELBO` with the encoder: posteriors are narrow, and one draw of each is enough. Beside it
# the same with a standard normal prior.

# %%
normal = dist.Normal(jnp.zeros(latent_size), 1.0).to_event(1)
models = {}
for name, prior in {"learned": "independent", "normal": normal}.items():
    models[name] = KAEM.create(
        prior_key, x.shape[1:], latent_size=latent_size, likelihood="normal", prior=prior, **modules
    ).fit(jax.random.key(1), train, objective=Trace_ELBO(), num_epochs=num_epochs, batch_size=50, progress=False)
kaem = models["learned"]
noise = np.exp(kaem.parts.likelihood.log_noise)
print(f"Noise, of a field's standard deviation: {noise[0]:.3f} of log a, {noise[1]:.3f} of u")

# %% [markdown]
# ## Scores
#
# Tempered SMC scores a few held-out pairs. Importance draws from the encoder would not do: their effective sample size
# is near one, and they are tens of nats below.

# %%
sampler = TemperedSMC(num_particles=64, num_mcmc_steps=10, num_runs=2, progress=False)
print(kaem.evaluate(jax.random.key(3), held_out, sampler, num_scored=num_scored))

# %%
posteriors = {
    name: model.posterior(jax.random.key(4), held_out[:num_scored], sampler) for name, model in models.items()
}
difference = posteriors["learned"].log_evidence - posteriors["normal"].log_evidence
error = difference.std(ddof=1) / num_scored**0.5
print(f"Learned minus normal prior, the same pairs: {difference.mean():+.1f} +- {error:.1f} nats a pair")

# %% [markdown]
# No difference is seen between the priors: a Gaussian field has Gaussian latents, and a learned prior nothing to learn.
#
# ## What the first five coordinates do
#
# [Reading a model](../reading.md): how much of the variance of all that is drawn each coordinate explains, and what
# happens along its quantiles, with all others at their medians.

# %%
shares = kaem.effects(jax.random.key(2), 64 if smoke else 512)
print(shares)
first = list(shares.ranking[:5])
for channel, name in enumerate(("log a", "u")):
    paths = traverse(kaem.prior, lambda z, channel=channel: kaem.decode(z)[..., channel], first, num_points=7)
    plot_traversals(paths, coordinates=first, figsize=(6, 4.4), **LIMITS[channel])
    plt.suptitle(f"{name}, along the five coordinates that explain most", fontsize=10)
    plt.savefig(outputs / f"darcy_coordinates_{channel}.png", dpi=120)

# %% [markdown]
# Blue rock is tight, yellow rock lets water through. The first two coordinates tilt the rock along the two diagonals,
# and the pressure gathers where it is tight. The third opens one pair of opposite corners and closes the other, and
# the pressure stretches along the closed ones; the fourth does so with the sides. The fifth closes the middle, where
# the pressure rises, and opens the corners. That is what whoever knows the equation would say, and it can be said
# because the generator is nearly additive: first-order and total effects hardly differ, and no pair interacts by more
# than a few thousandths. It began as principal components, which for a Gaussian field are its coordinates; without
# that start, rotations of them would do as well.

# %% tags=["checks"]
assert smoke or shares.whole_first_order.sum() > 0.95
assert smoke or set(first[:3]) == {0, 1, 2}

# %% [markdown]
# ## Do the pairs solve the equation?
#
# The residual of a pair is $r = f - A u$, its energy $r^\top A^{-1} r$: the squared energy norm of $u - u^*$, where
# $u^*$ is the right pressure for this permeability. It is divided by the energy of $u^*$. Means of the likelihood are
# scored; its noise would drown them. Beside the model's pairs stand those of the linear Gaussian model that it began as
# (principal components with normal coefficients), held-out permeabilities with the mean pressure, and with the pressure
# of another one.


# %%
def residual_energy(pairs):
    energies = []
    for log_a, u in np.moveaxis(np.asarray(pairs, float) * spread, -1, 1):
        matrix = flow_matrix(log_a)
        right = splu(matrix).solve(source)
        error = u.ravel() - right
        energies.append(error @ (matrix @ error) / (right @ source))
    return np.array(energies)


num_pairs = len(held_out)
permeability, pressure = held_out[..., :1], held_out[..., 1:]
coefficients = np.random.default_rng(1).normal(size=(num_pairs, latent_size)) * scale[:latent_size]
mean_pressure = np.broadcast_to(train[..., 1:].mean(0), pressure.shape)
samples = kaem.sample(jax.random.key(5), num_pairs, mean=True)
draws = posteriors["learned"].resample(jax.random.key(6), 50).latents["z"]
decoded = kaem.parts.generator(jnp.asarray(draws))
pairs = {
    "held-out": held_out,
    "drawn from the model": samples,
    "drawn, normal prior": models["normal"].sample(jax.random.key(5), num_pairs, mean=True),
    "reconstructed": decoded.mean(1),
    "linear Gaussian": (mean + coefficients @ axes[:latent_size]).reshape(held_out.shape),
    "mean pressure": np.concatenate([permeability, mean_pressure], axis=-1),
    "another's pressure": np.concatenate([permeability, np.roll(pressure, 1, axis=0)], axis=-1),
}
energies = {name: residual_energy(given) for name, given in pairs.items()}
print(f"{'pairs':24}{'median':>10}{'10 %':>10}{'90 %':>10}")
for name, energy in energies.items():
    print(f"{name:24}" + "".join(f"{np.quantile(energy, level):10.2%}" for level in (0.5, 0.1, 0.9)))

# %%
figure, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
bins = np.geomspace(1e-3, 10, 50)
for name in ("drawn from the model", "reconstructed", "linear Gaussian", "another's pressure"):
    ax.hist(energies[name], bins, density=False, weights=np.full(len(energies[name]), 1 / len(energies[name])),
            histtype="stepfilled", alpha=0.5, label=name)  # fmt: skip
ax.set(xscale="log", xlabel="energy of the residual over that of the right pressure", ylabel="share of pairs")
ax.legend()
figure.savefig(outputs / "darcy_residuals.png", dpi=120)

# %% [markdown]
# Half a per cent of energy is a pressure that is off by seven per cent in the energy norm. Drawn permeabilities are
# smoother than those of the data, because sixteen latents do not hold their grain, which counts as noise; those of the
# linear model are as smooth.

# %% tags=["checks"]
assert energies["held-out"].max() < 1e-6
medians = {name: np.median(energy) for name, energy in energies.items()}
assert smoke or medians["drawn from the model"] < medians["linear Gaussian"] / 3
assert smoke or medians["linear Gaussian"] < medians["another's pressure"] / 3

# %%
figure, grid = plt.subplots(2, 8, figsize=(10, 2.7), layout="constrained")
show(grid, samples[:8])
figure.suptitle("Pairs drawn from the model", fontsize=10)
figure.savefig(outputs / "darcy_samples.png", dpi=120)

# %% [markdown]
# Reconstructions average over the posterior, whose spread says what sixteen latents and the noise leave open.

# %%
figure, grid = plt.subplots(2, 9, figsize=(11, 2.9), layout="constrained")
for example in range(3):
    shown = np.stack([held_out[example], decoded[example].mean(0)])
    show(grid[:, 3 * example :], shown)
    for row in range(2):
        image = grid[row, 3 * example + 2].imshow(decoded[example, ..., row].std(0), cmap="Greys", vmin=0, vmax=0.05)
    for column, title in enumerate(("held-out", "reconstructed", "spread")):
        grid[0, 3 * example + column].set_title(title, fontsize=9)
for ax in grid.flat:
    ax.set(xticks=[], yticks=[])
figure.colorbar(image, ax=grid[:, -1], shrink=0.8)
figure.savefig(outputs / "darcy_reconstructions.png", dpi=120)

# %% [markdown]
# ## The rock between the wells
#
# The trained prior and generator are parts of any other NumPyro model. Sixteen wells give the pressure of a held-out
# field, with an error of 0.05 of its standard deviation. What is the permeability?

# %%
error_of_gauge = 0.05
wells = tuple(np.meshgrid([4, 12, 20, 28], [4, 12, 20, 28], indexing="ij"))
truth = held_out[1]
measured = truth[..., 1][wells] + error_of_gauge * np.random.default_rng(2).normal(size=(4, 4))


def field(measured):
    z = numpyro.sample("z", kaem.parts.prior)
    pair = numpyro.deterministic("pair", kaem.parts.generator(z))
    numpyro.sample("measured", dist.Normal(pair[..., 1][wells], error_of_gauge).to_event(2), obs=measured)


found = TemperedSMC(num_particles=200, num_mcmc_steps=10, num_runs=2, progress=False).run(
    jax.random.key(8), field, {}, measured
)
draws = kaem.parts.generator(jnp.asarray(found.resample(jax.random.key(9), 200).latents["z"][0]))
drawn, expected, deviation = np.asarray(draws), draws.mean(0), draws.std(0)
inside = (np.abs(truth - expected) < 2 * np.hypot(deviation, noise)).mean((0, 1))
print(f"Within two standard deviations of the posterior mean, noise included: {inside[0]:.0%} of cells of log a")

# %%
figure, grid = plt.subplots(2, 5, figsize=(9, 3.5), layout="constrained")
show(grid, [truth, expected, drawn[0], drawn[1]])
for row in range(2):
    image = grid[row, 4].imshow(deviation[..., row], cmap="Greys", vmin=0)
    figure.colorbar(image, ax=grid[row, 4], shrink=0.8)
grid[1, 0].plot(wells[1].ravel(), wells[0].ravel(), "o", ms=3, mfc="none", mec="white")
for column, title in enumerate(("truth and wells", "posterior mean", "a draw", "another", "spread")):
    grid[0, column].set_title(title, fontsize=9)
for ax in grid.flat:
    ax.set(xticks=[], yticks=[])
figure.savefig(outputs / "darcy_wells.png", dpi=120)

# %% [markdown]
# By the solver, the permeabilities of the posterior's draws should give what was measured at the wells. They miss it by
# more than the error of the gauges: the pressure that the generator draws is a little off, and the grain is missing.

# %%
solved = np.stack([solve(log_a)[wells] for log_a in drawn[:50, ..., 0] * spread[0]]) / spread[1]
print(f"Off what was measured by {np.sqrt(np.mean((solved - measured) ** 2)):.3f}, root of the mean square")
