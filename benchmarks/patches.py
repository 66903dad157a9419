"""Densities of 8 x 8 patches of photographs, in bits a pixel: independent components by the kind of their sources.

Data: six photographs that scikit-learn and scikit-image ship, as grey values v in 0 ... 255 (the luminance, rounded).
Models are fitted to patches of the left two thirds of each, and scored on patches of the right third, at random places.
Grey values are made continuous first and logarithms then taken: y = log(1 + v + u), with u uniform on [0, 1) and drawn
anew for every pixel of every patch. Each patch loses its mean (DC); the 63 numbers that are left are its coordinates in
an orthonormal basis of the patches of mean zero. Scores are minus log2 of the density of these, divided by 64 pixels.
The density of a logarithm is no code length, and the score may be negative; differences between models are bits a pixel
of any code that treats the mean alike.

All scores are exact.

Run with `python -m benchmarks.patches`; `--quick` for far fewer patches and steps; `--images DIR` writes the pictures
of the page "Patches of photographs".
"""

import argparse
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro.distributions as dist
import optax
import scipy.stats
import skimage.data
from sklearn.datasets import load_sample_images

from benchmarks.timing import print_device, print_rows
from numpyro_kaem import BSpline, KAPrior, UnivariateEnergy

SIDE = 8
SIZE = SIDE**2 - 1
# Knots of the tilts: dense where a source is most of the time, up to where the tail begins.
BASIS = BSpline.from_knots(np.sinh(np.linspace(-4.0, 4.0, 33)), degree=3)


def photographs():
    """Grey values of 0 ... 255, by name."""
    china, flower = load_sample_images().images
    colours = {"china": china, "flower": flower}
    for name in ("astronaut", "camera", "chelsea", "coffee"):
        colours[name] = getattr(skimage.data, name)()
    weights = np.array([0.2125, 0.7154, 0.0721])
    return {k: np.rint(v @ weights) if v.ndim == 3 else v.astype(float) for k, v in colours.items()}


def basis_without_mean():
    """Orthonormal patches of mean zero, the cosines but for the constant: shape (63, 64)."""
    at = np.arange(SIDE)
    cosines = np.cos(np.pi * np.outer(at, at + 0.5) / SIDE) * np.where(at == 0, 1.0, 2**0.5)[:, None] / SIDE**0.5
    return np.einsum("ai,bj->abij", cosines, cosines).reshape(SIDE**2, SIDE**2)[1:]


def patches(rng, pictures, size, first, last):
    """Patches of the columns from `first` to `last`, in shares of the width, as many of each picture: (size, 63)."""
    found = []
    for values in pictures:
        height, width = values.shape
        columns = rng.integers(int(first * width), int(last * width) - SIDE + 1, size // len(pictures))
        rows = rng.integers(0, height - SIDE + 1, size // len(pictures))
        windows = np.lib.stride_tricks.sliding_window_view(values, (SIDE, SIDE))
        found.append(windows[rows, columns].reshape(-1, SIDE**2))
    grey = rng.permutation(np.concatenate(found))
    return np.log1p(grey + rng.random(grey.shape)) @ basis_without_mean().T


class ICA(eqx.Module):
    """A square generator: log p(x) = sum_q log p_q((W x)_q) + log|det W|, with sources as `distribution` gives them."""

    unmixing: jax.Array
    sources: eqx.Module

    def log_prob(self, x):
        z = x @ self.unmixing.T
        return self.sources.distribution().log_prob(z).sum(-1) + jnp.linalg.slogdet(self.unmixing)[1]


class Laplace(eqx.Module):
    def distribution(self):
        return dist.Laplace(jnp.zeros(SIZE), 1.0)


class StudentT(eqx.Module):
    log_df: jax.Array

    def distribution(self):
        return dist.StudentT(jnp.exp(self.log_df), 0.0, 1.0)


class Learned(eqx.Module):
    energy: UnivariateEnergy

    def distribution(self):
        return KAPrior(self.energy, dist.StudentT(3.0, jnp.zeros(SIZE), 1.0))


def maximise(model, x, num_steps, rate, key, batch=1_000):
    """Maximum likelihood by Adam on random batches, the rate falling to zero along a cosine."""
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
    x = jnp.asarray(x, jnp.float32)

    def loss(parameters, rows):
        return -jnp.mean(eqx.combine(parameters, static).log_prob(rows)) / SIZE

    def step(carry, key):
        parameters, state = carry
        rows = x[jax.random.randint(key, (batch,), 0, len(x))]
        gradients = jax.grad(loss)(parameters, rows)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(parameters, updates), state), None

    keys = jax.random.split(key, num_steps)
    (parameters, _), _ = jax.jit(lambda c, k: jax.lax.scan(step, c, k))((parameters, optimizer.init(parameters)), keys)
    return eqx.combine(jax.block_until_ready(parameters), static)


def gaussian_log_prob(x):
    """Of whitened patches."""
    return -0.5 * (np.square(x).sum(1) + SIZE * np.log(2.0 * np.pi))


def all_sources():
    """Sources of complete models, in the order of their freedom."""
    flat = UnivariateEnergy.init(jax.random.key(0), (SIZE,), basis=BASIS, base_activation="identity", scale=0.0)
    return {
        "ICA, Laplace sources": Laplace(),
        "ICA, Student-t sources of fitted degrees": StudentT(jnp.zeros(SIZE)),
        "ICA, learned sources (`KAPrior` on StudentT(3))": Learned(flat),
    }


def component_log_prob(models, name, sources, x_train, x, num_steps):
    key_start, key = jax.random.split(jax.random.key(0))
    # A scale of two makes sources about as wide as the references are.
    start = ICA(2.0 * jax.random.orthogonal(key_start, SIZE), sources)
    models[name] = maximise(start, x_train, num_steps, 1e-2, key)
    return eqx.filter_jit(lambda model, x: model.log_prob(x))(models[name], jnp.asarray(x, jnp.float32))


def draw_pictures(folder, student, learned, unwhitening):
    """Filters and densities of the learned sources, the strongest first."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    mixing = unwhitening @ np.linalg.inv(np.asarray(learned.unmixing))
    sources = learned.sources.distribution()
    low, middle, high = np.asarray(sources.icdf(jnp.array([[0.25], [0.5], [0.75]])))
    # In units of half of each source's interquartile range.
    unit = 0.5 * (high - low)
    order = np.argsort(-np.linalg.norm(mixing, axis=0) * unit)
    tiles = (mixing.T @ basis_without_mean())[order].reshape(-1, SIDE, SIDE)
    tiles = tiles / np.abs(tiles).max((1, 2), keepdims=True)

    figure, axes = plt.subplots(7, 9, figsize=(6.3, 4.9), layout="constrained")
    for axis, tile in zip(axes.flat, tiles, strict=True):
        axis.imshow(tile, cmap="gray", vmin=-1, vmax=1)
        axis.axis("off")
    figure.savefig(folder / "patch_filters.png", dpi=80)

    z = np.linspace(-8.0, 8.0, 601)
    log_prob = np.asarray(sources.log_prob(jnp.asarray(middle + unit * z[:, None], jnp.float32))) + np.log(unit)
    degrees = float(np.median(np.exp(np.asarray(student.sources.log_df))))
    families = {
        f"Student-t, {degrees:.1f} degrees": (scipy.stats.t(degrees), "C1"),
        "Laplace": (scipy.stats.laplace(), "C2"),
        "normal": (scipy.stats.norm(), "0.6"),
    }
    figure, axes = plt.subplots(2, 3, figsize=(8, 4.4), layout="constrained", sharex=True, sharey=True)
    for axis, number in zip(axes.flat, np.linspace(0, SIZE - 1, 6).astype(int), strict=True):
        axis.plot(z, log_prob[:, order[number]], "C0", lw=2, label="learned")
        for name, (family, color) in families.items():
            scale = family.ppf(0.75)
            axis.plot(z, family.logpdf(z * scale) + np.log(scale), color, lw=0.9, label=name)
        axis.set(title=f"source {number + 1}", ylim=(-9.0, 0.5))
    axes[0, 0].legend(fontsize=7, loc="lower center")
    figure.supxlabel("source, in half interquartile ranges", fontsize=9)
    figure.supylabel("log-density", fontsize=9)
    figure.savefig(folder / "patch_densities.png", dpi=80)


def main(arguments=()):
    """Print a table, the best first."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.patches")
    parser.add_argument("--quick", action="store_true", help="far fewer patches and steps")
    parser.add_argument("--images", type=Path, help="folder to write the pictures to")
    options = parser.parse_args(arguments)
    quick = options.quick
    num_train, num_held_out = (6_000, 1_200) if quick else (60_000, 12_000)

    rng, pictures = np.random.default_rng(0), list(photographs().values())
    x_train = patches(rng, pictures, num_train, 0.0, 2 / 3)
    x = patches(rng, pictures, num_held_out, 2 / 3, 1.0)
    mean = x_train.mean(0)
    values, vectors = np.linalg.eigh(np.cov(x_train.T, bias=True))
    unwhitening, whitening = (vectors * values**0.5) @ vectors.T, (vectors * values**-0.5) @ vectors.T
    x_train, x = ((rows - mean) @ whitening for rows in (x_train, x))

    log_prob = {}

    def score(name, function, *args):
        start = time.perf_counter()
        log_prob[name] = np.asarray(function(*args), float)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    score("Gaussian", gaussian_log_prob, x)
    models = {}
    for name, sources in all_sources().items():
        score(name, component_log_prob, models, name, sources, x_train, x, 200 if quick else 3_000)
    laplace, student, learned = models
    to_bits = 1.0 / (np.log(2.0) * SIDE**2)
    gains = {name: to_bits * (value - log_prob["Gaussian"]) for name, value in log_prob.items()}
    gaussian = -to_bits * (log_prob["Gaussian"] + np.linalg.slogdet(whitening)[1]).mean()
    table = {name: (gain.mean(), gain.std() / num_held_out**0.5) for name, gain in gains.items()}
    rows = [
        (name, f"{gaussian - gain:.3f}", f"{gain:.3f}", f"{error:.3f}")
        for name, (gain, error) in sorted(table.items(), key=lambda item: -item[1][0])
    ]
    header = ("model", "bits a pixel", "gain over the Gaussian", "±")
    print_rows(f"{num_held_out:,} held-out patches of 8 x 8 pixels, {num_train:,} to train on", header, rows)
    df = np.exp(np.asarray(models[student].sources.log_df))
    print(
        f"\nDegrees of freedom of the Student-t sources: {df.min():.2f} to {df.max():.2f}, median {np.median(df):.2f}."
    )
    for one, other in ((learned, student), (student, laplace)):
        difference = gains[one] - gains[other]
        print(f"{one} less {other}: {difference.mean():.3f} ± {difference.std() / num_held_out**0.5:.3f}")
    if options.images:
        draw_pictures(options.images, models[student], models[learned], unwhitening)


if __name__ == "__main__":
    print_device()
    main(sys.argv[1:])
